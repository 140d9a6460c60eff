"""What became of launched runs: `paw status`, `paw logs`, `paw cancel`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paw_hpc.cluster import attempts
from paw_hpc.cluster.submit import Submission, read_submission
from paw_hpc.recipe.doors import LAUNCHERS, JobState
from paw_hpc.run.metrics import RunDirectory, read_metrics
from paw_hpc.system.errors import UserError

POLL_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One row of `paw status`."""

    run: Path
    job: str
    state: str
    nodes: str
    played: int
    """Updates in the metrics."""
    saved: int
    """Updates in the newest checkpoint."""
    wanted: int
    attempts: int
    note: str
    """Why it waits, how its last attempt ended, or what to do."""


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs named, or below the folders named, that were launched or trained. Raises UserError for a path
    that is neither."""
    found = []
    for path in paths:
        inside = (
            [path]
            if (path / "recipe.yaml").is_file()
            else sorted(p.parent for p in path.glob("*/recipe.yaml"))
        )
        if not inside:
            raise UserError(
                f"{path}: no run here (a run has a recipe.yaml); name a run directory, or a folder of them"
            )
        found += inside
    return found


def status_of(runs: Sequence[Path], complain: Callable[[str], None] = _log.warning) -> list[RunStatus]:
    """Rows in the order of `runs`; every scheduler is asked once.

    Args:
        complain: gets one line where a scheduler does not answer; the rows are then of what the runs
            themselves wrote.
    """
    # with their plugins, one of which may have submitted them
    recipes = {run: RunDirectory(run).recipe() for run in runs}
    submissions = {run: read_submission(run) for run in runs}
    jobs: dict[str, list[str]] = {}
    for submission in submissions.values():
        if (
            submission is not None
            and submission.executor in LAUNCHERS.names()
            and LAUNCHERS.find(submission.executor).run is None
        ):
            jobs.setdefault(submission.executor, []).append(submission.job)
    states = {executor: _states(executor, of_it, complain) for executor, of_it in jobs.items()}
    return [_row(run, recipes[run].updates, submissions[run], states) for run in runs]


def _states(
    executor: str, jobs: Sequence[str], complain: Callable[[str], None]
) -> Mapping[str, JobState] | None:
    """None where the scheduler does not answer."""
    try:
        return LAUNCHERS.find(executor).states(jobs)
    except UserError as error:
        complain(f"{executor} does not answer ({error}); shown is what the runs themselves wrote")
        return None


def _row(
    run: Path, wanted: int, submission: Submission | None, states: Mapping[str, Mapping[str, JobState] | None]
) -> RunStatus:
    history = attempts.history(run)
    saved, played = attempts.saved_updates(run), len(read_metrics(run / "metrics.jsonl"))
    state = None
    if submission is None:
        shown = "not launched"
    elif submission.executor not in states:  # it has no queue, or nobody here knows it
        shown = submission.executor
    elif (answer := states[submission.executor]) is None:
        shown = "?"
    else:
        state = answer.get(submission.job)
        shown = state.state if state is not None else f"unknown to {submission.executor}"
    if state is not None and state.state == "FAILED" and not history:
        log = next(iter(sorted(attempts.folder(run).glob("job-*.log"))), None)
        note = f"see {log}" if log else f"it ended before it could write: is {run} visible on {state.nodes}?"
    elif state is not None and state.state == "PENDING":
        note = f"waits: {state.reason}" if state.reason else "waits"
    else:
        note = history[-1].how if history else ""
    if state is not None and state.state == "RUNNING" and history and history[-1].updates is None:
        note = "running"
    return RunStatus(
        run,
        submission.job if submission else "",
        shown,
        state.nodes if state else "",
        played,
        saved,
        wanted,
        len(history),
        note,
    )


def cancel(run: Path) -> str:
    """End the job of a run. Returns its id.

    Raises:
        UserError: it was not submitted to a scheduler.
    """
    submission = read_submission(run)
    RunDirectory(run).recipe()  # with its plugins, one of which may have submitted it
    launcher = (
        LAUNCHERS.find(submission.executor)
        if submission is not None and submission.executor in LAUNCHERS.names()
        else None
    )
    if submission is None or launcher is None or launcher.run is not None:
        raise UserError(f"{run}: no job of a scheduler belongs to it; a run in a terminal ends with Ctrl-C")
    launcher.cancel(submission.job)
    return submission.job


def logs_of(run: Path, role: str | None, attempt: int | None) -> list[Path]:
    """Log files of one attempt (default: the latest), by role and node.

    Raises:
        UserError: there is no such attempt or role, with those that there are.
    """
    numbers = sorted(int(p.name[8:]) for p in run.glob("attempt_*") if p.name[8:].isdigit())
    if not numbers:
        waiting = sorted(attempts.folder(run).glob("job-*.log"))
        if waiting and role is None:
            return waiting
        raise UserError(f"{run}: no attempt has begun; see `paw status {run}`")
    if attempt is not None and attempt not in numbers:
        raise UserError(f"--attempt {attempt}: {run} has attempts {', '.join(map(str, numbers))}")
    folder = run / f"attempt_{attempt or numbers[-1]}"
    files = sorted(folder.glob("*.log"))
    chosen = [p for p in files if role is None or p.name.split("-")[0].removesuffix(".log") == role]
    if not chosen:
        roles = sorted({p.name.split("-")[0].removesuffix(".log") for p in files})
        raise UserError(f"--role {role}: {folder} has logs of {', '.join(roles) or 'nobody yet'}")
    return chosen


def lines_of(run: Path, role: str | None, attempt: int | None, follow: bool) -> Iterator[str]:
    """Lines of the logs, each with its file's name; with `follow` new ones as they come, of later attempts,
    too, until interrupted."""
    positions: dict[Path, int] = {}
    while True:
        for path in logs_of(run, role, attempt):
            with open(path, encoding="utf-8", errors="replace") as file:
                file.seek(positions.get(path, 0))
                text = file.read()
                complete = text.rfind("\n") + 1 if follow else len(text)
                positions[path] = positions.get(path, 0) + len(text[:complete].encode())
            prefix = f"{path.parent.name}/{path.name}: "
            yield from (prefix + line for line in text[:complete].splitlines())
        if not follow:
            return
        time.sleep(POLL_S)
