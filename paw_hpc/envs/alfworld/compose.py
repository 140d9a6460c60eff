"""One new game: a task, a furnished scene in which it can be done, its PDDL problem, and the commands that do
it.

Domain, grammar, goals, sentences and affordances (what a receptacle can hold, what can be cleaned, heated,
cooled, sliced) are ALFWorld's own, read from its package. A game is a function of (seed, split, task type,
index) alone. The walkthrough follows from the construction; `generate` plays it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from alfworld.agents.utils.misc import Demangler
from alfworld.gen import constants
from alfworld.gen.goal_library import gdict

from paw_hpc.envs.alfworld.official import installed_logic
from paw_hpc.envs.alfworld.rooms import ROOMS, weights
from paw_hpc.envs.alfworld.scenes import Dice, Receptacle, furniture, has_objects, scenes, thing_name
from paw_hpc.system.seeding import derive_seed

LAMP = "DeskLamp"
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "clean", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "heat", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "cool", "Fridge"),
}
"""Task type -> (affordance, command, appliance)."""
ROOM_WEIGHTS = {
    "pick_and_place_simple": {"Kitchen": 11, "LivingRoom": 27, "Bedroom": 29, "Bathroom": 33},
    "look_at_obj_in_light": {"LivingRoom": 15, "Bedroom": 85},
    "pick_clean_then_place_in_recep": {"Kitchen": 76, "Bathroom": 24},
    "pick_heat_then_place_in_recep": {"Kitchen": 1},
    "pick_cool_then_place_in_recep": {"Kitchen": 1},
    "pick_two_obj_and_place": {"Kitchen": 15, "LivingRoom": 27, "Bedroom": 29, "Bathroom": 29},
}
_AFFORDANCES = {
    "Cleanable": "cleanable",
    "Heatable": "heatable",
    "Coolable": "coolable",
    "Sliceable": "sliceable",
}
_APPLIANCES = ("SinkBasin", "Microwave", "Fridge")
# Types that the domain's actions name must be declared even where no such thing is there.
_DECLARED_OBJECTS, _DECLARED_RECEPTACLES = ("Knife", "ButterKnife", LAMP), ("Sink", *_APPLIANCES)


@dataclass(frozen=True)
class Item:
    """An object: its type, its PDDL name and where it lies."""

    kind: str
    name: str
    place: Receptacle


@dataclass(frozen=True)
class Plan:
    """What a game is about. `place` is the target receptacle's type, or the lamp's for look tasks."""

    task_type: str
    room: str
    scene: int
    target: str
    place: str


def compose(split: str, task_type: str, index: int, seed: int) -> tuple[str, dict[str, Any]]:
    """(task id, game) of the index-th generated game of a type. The walkthrough is not yet proven."""
    for attempt in range(1000):
        dice = Dice(derive_seed(seed, f"alfworld/generated/{split}/{task_type}", index, attempt))
        plan = _draw_plan(task_type, split == "valid_unseen", dice)
        items = _furnish(plan, dice) if plan else None
        if plan and items and _possible(plan, items):
            break
    else:
        raise AssertionError(
            f"no {task_type} game in 1000 attempts: the tables of scenes.py contradict each other"
        )
    room = furniture(plan.room, plan.scene)
    domain, grammar = installed_logic()
    sentence = dice.pick(gdict[task_type]["templates"]).format(
        obj=plan.target.lower(), recep=plan.place.lower(), toggle=plan.place.lower()
    )
    game = {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", sentence),
        "pddl_problem": _problem(plan, room, items, dice),
        "walkthrough": _walkthrough(plan, room, items, dice),
        "solvable": True,
    }
    trial = f"g{index:04d}" if seed == 0 else f"s{seed}-g{index:04d}"
    return f"generated-{split}/{task_type}-{plan.target}-None-{plan.place}-{plan.scene}/{trial}", game


@functools.cache
def holds(place: str) -> frozenset[str]:
    """Object types that a receptacle type can hold, according to ALFWorld."""
    return frozenset(constants.VAL_RECEPTACLE_OBJECTS.get(place, ()))


def can_be(affordance: str, kind: str) -> bool:
    return kind in constants.VAL_ACTION_OBJECTS[affordance]


def openable(place: str) -> bool:
    return place in constants.OPENABLE_CLASS_SET


def _draw_plan(task_type: str, unseen: bool, dice: Dice) -> Plan | None:
    room = dice.weighted(ROOM_WEIGHTS[task_type])
    scene = dice.pick(scenes(room, unseen))
    there = {r.kind for r in furniture(room, scene)}
    objects = [
        kind for kind, (chance, _, _) in ROOMS[room].objects.items() if has_objects(room, scene, kind, chance)
    ]
    if task_type == "look_at_obj_in_light":
        possible = bool(there & set(weights(ROOMS[room].lamp)))
        return Plan(task_type, room, scene, dice.pick(objects), LAMP) if possible else None
    affordance, _, appliance = TREATMENTS.get(task_type, ("", "", ""))
    places = {
        kind: weight
        for kind, weight in weights(ROOMS[room].targets).items()
        if kind in there and kind != appliance
    }
    place = dice.weighted(places)
    candidates = [
        kind for kind in objects if kind in holds(place) and (not affordance or can_be(affordance, kind))
    ]
    return Plan(task_type, room, scene, dice.pick(candidates), place) if candidates else None


def _furnish(plan: Plan, dice: Dice) -> list[Item]:
    """Objects in their places: the target in the number that the task needs, and for pick tasks never where
    it shall go."""
    room = ROOMS[plan.room]
    items: list[Item] = []
    for kind, (chance, most, places) in {**room.objects, **room.fixtures}.items():
        if not has_objects(plan.room, plan.scene, kind, chance):
            continue
        count = dice.integer(1, most)
        if kind == plan.target:
            count = max(count, 2 if plan.task_type == "pick_two_obj_and_place" else 1)
        banned = plan.place if kind == plan.target and plan.task_type not in TREATMENTS else None
        for _ in range(count):
            _put(kind, places, banned, plan, items, dice)
    if room.lamp and (plan.place == LAMP or dice.chance(0.5)):
        _put(LAMP, room.lamp, None, plan, items, dice)
    return items


def _put(kind: str, places: str, banned: str | None, plan: Plan, items: list[Item], dice: Dice) -> None:
    there = furniture(plan.room, plan.scene)
    open_to = {
        place: weight
        for place, weight in weights(places).items()
        if place != banned and any(r.kind == place for r in there)
    }
    if not open_to:
        return
    chosen = dice.weighted(open_to)
    receptacle = dice.pick([r for r in there if r.kind == chosen])
    number = len(items)
    items.append(
        Item(
            kind, thing_name(kind, dice.integer(-450, 450), 50 + number, dice.integer(-450, 450)), receptacle
        )
    )


def _possible(plan: Plan, items: list[Item]) -> bool:
    count = Counter(item.kind for item in items)
    return count[plan.target] >= (2 if plan.task_type == "pick_two_obj_and_place" else 1) and (
        plan.place != LAMP or count[LAMP] > 0
    )


def _problem(plan: Plan, room: tuple[Receptacle, ...], items: list[Item], dice: Dice) -> str:
    """The game as a PDDL problem."""
    start = f"loc_bar_{dice.integer(-9, 9) + 100}_bar_{dice.integer(-9, 9) + 100}_bar_0_bar_30"
    object_types = sorted({item.kind for item in items} | set(_DECLARED_OBJECTS))
    receptacle_types = sorted({r.kind for r in room} | set(_DECLARED_RECEPTACLES))
    spots = sorted({r.spot for r in room})
    declared = [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in object_types),
        *(f"{kind}Type - rtype" for kind in receptacle_types),
        *(f"{item.name} - object" for item in items),
        *(f"{r.name} - receptacle" for r in room),
        *(f"{spot} - location" for spot in [*spots, start]),
    ]
    facts = [*_receptacle_facts(room), *_item_facts(items), f"atLocation agent1 {start}"]
    facts += [f"canContain {r}Type {o}Type" for r in receptacle_types for o in object_types if o in holds(r)]
    goal = (
        gdict[plan.task_type]["pddl"]
        .format(obj=plan.target, recep=plan.place, toggle=plan.place)
        .replace("#", "-")
    )
    lines = [
        "(define (problem generated)",
        "(:domain alfred)",
        "(:objects",
        *declared,
        ")",
        "(:init",
        *(f"({fact})" for fact in facts),
        ")",
    ]
    # The goal library's text also closes the problem.
    return "\n".join(lines) + goal


def _receptacle_facts(room: Iterable[Receptacle]) -> list[str]:
    facts = []
    for r in room:
        facts += [f"receptacleType {r.name} {r.kind}Type", f"receptacleAtLocation {r.name} {r.spot}"]
        facts += [f"openable {r.name}"] if openable(r.kind) else []
    return facts


def _item_facts(items: Iterable[Item]) -> list[str]:
    facts = []
    for item in items:
        name = item.name
        facts += [
            f"objectType {name} {item.kind}Type",
            f"inReceptacle {name} {item.place.name}",
            f"objectAtLocation {name} {item.place.spot}",
        ]
        facts += [f"toggleable {name}"] if item.kind == LAMP else []
        facts += [f"pickupable {name}"] if _pickupable(item.kind) else []
        facts += [f"isReceptacleObject {name}"] if item.kind in constants.MOVABLE_RECEPTACLES else []
        facts += [
            f"{fact} {name}" for affordance, fact in _AFFORDANCES.items() if can_be(affordance, item.kind)
        ]
    return facts


def _pickupable(kind: str) -> bool:
    return kind != LAMP and not any(kind in room.fixtures for room in ROOMS.values())


class _Walk:
    """The commands of a walk through the house. Nothing is opened twice; from one spot to itself there is no
    way to go."""

    def __init__(self, names: Mapping[str, str]):
        self.commands: list[str] = []
        self._names = names
        self._spot: str | None = None
        self._opened: set[Receptacle] = set()

    def go(self, place: Receptacle) -> None:
        if self._spot != place.spot:
            self.commands.append(f"go to {self._names[place.name]}")
            self._spot = place.spot

    def take(self, item: Item) -> None:
        self._reach(item.place)
        self.commands.append(f"take {self._names[item.name]} from {self._names[item.place.name]}")

    def put(self, item: Item, place: Receptacle) -> None:
        self._reach(place)
        self.commands.append(f"move {self._names[item.name]} to {self._names[place.name]}")

    def treat(self, command: str, item: Item, appliance: Receptacle) -> None:
        self.go(appliance)
        self.commands.append(f"{command} {self._names[item.name]} with {self._names[appliance.name]}")

    def use(self, lamp: Item) -> None:
        self.go(lamp.place)
        self.commands.append(f"use {self._names[lamp.name]}")

    def _reach(self, place: Receptacle) -> None:
        self.go(place)
        if openable(place.kind) and place not in self._opened:
            self.commands.append(f"open {self._names[place.name]}")
            self._opened.add(place)


def _walkthrough(plan: Plan, room: tuple[Receptacle, ...], items: list[Item], dice: Dice) -> list[str]:
    """A short walk that does the task: what lies open is preferred to what must be opened."""
    walk = _Walk(_game_names(room, items))
    wanted = sorted(
        (item for item in items if item.kind == plan.target),
        key=lambda item: (openable(item.place.kind), item.name),
    )
    if plan.task_type == "look_at_obj_in_light":
        walk.take(wanted[0])
        walk.use(next(item for item in items if item.kind == LAMP))
        return walk.commands
    place = dice.pick([r for r in room if r.kind == plan.place])
    for item in wanted[: 2 if plan.task_type == "pick_two_obj_and_place" else 1]:
        walk.take(item)
        if plan.task_type in TREATMENTS:
            _, command, appliance = TREATMENTS[plan.task_type]
            walk.treat(command, item, next(r for r in (item.place, *room) if r.kind == appliance))
        walk.put(item, place)
    return walk.commands


def _game_names(room: tuple[Receptacle, ...], items: list[Item]) -> dict[str, str]:
    """PDDL name -> the name that the player reads, numbered by ALFWorld's own rule."""
    names = [r.name for r in room] + [item.name for item in items]
    demangler = Demangler(game_infos={name: SimpleNamespace(id=name.lower()) for name in names})
    return {name: demangler.demangle_alfred_name(name.lower()) for name in names}
