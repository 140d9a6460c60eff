"""Rooms in which new games are set: what stands in them, what lies where, and what tasks ask for.

The tables follow the official games' own frequencies (all 4,027 counted once), so that a generated kitchen
reads like an official one: about as many receptacles, the same kinds of objects in the same kinds of places.
A scene is a room with a number, as in ALFRED (kitchens 1-30, living rooms 201-230, bedrooms 301-330,
bathrooms 401-430); its furniture depends on the number alone. Some numbers are never used for training.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from paw_hpc.envs.alfworld.rooms import ROOMS
from paw_hpc.system.seeding import derive_seed

T = TypeVar("T")

SCENES_PER_ROOM = 30
UNSEEN = frozenset({9, 10, 29, 215, 219, 226, 308, 315, 325, 404, 424, 425})
"""Scene numbers of the unseen split alone (the official training games do not use them either)."""
SHARED_SPOT = 0.08
"""Chance that a receptacle stands where the previous one of its kind stands (both are then within reach from
there)."""


@dataclass(frozen=True)
class Receptacle:
    """A piece of furniture: its type, its PDDL name and the PDDL name of the spot from which it is
    reached."""

    kind: str
    name: str
    spot: str


class Dice:
    """Seeded draws that no machine and no Python version changes: all of them come from
    `random.Random.random`, whose sequence Python guarantees."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def integer(self, low: int, high: int) -> int:
        """low..high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[self.integer(0, len(items) - 1)]

    def weighted(self, weights: Mapping[str, int]) -> str:
        level = self._random() * sum(weights.values())
        for item, weight in weights.items():
            level -= weight
            if level < 0:
                return item
        return item


def scenes(room: str, unseen: bool) -> list[int]:
    """The scene numbers of a room, for the unseen split or for all others."""
    first = ROOMS[room].first_scene
    return [number for number in range(first, first + SCENES_PER_ROOM) if (number in UNSEEN) == unseen]


def has_objects(room: str, scene: int, kind: str, chance: float) -> bool:
    """Whether a scene has objects of a kind at all: a fixed share of the scenes."""
    return _level(room, scene, kind) < chance * SCENES_PER_ROOM


@functools.lru_cache(maxsize=256)
def furniture(room: str, scene: int) -> tuple[Receptacle, ...]:
    """The receptacles of a scene, a function of its number alone."""
    dice = Dice(derive_seed(0, "alfworld/scene", scene))
    placed: list[Receptacle] = []
    for kind, levels in ROOMS[room].receptacles.items():
        counts = [int(n) for n in levels.split()]
        for _ in range(counts[_level(room, scene, kind) * len(counts) // SCENES_PER_ROOM]):
            x, z = dice.integer(-18, 18), dice.integer(-18, 18)
            number = len(placed)
            # The running number keeps names and spots apart whatever the dice say.
            spot = f"loc_bar_{coordinate(x)}_bar_{coordinate(z)}_bar_{number % 4}_bar_{number + 15}"
            if placed and placed[-1].kind == kind and dice.chance(SHARED_SPOT):
                spot = placed[-1].spot
            placed.append(Receptacle(kind, _name(kind, x, number, z), spot))
    return tuple(placed)


def coordinate(value: int) -> str:
    """An integer as ALFRED's names spell it."""
    return f"_minus_{-value}" if value < 0 else str(value)


def thing_name(kind: str, x: int, y: int, z: int) -> str:
    """An ALFRED-like name: type and three coordinates (hundredths)."""
    return "_bar_".join(
        [
            kind,
            *(
                f"_{'minus' if v < 0 else 'plus'}_{abs(v) // 100:02d}_dot_{abs(v) % 100:02d}"
                for v in (x, y, z)
            ),
        ]
    )


def _name(kind: str, x: int, number: int, z: int) -> str:
    stem, basin = (kind.removesuffix("Basin"), f"_bar_{kind}") if kind.endswith("Basin") else (kind, "")
    return thing_name(stem, 25 * x, number, 25 * z) + basin


def _level(room: str, scene: int, kind: str) -> int:
    """The scene's rank, 0..29, in a shuffle of the room's scenes that belongs to this kind: every level is
    met equally often."""
    return _shuffled(room, kind)[scene - ROOMS[room].first_scene]


@functools.cache
def _shuffled(room: str, kind: str) -> list[int]:
    order = sorted(
        range(SCENES_PER_ROOM), key=lambda slot: derive_seed(0, f"alfworld/level/{room}/{kind}", slot)
    )
    return [order.index(slot) for slot in range(SCENES_PER_ROOM)]
