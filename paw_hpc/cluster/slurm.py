"""What a launcher asks of Slurm, and does with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paw_hpc.recipe.doors import JobState
from paw_hpc.run.fence import job_name as job_name
from paw_hpc.system.slurm import SlurmError, ask

_BATCH_STEP = "4294967291"  # SLURM_BATCH_SCRIPT of slurm.h, for versions that set SLURM_STEP_ID there
_ALIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "REQUEUED",
    "RESIZING",
    "SUSPENDED",
    "COMPLETING",
    "SIGNALING",
    "STAGE_OUT",
)


def available() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def job_id(environment: Mapping[str, str] = os.environ) -> int | None:
    """Of the allocation that this process runs in; None outside of one."""
    text = environment.get("SLURM_JOB_ID")
    return int(text) if text else None


def in_batch() -> bool:
    """This process runs in its job's batch script: not in a shell of salloc, nor in a step of srun."""
    return "SLURM_TASK_PID" in os.environ and os.environ.get("SLURM_STEP_ID", _BATCH_STEP) == _BATCH_STEP


def state_of(job: int) -> str:
    """JobState of a job that slurmctld still knows; several flags are joined by '+'. Empty: it does not know
    it."""
    try:
        shown = ask("scontrol", "show", "job", str(job), "--oneliner")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return ""
        raise
    return next(
        (word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState=")), ""
    )


def requeue(job: int) -> None:
    """Put a running job back into the queue; it ends within KillWait. Raises SlurmError."""
    ask("scontrol", "requeue", str(job))


def cancel(job: str) -> None:
    """Raises SlurmError."""
    ask("scancel", job)


def states(jobs: Sequence[str], *, retry: bool = True) -> dict[str, JobState]:
    """Of many jobs, by id (ARRAY_TASK for tasks of an array); those that neither squeue nor sacct knows are
    left out."""
    if not jobs:
        return {}
    found: dict[str, JobState] = {}
    known = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r", retry=retry)
    for line in known.splitlines():
        name, state, nodes, reason = line.strip().split("|", 3)
        if name in jobs:
            found[name] = JobState(state, nodes, "" if reason == "None" else reason, state in _ALIVE)
    missing = [job for job in jobs if job not in found]
    if missing:
        found |= _accounted(missing)
    return found


def _accounted(jobs: Sequence[str]) -> dict[str, JobState]:
    """From accounting, where there is any: jobs that ended long ago."""
    try:
        text = ask(
            "sacct",
            "--allocations",
            "--noheader",
            "--parsable2",
            "--format=JobID,State,NodeList",
            "--jobs",
            ",".join(jobs),
            retry=False,
        )
    except SlurmError:
        return {}
    rows = (line.split("|") for line in text.splitlines())
    return {
        name: JobState(state.split()[0], nodes, alive=state in _ALIVE)
        for name, state, nodes in rows
        if name in jobs
    }


@dataclass(frozen=True, slots=True)
class Partition:
    """What a partition offers."""

    name: str
    nodes: int
    gpus_per_node: int
    """Of its node with the most; 0: none, or Slurm does not say."""
    time_min: int | None
    """None: no limit."""


def partitions() -> list[Partition]:
    """All of them, the default one first. Raises SlurmError."""
    found: dict[str, Partition] = {}
    default = None
    for line in ask("sinfo", "--noheader", "--format=%P|%D|%G|%l").splitlines():
        name, nodes, gres, limit = line.strip().split("|")
        if name.endswith("*"):
            name = default = name[:-1]
        before = found.get(name, Partition(name, 0, 0, None))
        found[name] = Partition(
            name, before.nodes + int(nodes), max(before.gpus_per_node, _gpus(gres)), _minutes(limit)
        )
    return sorted(found.values(), key=lambda p: p.name != default)


def _gpus(gres: str) -> int:
    """Of `gpu:8`, `gpu:h100:8(S:0-1)`, `(null)`."""
    total = 0
    for item in gres.split(","):
        kind, _, rest = item.partition("(")[0].partition(":")
        if kind == "gpu":
            total += int(rest.rpartition(":")[2]) if rest.rpartition(":")[2].isdigit() else 1
    return total


def _minutes(limit: str) -> int | None:
    """Of Slurm's D-HH:MM:SS, HH:MM:SS, MM:SS or `infinite`."""
    if limit in ("infinite", "n/a"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    return int(days or 0) * 24 * 60 + parts[0] * 60 + parts[1] + (parts[2] > 0)
