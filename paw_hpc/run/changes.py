"""What was changed in a run on its way: recipe keys that an attempt let differ by name (`--change KEY`), and
from which update on.

    RUN/changes.json     [{"key": "optimizer.lr", "old": 1e-06, "new": 2e-06, "update": 10}, ...]

`update` is the first update that was computed with the new value; null between the wish and the start of the
attempt that it is for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paw_hpc.recipe import Recipe
from paw_hpc.recipe.resume import Difference, differences, known_verdict
from paw_hpc.system.errors import CheckpointError, DataError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import write_atomically
from paw_hpc.system.text import require_text

FILE = "changes.json"


@dataclass(frozen=True, slots=True)
class Change:
    """One key, once."""

    key: str
    old: Any
    new: Any
    update: int | None

    def __str__(self) -> str:
        when = "from its next start on" if self.update is None else f"from update {self.update} on"
        return f"{self.key}: {self.old} -> {self.new} {when}"


def read_changes(run: Path) -> list[Change]:
    """In the order in which they were made; none where nothing was. Raises DataError for a damaged file."""
    path = run / FILE
    if not path.exists():
        return []
    try:
        made = read_json(path.read_bytes())
        require_text(made)
        return checked(list[Change], made)
    except ValueError as error:
        raise DataError(f"{path}: not what paw wrote ({error}); restore it") from None


def permitted(run: Path, old: Recipe, new: Recipe, wanted: Collection[str]) -> list[Difference]:
    """What changes by name when a run goes on with another recipe.

    Args:
        wanted: keys of `--change`.

    Raises:
        CheckpointError: keys differ that may not, or that were not asked for, each with its values; or a wish
            for what cannot change.
    """
    for key in wanted:
        if known_verdict(key) != "by name" and key != "updates":
            why = {
                "free": "it needs no --change",
                "checksum": "the same weights are found without it",
                "never": "a run keeps it",
            }
            raise CheckpointError(
                f"--change {key}: {why.get(known_verdict(key) or '', 'no such key')}; see docs/resuming.md"
            )
    found = [each for each in differences(old, new) if each.verdict in ("by name", "never")]
    fixed = [each for each in found if each.verdict == "never"]
    asked = [each for each in found if each.verdict == "by name"]
    unasked = [each for each in asked if each.key not in wanted]
    if not fixed and not unasked:
        return asked
    how = "give another --run-dir, or --fresh to set it aside"
    if not fixed:
        how = (
            f"to go on with it, which is recorded: {' '.join(f'--change {each.key}' for each in asked)}; "
            f"or {how}"
        )
    raise CheckpointError(
        f"{run}: a run of another recipe is here ({', '.join(map(str, [*fixed, *unasked]))}); {how}"
    )


def record(run: Path, made: Sequence[Difference]) -> None:
    """Before the run's recipe is replaced."""
    if made:
        _write(run, [*read_changes(run), *(Change(each.key, each.old, each.new, None) for each in made)])


def begin(run: Path, start: int) -> None:
    """An attempt goes on after `start` updates: from there on all changes hold (one that began later was
    rolled back to here)."""
    changes = read_changes(run)
    begun = [
        replace(change, update=start if change.update is None else min(change.update, start))
        for change in changes
    ]
    if begun != changes:
        _write(run, begun)


def _write(run: Path, changes: Sequence[Change]) -> None:
    write_atomically(run / FILE, json.dumps([asdict(change) for change in changes], indent=1) + "\n")
