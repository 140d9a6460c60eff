"""What every fuzz target has in common: how inputs are tried, what counts as a fault, and how a target shows
that it can find one.

The rule: an input gives a result, or is refused in one line (`UserError`, or what stands for it where a
server or an environment is at fault, which a run survives). Everything else is a fault: another exception, an
answer that takes more than its share of processor time or memory.
"""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.strategies import SearchStrategy, lists

from paw_hpc.system.errors import UserError

SECONDS = 3.0
"""Processor time that one input may take."""
MEGABYTES = 256
"""By which the process may grow over one input."""
LONGEST_LINE = 4000
ORDINARY, CONTROL = 1000, 4000
"""Inputs of each target in the ordinary suite, and at most until a planted fault is found, which takes a few.
Which inputs these are also depends on the modules that are imported: hypothesis tries the constants that it
finds in them."""
AT_ONCE = 5
"""Inputs that hypothesis draws together: what it does around each draw costs more than most inputs."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TooMuch(BaseException):
    """An input took more than its share. No `except Exception` of the code under test may swallow it."""


@dataclass(frozen=True)
class Target:
    """One place where text or data comes in from outside.

    Args:
        inputs: hypothesis's strategy.
        check: takes an input; raises where the rule is broken.
        plant: breaks what is checked.
        finds: what `check` then raises.
        examples: in the ordinary suite.
    """

    name: str
    inputs: SearchStrategy[Any]
    check: Callable[[Any], None]
    plant: Callable[[pytest.MonkeyPatch], None]
    finds: type[BaseException] | tuple[type[BaseException], ...] = Exception
    examples: int = ORDINARY

    def holds(self) -> None:
        """The same inputs at every call."""
        self._run(
            settings(max_examples=self.examples // AT_ONCE, derandomize=True, database=None, print_blob=False)
        )

    def search(self, examples: int, database: Path) -> None:
        """Inputs that no earlier call has tried; those that failed are kept in a folder and come first at the
        next call."""
        self._run(
            settings(max_examples=examples // AT_ONCE, database=DirectoryBasedExampleDatabase(database))
        )

    def finds_the_planted_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plant(monkeypatch)
        with pytest.raises(self.finds):
            self._run(
                settings(
                    max_examples=CONTROL // AT_ONCE, derandomize=True, database=None, phases=[Phase.generate]
                )
            )

    def _run(self, chosen: settings) -> None:
        every = settings(
            chosen, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
        )

        def tried(found: list[Any]) -> None:
            for each in found:
                self.check(each)

        # what derandomized inputs are derived from
        tried.__name__ = tried.__qualname__ = self.name.replace(" ", "_")
        every(given(lists(self.inputs, min_size=AT_ONCE, max_size=AT_ONCE))(tried))()


def judged(
    call: Callable[..., Any],
    *arguments: Any,
    refused: type[Exception] | tuple[type[Exception], ...] = UserError,
    seconds: float = SECONDS,
) -> Any:
    """What the call returns, or the error with which it refuses its input.

    Raises:
        AssertionError: the refusal is no line that a person can read.
        TooMuch: time or memory, twice: what threads of other tests in this process took meanwhile counts as
            well, but not every time.
    """
    try:
        return _judged(call, arguments, refused, seconds)
    except TooMuch:
        gc.collect()
    try:
        return _judged(call, arguments, refused, seconds)
    except TooMuch as error:
        # Anew: it came in the middle of anything, at places without a line number too, which pytest cannot
        # show.
        raise TooMuch(*error.args) from None


def _judged(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    refused: type[Exception] | tuple[type[Exception], ...],
    seconds: float,
) -> Any:
    with _bounded(seconds):
        try:
            return call(*arguments)
        except refused as error:
            said = str(error)
            if isinstance(error, UserError):
                assert said and said.isprintable() and len(said) <= LONGEST_LINE, (
                    f"no line that a person can read: {said[:200]!a}"
                )
            return error


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooMuch(f"more than {seconds:g} s of processor time")

    # By the process's own time, which other work on the machine does not use up; pytest-timeout has the other
    # clock.
    earlier, before = signal.signal(signal.SIGVTALRM, late), _memory()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)
    if (grown := _memory(peak=True) - before) > MEGABYTES << 20:
        raise TooMuch(f"{grown >> 20} MiB of memory")


def _memory(peak: bool = False) -> int:
    """Bytes that this process holds, or held at most since it was last asked what it holds."""
    if not _CLEAR.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if not peak:
        _CLEAR.write_text("5")
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def broken_on(function: Callable[..., Any], sign: Callable[..., bool]) -> Callable[..., Any]:
    """The function with a fault planted in it: a KeyError where its arguments have the sign."""

    def broken(*arguments: Any, **named: Any) -> Any:
        if sign(*arguments, **named):
            raise KeyError("planted")
        return function(*arguments, **named)

    return broken
