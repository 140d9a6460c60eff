"""A scripted expert for ALFWorld, the teacher of the warm start.

It reads what the player reads (task, observations, admissible commands) and acts on a plan per task type:
find the object, treat it, put it where it belongs. Its one privilege is a hint: with a probability drawn per
episode it searches where the game's stored walkthrough finds the object, otherwise in a place not yet
visited. A policy cloned from it therefore meets both short and searching episodes. It recovers from foreign
actions (a wrong object in hand, a closed door), so it can label states that a noisy player has reached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_GOALS = (
    (re.compile(r"(?:put two (?P<o>\w+) in|find two (?P<o2>\w+) and put them in) (?P<r>\w+)"), "two"),
    (re.compile(r"(?:clean some (?P<o>\w+) and put it in|put a clean (?P<o2>\w+) in) (?P<r>\w+)"), "clean"),
    (re.compile(r"(?:heat some (?P<o>\w+) and put it in|put a hot (?P<o2>\w+) in) (?P<r>\w+)"), "heat"),
    (re.compile(r"(?:cool some (?P<o>\w+) and put it in|put a cool (?P<o2>\w+) in) (?P<r>\w+)"), "cool"),
    (re.compile(r"(?:look at (?P<o>\w+) under the|examine the (?P<o2>\w+) with the) (?P<r>\w+)"), "look"),
    (re.compile(r"put (?:a|some) (?P<o>\w+) (?:in|on) (?P<r>\w+)"), "put"),
)
_APPLIANCE = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}


@dataclass(frozen=True, slots=True)
class Goal:
    """What the task sentence asks: `kind` is put, clean, heat, cool, look or two."""

    kind: str
    target: str
    place: str
    """Receptacle type, or the lamp's type for `look`."""


def parse_goal(task: str) -> Goal:
    """Raises ValueError for a sentence that is none of ALFWorld's."""
    for pattern, kind in _GOALS:
        match = pattern.search(task.lower())
        if match:
            return Goal(kind, match["o"] or match.groupdict().get("o2") or "", match["r"])
    raise ValueError(f"not an ALFWorld task: {task!r}")


def _kind(name: str) -> str:
    return name.rsplit(" ", 1)[0]


