"""A stop that is asked for by a signal and obeyed between two updates."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class EvaluationLeft(Exception):
    """An evaluation was given up, because its run has been asked to stop."""


class StopRequest:
    """While active, SIGTERM, SIGUSR1 (Slurm's warning before the time limit) and Ctrl-C ask for a stop
    instead of killing the process.

    A second Ctrl-C is an ordinary KeyboardInterrupt: work since the last checkpoint is then lost, as the user
    wants it now.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that asked, for example "SIGTERM"; None: nobody asked."""
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.name = signal.Signals(number).name
