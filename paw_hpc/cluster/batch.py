"""Slurm as a launcher: the batch script, from the template `job.sh.j2`, and what is refused before Slurm is
asked."""

from __future__ import annotations

import functools
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from jinja2 import Environment, StrictUndefined, Template

from paw_hpc.cluster import attempts, slurm
from paw_hpc.cluster.submit import JOB, Launchable
from paw_hpc.recipe.doors import JobState
from paw_hpc.system.errors import RecipeError, UserError
from paw_hpc.system.slurm import SlurmError, ask

_TEMPLATE = Path(__file__).resolve().parent / "job.sh.j2"


def ready() -> None:
    """Raises UserError where no job can be submitted."""
    if not slurm.available():
        raise UserError(
            "no Slurm here (sbatch is not found): run this on a login node of the cluster, or use "
            "--executor local on this machine"
        )


def script(launch: Launchable) -> str:
    """The batch script of one run."""
    return _text([launch], {"output": f"{attempts.folder(launch.run)}/job-%j.log"})


def array_script(launches: Sequence[Launchable], parallelism: int | None, folder: Path) -> str:
    """The batch script of several runs as one array: its task N is that of the Nth.

    Args:
        folder: of the tasks' logs.
    """
    count = len(launches)
    array = f"0-{count - 1}" if parallelism is None else f"0-{count - 1}%{parallelism}"
    return _text(launches, {"output": f"{folder}/job-%A_%a.log", "array": array})


def submit(_: Launchable, file: Path) -> str:
    """The job's id. Raises SlurmError with what sbatch said."""
    try:
        # Asked once: where the answer was lost the job may be there, and sbatch itself waits for a controller
        # that is away.
        return ask("sbatch", "--parsable", str(file), retry=False).strip().partition(";")[0]
    except SlurmError as error:
        raise SlurmError(
            f"sbatch refused the job: {error.last_words()}; see `paw launch --dry-run`"
        ) from None


def states(jobs: Iterable[str]) -> Mapping[str, JobState]:
    """Of the jobs that Slurm knows, asked once; of none where there is no Slurm. Raises SlurmError: the last
    of what it said."""
    try:
        return slurm.states(list(jobs), retry=False) if slurm.available() else {}
    except SlurmError as error:
        raise SlurmError(error.last_words()) from None


def check(launch: Launchable) -> None:
    """Raises RecipeError for what Slurm would refuse, or accept and never start."""
    c = launch.recipe.cluster
    known = {p.name: p for p in slurm.partitions()}
    if c.partition is not None and (
        unknown := [name for name in c.partition.split(",") if name not in known]
    ):
        raise RecipeError(f"cluster.partition: this cluster has no '{unknown[0]}'; it has {', '.join(known)}")
    chosen = [known[name] for name in c.partition.split(",")] if c.partition else list(known.values())[:1]
    for limit, wanted, has in (
        ("gpus_per_node", c.gpus_per_node, max(p.gpus_per_node for p in chosen)),
        ("trainer_nodes", launch.layout.nodes, max(p.nodes for p in chosen)),
    ):
        if wanted > has:
            what = f"{wanted} GPUs per node" if limit == "gpus_per_node" else f"the layout's {wanted} nodes"
            raise RecipeError(
                f"cluster.{limit}: {what}, but partition {'/'.join(p.name for p in chosen)} has {has}; see "
                "`paw plan` and sinfo"
            )
    limits = [p.time_min for p in chosen]
    if None not in limits and c.time_min > max(cast(list[int], limits)):
        longest = max(cast(list[int], limits))
        raise RecipeError(
            f"cluster.time_min: {c.time_min} minutes, but partition {chosen[0].name} allows {longest}; "
            "runs that take longer requeue themselves"
        )


def _text(launches: Sequence[Launchable], own: Mapping[str, str]) -> str:
    c = launches[0].recipe.cluster
    return _template().render(
        flags=[
            _flag(name, value)
            for name, value in sorted(
                {**_flags(launches[0]), "job-name": _name(launches), **c.sbatch, **own}.items()
            )
        ],
        setup=c.setup,
        environment=sorted(c.environment.items()),
        command=shlex.join(JOB),
        runs=[str(launch.run) for launch in launches],
    )


@functools.cache
def _template() -> Template:
    made = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters["quoted"] = shlex.quote
    return made.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _flags(launch: Launchable) -> dict[str, str | int]:
    """sbatch's flags that follow from the recipe's `cluster` section; those that it does not set are left to
    the cluster."""
    c = launch.recipe.cluster
    wanted = {
        "partition": c.partition,
        "account": c.account,
        "qos": c.qos,
        "constraint": c.constraint,
        "exclude": c.exclude,
        "exclusive": c.exclusive or None,
        "mem": None if c.mem_gb_per_node is None else f"{c.mem_gb_per_node}G",
        "gpus-per-node": c.gpus_per_node or None,
        "nodes": launch.layout.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": c.cpus_per_node,
        "time": c.time_min,
        "signal": f"B:USR2@{c.warn_s}",
        "requeue": True,
        "open-mode": "append",  # a requeued job would begin its log anew
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _flag(name: str, value: str | int) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag}={shlex.quote(str(value))}"


def _name(launches: Sequence[Launchable]) -> str:
    """Of a job in squeue: the run's, and of an array what its runs' names begin with, and their number."""
    names = [f"paw-{launch.recipe.name}-s{launch.recipe.seed}" for launch in launches]
    if len(names) == 1:
        return names[0]
    words = itertools.takewhile(
        lambda each: len(set(each)) == 1, zip(*(name.split("-") for name in names), strict=False)
    )
    return "-".join([*(each[0] for each in words), str(len(names)), "runs"])
