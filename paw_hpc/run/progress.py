"""What a user sees while a run goes on: a bar on a terminal, one line per update elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SHOWN = (
    ("train/success", "success {:.2f}"),
    ("train/lambda", "lambda {:.2f}"),
    ("wm/loss", "wm loss {:.3f}"),
    ("time/update_s", "{:.1f} s"),
)


class Progress:
    """Shows the updates of one run. Use as a context manager.

    Args:
        name: of the run, in front of every line.
        total: updates of the whole run.
        start: updates that were done before this attempt.
        console: default standard error, so that a command's output stays clean.
    """

    def __init__(self, name: str, total: int, start: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._name, self._total = name, total
        self._bar: RichProgress | None = None
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("[dim]{task.fields[phase]}[/dim]"),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(*columns, console=self.console)
            self._task = self._bar.add_task(name, total=total, completed=start, numbers="", phase="")

    def update(self, update: int, metrics: Mapping[str, float]) -> None:
        """Update number `update` (from 0) is done and gave these metrics."""
        numbers = describe(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=update + 1, numbers=numbers)
        else:
            self.say(f"{self._name}  update {update + 1}/{self._total}  {numbers}")

    def phase(self, text: str) -> None:
        """What is going on now ('playing', 'training'); shown on a terminal only."""
        if self._bar is not None:
            self._bar.update(self._task, phase=text)

    def say(self, text: str) -> None:
        """One line that stays, above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(metrics: Mapping[str, float]) -> str:
    """The few numbers of an update that a line has room for; those that are absent are left out."""
    return "  ".join(form.format(metrics[name]) for name, form in _SHOWN if name in metrics)
