"""Launchers without a queue: the allocation that this shell is in, and this machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import submitit

from paw_hpc.cluster import attempts, job, slurm
from paw_hpc.cluster.submit import JOB, Launchable
from paw_hpc.system.errors import UserError

_GPUS = "CUDA_VISIBLE_DEVICES"


def script(launch: Launchable) -> str:
    """What runs, as a shell would be told it."""
    return f"#!/bin/bash\nexec {shlex.join([*JOB, str(launch.run)])}\n"


def in_allocation() -> None:
    """Raises UserError where this shell is in none."""
    if slurm.job_id() is None:
        raise UserError(
            "--executor allocation: this shell is in no allocation (SLURM_JOB_ID is not set); get one with "
            "salloc, or use --executor slurm"
        )


def run_in_allocation(launch: Launchable) -> int:
    """In this process. Returns the exit status."""
    return job.main(launch.run)


def run_locally(launch: Launchable) -> int:
    """As processes of this machine, with the time limit and the warning before it that a job of a cluster
    has. Returns the exit status.

    Raises:
        UserError: the job was killed before it could return one.
    """
    c, run = launch.recipe.cluster, launch.run
    # What submitit pickles is nobody else's to write or read, and goes with the folder.
    with tempfile.TemporaryDirectory(prefix="paw-launch-") as folder, _ctrl_c_for_the_job() as let_it_be_said:
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=c.time_min, signal_delay_s=c.warn_s)
        submitted = executor.submit(_supervise, str(run), os.environ.get(_GPUS))
        let_it_be_said()
        try:
            return submitted.result()
        except submitit.core.utils.FailedJobError:
            raise UserError(
                f"{run}: the job ended without a status (killed, or over cluster.time_min, {c.time_min} "
                f"minutes); see {attempts.folder(run)}"
            ) from None


def _supervise(run: str, gpus: str | None) -> int:
    """In submitit's process: the job, whose own words go to RUN/cluster."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if gpus is not None:  # submitit hides what it was not asked for; here all of this machine's count
        os.environ[_GPUS] = gpus
    else:
        os.environ.pop(_GPUS, None)
    log = attempts.folder(Path(run)) / f"job-{os.getpid()}.log"
    with open(log, "a", buffering=1, encoding="utf-8") as file, contextlib.redirect_stderr(file):
        return job.main(Path(run), local=True)


@contextlib.contextmanager
def _ctrl_c_for_the_job() -> Iterator[Callable[[], object]]:
    """The terminal sends it to all of its processes, and it is the supervisor's alone to obey: processes that
    are started inside ignore it (submitit's own would kill the supervisor a second later). Yields what makes
    this process say, from then on, that it was heard."""

    def say(*_: object) -> None:
        print("paw: asked to stop after this update; its checkpoint is being written", file=sys.stderr)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield lambda: signal.signal(signal.SIGINT, say)
    finally:
        signal.signal(signal.SIGINT, before)
