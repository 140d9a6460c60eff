"""A launcher from outside: PBS. Its scripts ask for one node; `qsub`, `qstat` and `qdel` must be on the
PATH."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from paw_hpc.cluster.submit import JOB, Launchable
from paw_hpc.recipe.doors import LAUNCHERS, JobState, Launcher
from paw_hpc.system.errors import UserError

STATES = {"Q": "queued", "H": "held", "W": "waiting", "R": "running", "E": "ending", "F": "finished"}


def script(launch: Launchable) -> str:
    c, run = launch.recipe.cluster, launch.run
    gpus = f":ngpus={c.gpus_per_node}" if c.gpus_per_node else ""
    memory = f":mem={c.mem_gb_per_node}gb" if c.mem_gb_per_node else ""
    lines = [
        "#!/bin/bash",
        f"#PBS -N paw-{launch.recipe.name}"[:21],
        f"#PBS -l select=1:ncpus={c.cpus_per_node}{gpus}{memory}",
        f"#PBS -l walltime={c.time_min // 60:02d}:{c.time_min % 60:02d}:00",
        "#PBS -j oe",
        f"#PBS -o {run}/cluster/",
        *([f"#PBS -q {c.partition}"] if c.partition else []),
        *([f"#PBS -A {c.account}"] if c.account else []),
        "set -e",
        *c.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(c.environment.items())),
        f"cd {shlex.quote(str(Path.cwd()))}",
        # exec: PBS's signal before the end reaches the process that saves.
        f"exec {shlex.join([*JOB, str(run)])}",
    ]
    return "\n".join(lines) + "\n"


def submit(launch: Launchable, file: Path) -> str:
    return _ask("qsub", str(file)).strip()


def states(jobs: Iterable[str]) -> Mapping[str, JobState]:
    found = {}
    for job in jobs:
        try:
            facts = _ask("qstat", "-x", "-f", job)
        except UserError:  # forgotten long ago
            continue
        letters = [
            line.split("=")[1].strip() for line in facts.splitlines() if line.strip().startswith("job_state")
        ]
        if letters:
            found[job] = JobState(STATES.get(letters[0], letters[0]), alive=letters[0] != "F")
    return found


def cancel(job: str) -> None:
    _ask("qdel", job)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise UserError(
            f"no PBS here ({command[0]} is not found): run this on a login node of the cluster"
        ) from None
    if done.returncode:
        raise UserError(f"{command[0]}: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    return done.stdout


LAUNCHERS.add("pbs", Launcher(script=script, submit=submit, states=states, cancel=cancel))
