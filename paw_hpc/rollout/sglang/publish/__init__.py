"""Weights from the policy to the engines that play the next episodes. Without servers nothing of this needs more than the core's own packages."""

from __future__ import annotations

from typing import Protocol


class Publisher(Protocol):
    """Makes the engines serve the policy's current weights."""

    def publish(self, version: int) -> None:
        """After this returns, every engine samples from weights `version`."""
        ...


class Versioned(Protocol):
    weight_version: int


class LivePublisher:
    """For the in-process engine, which reads the trainer's own tensors: only the version has to be told."""

    def __init__(self, engine: Versioned):
        self._engine = engine

    def publish(self, version: int) -> None:
        self._engine.weight_version = version
