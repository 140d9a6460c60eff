"""What an engine is made from, and what it hands to the loop: who plays, how new weights get there, how it
ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from paw_hpc.policy.backend import Policy
from paw_hpc.recipe import Recipe
from paw_hpc.rollout.engines.base import Engine
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.players import Players


class Publisher(Protocol):
    """Makes the engines serve the policy's current weights."""

    def publish(self, version: int) -> None:
        """After this returns, every engine samples from weights `version`. Every process of the trainer calls
        it."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made from (`paw_hpc.recipe.doors.Engine.make`). Every process of the trainer makes
    one."""

    recipe: Recipe
    policy: Policy
    runner: EventLoop
    """It serves environments and engine for the whole run."""
    workspace: Path | None
    """Where an engine may log and exchange weights; None: a temporary folder of its own."""


def _nothing() -> None:
    pass


def _no_metrics() -> dict[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Playing:
    """An engine at work."""

    engine: Engine | None
    """None in a process that does not play."""
    publisher: Publisher
    players: Players = field(default_factory=Players)
    ahead: bool = False
    """Whether the next update's episodes may be played here while the trainer works (`rollout.staleness`)."""
    collected: Callable[[], dict[str, float]] = _no_metrics
    """Called when an update's episodes are complete; what the engine says of itself since the last time,
    under public names."""
    close: Callable[[], None] = _nothing
    servers: Any = None
    """Whatever stands behind the engine, for who knows it (of `sglang`:
    `paw_hpc.rollout.sglang.serving.Serving`)."""
