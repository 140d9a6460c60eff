"""Engines that misbehave on demand, for the tests of the environment workers. The game is a mapping: {"name":
..., "load": how it loads}."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

Said = tuple[Any, tuple[str, ...], bool]


class FakeEngine:
    """Says in each observation which game it plays, how many steps were taken, in which process it was loaded
    and in which it runs."""

    def __init__(self, game: Mapping[str, Any]):
        self.name, self.how = game["name"], game.get("load", "well")
        self.steps, self.loader = 0, os.getpid()
        self.ballast = b"x" * int(game.get("ballast", 0))

    def reset(self) -> Said:
        if self.how == "slowly":
            time.sleep(0.8)
        elif self.how == "never":
            time.sleep(3600)
        elif self.how == "crash":
            os._exit(9)
        elif self.how == "raise":
            raise ValueError("line one of the reason\nno such receptacle")
        elif self.how == "nonsense":
            return object(), (), False  # what no episode process can say in JSON
        return self._said()

    def step(self, command: str) -> Said:
        self.steps += 1
        if command == "hang":
            time.sleep(3600)
        elif command == "die":
            os._exit(9)
        elif command == "raise":
            raise ValueError("the engine is confused")
        return self._said(won=command == "win")

    def _said(self, won: bool = False) -> Said:
        return f"  {self.name} {self.steps} {self.loader} {os.getpid()} \n", ("hang", "look", "win"), won
