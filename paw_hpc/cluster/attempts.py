"""The history of a launched run: one line per attempt when it begins and one when it ends, in
RUN/cluster/attempts.jsonl.

An attempt without a second line was cut off: its node died, or Slurm killed it.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paw_hpc.policy.checkpoint_folder import MANIFEST, checkpoints
from paw_hpc.system.errors import UserError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors
from paw_hpc.system.text import require_text

CUT_OFF = "cut off (killed by Slurm, or its node died)"


class NoProgress(UserError):
    """So many attempts ended without a new checkpoint that another one would be no different."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run."""

    number: int
    job: str
    nodes: tuple[str, ...]
    began: str
    updates_before: int
    """In the newest checkpoint when it began."""
    updates: int | None = None
    """In the newest checkpoint when it ended; None: it has not ended, or was cut off."""
    how: str = CUT_OFF
    """Why it ended."""


@dataclass(frozen=True, slots=True)
class _Launch:
    launched: str


@dataclass(frozen=True, slots=True)
class _Begin:
    attempt: int
    job: str
    nodes: tuple[str, ...]
    began: str
    updates_before: int


@dataclass(frozen=True, slots=True)
class _End:
    attempt: int
    ended: str
    updates: int
    how: str


_Line: Any = _Launch | _Begin | _End
"""What a line of the file may be."""


def saved_updates(run: Path) -> int:
    """Updates in the newest checkpoint that has its manifest (so that was written to its end)."""
    return max(
        (update for update, _, path in checkpoints(run / "checkpoints") if (path / MANIFEST).is_file()),
        default=0,
    )


def folder(run: Path) -> Path:
    """RUN/cluster: what the launcher writes."""
    return run / "cluster"


def begin(run: Path, number: int, job: str, nodes: list[str]) -> Attempt:
    """Record the beginning."""
    attempt = Attempt(number, job, tuple(nodes), _now(), saved_updates(run))
    _append(
        run,
        {
            "attempt": number,
            "job": job,
            "nodes": nodes,
            "began": attempt.began,
            "updates_before": attempt.updates_before,
        },
    )
    return attempt


def end(run: Path, number: int, how: str) -> None:
    """Record the end and its reason."""
    _append(run, {"attempt": number, "ended": _now(), "updates": saved_updates(run), "how": how})


def launched(run: Path) -> None:
    """A person has started the run (again): attempts before this do not count against it."""
    _append(run, {"launched": _now()})


def history(run: Path) -> list[Attempt]:
    """All attempts, oldest first."""
    return [attempt for attempt, _ in _read(run)]


def check_progress(run: Path, allowed: int) -> None:
    """Raises NoProgress where the last `allowed` attempts since the launch all ended with the updates that
    are saved now."""
    saved, stuck = saved_updates(run), []
    for attempt, since_launch in reversed(_read(run)):
        if not since_launch or attempt.updates_before != saved:
            break
        stuck.append(attempt)
    if len(stuck) >= allowed:
        reasons = "; ".join(
            f"attempt {attempt.number} on {','.join(attempt.nodes)}: {attempt.how}"
            for attempt in reversed(stuck[:allowed])
        )
        raise NoProgress(
            f"{run}: given up: {len(stuck)} attempts ended without a checkpoint after update {saved}: "
            f"{reasons}"
        )


def _read(run: Path) -> list[tuple[Attempt, bool]]:
    """(attempt, whether it began after the last launch)."""
    lines: list[_Launch | _Begin | _End] = []
    path = folder(run) / "attempts.jsonl"
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = read_json(text)
            require_text(line)
            lines.append(checked(_Line, line))
        except ValueError:
            continue  # torn by the end of a node
    last_launch = max((i for i, line in enumerate(lines) if isinstance(line, _Launch)), default=-1)
    ends = {line.attempt: line for line in lines if isinstance(line, _End)}
    found = []
    for index, line in enumerate(lines):
        if not isinstance(line, _Begin):
            continue
        attempt = Attempt(line.attempt, line.job, line.nodes, line.began, line.updates_before)
        if ended := ends.get(line.attempt):
            attempt = replace(attempt, updates=ended.updates, how=ended.how)
        found.append((attempt, index > last_launch))
    return found


def _append(run: Path, line: dict[str, Any]) -> None:
    path = folder(run) / "attempts.jsonl"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)  # less the umask
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
