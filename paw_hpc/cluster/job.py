"""What a launched job does: attempts of one run, until it is complete or there is no point in going on.

Inside a Slurm batch job an attempt that was stopped, or failed in a way that may not happen again, puts the
job back into the queue. Elsewhere (an interactive allocation, this machine) a stop is the user's wish, and a
failure is tried again here.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from paw_hpc.cluster import attempts, slurm
from paw_hpc.cluster.layout import lay_out
from paw_hpc.cluster.steps import LocalMachine, SlurmMachine
from paw_hpc.cluster.supervise import Ending, Result, Supervisor
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.errors import UserError
from paw_hpc.system.slurm import hostnames

_log = logging.getLogger("paw_hpc.cluster")
END_WITHIN_S = 120.0
"""How long a job that was put back into the queue waits for its own end."""


def main(run: Path, *, local: bool = False) -> int:
    """Run as what this process is: a batch job, an interactive allocation, or a plain machine. Returns the
    exit status.

    Args:
        local: a plain machine, also inside of an allocation.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s paw %(levelname)s: %(message)s", stream=sys.stderr, force=True
    )
    try:
        job = None if local else slurm.job_id()
        return _alone(run) if job is None else _in_allocation(run, job)
    except UserError as error:
        _log.error("%s", " ".join(str(error).split()))
        return 2


def _in_allocation(run: Path, job: int) -> int:
    recipe = RunDirectory(run).recipe()
    layout = lay_out(recipe)
    hosts = hostnames(os.environ["SLURM_JOB_NODELIST"])
    if len(hosts) < layout.nodes:
        raise UserError(
            f"cluster: the layout needs {layout.nodes} nodes, and job {job} has {len(hosts)} "
            f"({','.join(hosts)}); see paw plan"
        )
    container = recipe.cluster.container
    machine = SlurmMachine(
        job, hosts[: layout.nodes], recipe.cluster, mounts=[run.resolve(), Path.cwd()] if container else ()
    )
    _check_nodes(machine, run, container.python if container else sys.executable, layout.nodes)
    supervisor = Supervisor(run, machine, job, container.python if container else sys.executable)
    if not slurm.in_batch():
        return _repeat(supervisor, run)
    result = supervisor.attempt()
    again = result.ending is Ending.STOPPED or (result.ending is Ending.FAILED and _another(supervisor, run))
    return _back_into_the_queue(job, result) if again else result.status


def _alone(run: Path) -> int:
    recipe = RunDirectory(run).recipe()
    machine = LocalMachine.of(recipe.cluster, lay_out(recipe).nodes)
    return _repeat(Supervisor(run, machine, os.getpid()), run)


def _repeat(supervisor: Supervisor, run: Path) -> int:
    """Attempts in this very process. Raises NoProgress."""
    while True:
        result = supervisor.attempt()
        if result.ending is not Ending.FAILED or supervisor.asked is not None:
            return result.status
        _log.warning("trying again")


def _another(supervisor: Supervisor, run: Path) -> bool:
    """Whether a failed attempt may be followed by another; says so where it may not."""
    try:
        attempts.check_progress(run, supervisor.recipe.cluster.attempts)
    except attempts.NoProgress as error:
        _log.error("%s", error)
        return False
    return True


def _back_into_the_queue(job: int, result: Result) -> int:
    """Requeue this job, unless Slurm or the user is ending it already."""
    # by which Slurm ends this process, perhaps before scontrol has answered
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    state = slurm.state_of(job)
    if state != "RUNNING":
        _log.info("job %d is %s: it is not put back into the queue", job, state or "unknown to Slurm")
        return result.status
    _log.info("job %d goes back into the queue", job)
    slurm.requeue(job)
    # An exit status of its own would only confuse who reads it.
    return result.status if signal.sigtimedwait([signal.SIGTERM], END_WITHIN_S) is None else 0


def _check_nodes(machine: SlurmMachine, run: Path, python: str, nodes: int) -> None:
    """Raises UserError for nodes that do not see the run directory or the interpreter. Takes about a
    second."""
    test = f'test -d "{run.resolve()}" || echo "$(hostname): no {run.resolve()}"'
    if machine.settings.container is None:
        test += f'; test -x "{python}" || echo "$(hostname): no {python}"'
    command = [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--overlap",
        f"--nodelist={','.join(machine.hosts)}",
        "--job-name=check",
    ]
    done = subprocess.run([*command, "sh", "-c", test], capture_output=True, text=True, timeout=300)
    missing = done.stdout.strip().splitlines()
    if missing:
        raise UserError(
            f"{missing[0]} there ({len(missing)} such lines from {nodes} nodes); runs and environment must "
            "be on a file system that all nodes share:"
            " give another --run-dir, or install the environment there"
        )
    if done.returncode:
        raise UserError(f"srun cannot start on all nodes: {' '.join(done.stderr.split())[:400]}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
