"""Which attempt may write a run: the latest. An attempt whose node was cut off from the network runs on while
its successor has already begun.

    RUN/.fence       {"attempt": 3, "by": "job 4711 on node7"}

Each start of a run is an attempt with a number and a folder of its own, and claims the fence. A writer checks
the fence before each write; one that no longer holds it ends without writing. Files that grow are replaced by
a new attempt (see run/metrics.py), so even a write that slips in between check and claim lands in a file that
nobody reads any more.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from paw_hpc.system.errors import CheckpointError, UserError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors, write_atomically


class _Fence(TypedDict):
    attempt: Annotated[int, Field(ge=0, lt=2**31)]
    by: NotRequired[str]


FILE = ".fence"
INHERITED = "PAW_ATTEMPT"
"""Environment variable `NUMBER:RUN`: the job that started this process has claimed the attempt for it."""
_held: dict[Path, int] = {}


class StaleAttempt(UserError):
    """A later attempt has taken over the run: this one must end, and write nothing."""


def claim(run: Path) -> int:
    """Begin a new attempt: its folder `attempt_N`, and the fence. Returns N, one more than any before."""
    with storage_errors(run):
        number = max(
            current(run).get("attempt", 0),
            *(int(p.name[8:]) for p in run.glob("attempt_*") if p.name[8:].isdigit()),
            0,
        )
        while True:
            number += 1
            try:
                (run / f"attempt_{number}").mkdir()
                break
            except FileExistsError:
                continue  # another start of this run was faster
    write_atomically(run / FILE, json.dumps({"attempt": number, "by": _self()}) + "\n")
    _held[run.resolve()] = number
    return number


def inherit(run: Path) -> int | None:
    """The attempt that the surrounding job has claimed for this run, or None.

    Raises:
        StaleAttempt: it is no longer the latest.
    """
    number, _, path = os.environ.get(INHERITED, "").partition(":")
    if not number or Path(path).resolve() != run.resolve():
        return None
    _held[run.resolve()] = int(number)
    check(run)
    return int(number)


def variable(run: Path, attempt: int) -> dict[str, str]:
    """What a job gives its processes, so that they `inherit`."""
    return {INHERITED: f"{attempt}:{run.resolve()}"}


def check(path: Path) -> None:
    """Before anything in `path` (a run, or something inside) is written by this process. Does nothing for
    runs that it did not open.

    Raises:
        StaleAttempt: a later attempt has taken over.
    """
    resolved = path.resolve()
    for run, number in _held.items():
        if resolved.is_relative_to(run):
            now = current(run)
            if now.get("attempt", number) != number:
                raise StaleAttempt(
                    f"{run}: attempt {now['attempt']} ({now.get('by')}) has taken over; attempt {number} "
                    "ends and writes nothing"
                )


def current(run: Path) -> dict[str, Any]:
    """What the fence says; empty where there is none. Raises CheckpointError where it cannot be read."""
    try:
        return dict(checked(_Fence, read_json((run / FILE).read_bytes())))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise CheckpointError(
            f"{run / FILE}: not what paw wrote; remove it when nobody writes this run"
        ) from None


def job_name(job: int, environment: Mapping[str, str] = os.environ) -> str:
    """As squeue and sacct show it: ARRAY_TASK for the task of an array that this process belongs to (its own
    id is another number), else the id."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task and environment.get("SLURM_JOB_ID") == str(job) else str(job)


def _self() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"{f'job {job_name(int(job))}' if job else f'process {os.getpid()}'} on {socket.gethostname()}"