@dataclass
class Expert:
    """One episode's teacher.

    Args:
        task: the task sentence.
        walkthrough: the game's stored solution (the hint).
        hint: probability of searching where the walkthrough goes instead of in an unvisited place.
    """

    task: str
    walkthrough: Sequence[str]
    hint: float
    rng: np.random.Generator
    visited: set[str] = field(default_factory=set)
    placed: list[tuple[str, str]] = field(default_factory=list)
    treated: str | None = None
    place: str = ""
    heading: str | None = None

    def __post_init__(self) -> None:
        self.goal = parse_goal(self.task)
        self._finds = self._where(self.goal.target, "take ")
        self._lamps = self._where(self.goal.place, "use ")

    def act(self, admissible: Sequence[str]) -> str:
        """The next command, always an admissible one."""
        commands = set(admissible)
        held = next(
            (c.split(" ", 1)[1].rsplit(" to ", 1)[0] for c in admissible if c.startswith("move ")), None
        )
        examined = {c.removeprefix("examine ") for c in admissible if c.startswith("examine ")}
        here = {c.split(" ", 1)[1] for c in admissible if c.startswith(("open ", "close "))}
        if held is None and self._maybe_holding:
            held = next((name for name in examined if name == self._maybe_holding), None)
        if held is None:
            return self._search(commands, here)
        if _kind(held) != self.goal.target:
            return self._drop(admissible)
        if self.goal.kind in _APPLIANCE and self.treated != held:
            return self._treat(held, commands)
        if self.goal.kind == "look":
            return self._light(commands, here)
        return self._put(held, commands)

    _maybe_holding: str | None = None

    def observe(self, command: str, effective: bool) -> None:
        """Tell the expert which command was really played, and whether it did anything."""
        if not effective:
            return
        verb, _, rest = command.partition(" ")
        if verb == "go":
            self.place = rest.removeprefix("to ")
            self.visited.add(self.place)
        elif verb == "take":
            self._maybe_holding, source = rest.split(" from ")
            self.placed = [p for p in self.placed if p != (self._maybe_holding, source)]
            self.heading = None
        elif verb == "move":
            item, target = rest.split(" to ")
            self._maybe_holding = None
            if self._belongs(item, target):
                self.placed.append((item, target))
        elif verb == self.goal.kind:
            self.treated = rest.split(" with ")[0]
        elif (
            verb in ("heat", "cool") and rest.split(" with ")[0] == self.treated and self.goal.kind != "clean"
        ):
            self.treated = None  # each undoes the other

    def _belongs(self, item: str, target: str) -> bool:
        """Whether this object, put there, is a part of the goal: treated as asked, and a pair in one and the
        same receptacle."""
        treated = self.goal.kind not in _APPLIANCE or item == self.treated
        here = target == self.placed[0][1] if self.placed else _kind(target) == self.goal.place
        return treated and here and _kind(item) == self.goal.target

    def _where(self, kind: str, verb: str) -> list[str]:
        """Places from which the walkthrough takes (or uses) an object of this type."""
        place, places = "", []
        for command in self.walkthrough:
            if command.startswith("go to "):
                place = command.removeprefix("go to ")
            elif (
                command.startswith(verb)
                and _kind(command.removeprefix(verb).split(" from ")[0]) == kind
                and place
            ):
                places.append(place)
        return places

    def _search(self, commands: set[str], here: set[str]) -> str:
        done = {item for item, _ in self.placed}
        for command in sorted(commands):
            if command.startswith("take "):
                item = command.removeprefix("take ").split(" from ")[0]
                if _kind(item) == self.goal.target and item not in done:
                    return command
        return self._explore(commands, here, self._finds[len(self.placed) :] or self._finds)

    def _explore(self, commands: set[str], here: set[str], hints: Sequence[str]) -> str:
        if self.place in here and f"open {self.place}" in commands:
            return f"open {self.place}"
        if self.heading and f"go to {self.heading}" in commands and self.heading not in self.visited:
            return f"go to {self.heading}"
        known = [h for h in hints if f"go to {h}" in commands]
        unvisited = sorted(
            c for c in commands if c.startswith("go to ") and c.removeprefix("go to ") not in self.visited
        )
        if known and (self.rng.random() < self.hint or not unvisited):
            return f"go to {known[0]}"
        choices = unvisited or sorted(c for c in commands if c.startswith("go to "))
        command = choices[int(self.rng.integers(len(choices)))]
        self.heading = command.removeprefix("go to ")
        return command

    def _drop(self, admissible: Sequence[str]) -> str:
        for prefix in ("move ", "open "):
            for command in admissible:
                if command.startswith(prefix):
                    return command
        going = [c for c in admissible if c.startswith("go to ")]
        return going[int(self.rng.integers(len(going)))]

    def _treat(self, held: str, commands: set[str]) -> str:
        appliance = _APPLIANCE[self.goal.kind]
        for command in sorted(commands):
            if command.startswith(f"{self.goal.kind} {held} with {appliance}"):
                return command
        return self._nearest(appliance, commands)

    def _light(self, commands: set[str], here: set[str]) -> str:
        for command in sorted(commands):
            if command.startswith("use ") and _kind(command.removeprefix("use ")) == self.goal.place:
                return command
        return self._explore(commands, here, self._lamps)

    def _put(self, held: str, commands: set[str]) -> str:
        # The two objects of a pair must end in one and the same receptacle.
        only = self.placed[0][1] if self.placed else None
        for command in sorted(commands):
            if command.startswith(f"move {held} to "):
                target = command.rsplit(" to ", 1)[1]
                if target == only or (only is None and _kind(target) == self.goal.place):
                    return command
        if (
            self.place == only or (only is None and _kind(self.place) == self.goal.place)
        ) and f"open {self.place}" in commands:
            return f"open {self.place}"
        return (
            f"go to {only}"
            if only and f"go to {only}" in commands
            else self._nearest(self.goal.place, commands)
        )

    def _nearest(self, kind: str, commands: set[str]) -> str:
        """The lowest-numbered receptacle of this type (a deterministic choice is the easier one to clone)."""
        going = [c for c in commands if c.startswith("go to ") and _kind(c.removeprefix("go to ")) == kind]
        if not going:
            return self._drop(sorted(commands))
        fresh = [c for c in going if c.removeprefix("go to ") != self.place]
        return min(fresh or going, key=lambda c: int(c.rsplit(" ", 1)[1]))
