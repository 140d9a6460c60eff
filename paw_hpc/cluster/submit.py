"""From recipes to submitted jobs, through submitit: the batch script that a dry run shows is the one that is submitted, and is kept with the run."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import submitit

from paw_hpc.cluster import attempts, slurm
from paw_hpc.cluster.job import Job, main
from paw_hpc.cluster.layout import ClusterLayout
from paw_hpc.cluster.models import architecture_for
from paw_hpc.cluster.plan import make_plan
from paw_hpc.recipe import Recipe, dump_recipe
from paw_hpc.recipe.doors import LAUNCHERS
from paw_hpc.recipe.resume import Difference
from paw_hpc.run import changes
from paw_hpc.run.metrics import RunDirectory, revision
from paw_hpc.system.errors import RecipeError, UserError
from paw_hpc.system.storage import storage_errors, write_atomically

EXECUTORS = ("auto", "slurm", "allocation", "local")
"""What `paw launch --executor` takes beside the names of launchers that plugins bring."""
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED", "COMPLETING", "SIGNALING", "STAGE_OUT")
UNLIMITED_TIMEOUTS = 10**6
"""submitit would stop requeuing after this many; the job counts attempts without progress instead (see attempts.py)."""


@dataclass(frozen=True, slots=True)
class Submission:
    """RUN/cluster/submitted.json: what was submitted last for a run."""

    executor: str
    job: str
    """Slurm's id, ARRAY_TASK for a task of an array."""
    script: str


@dataclass(frozen=True, slots=True)
class Launchable:
    """A recipe and where it runs, checked."""

    recipe: Recipe
    run: Path
    layout: ClusterLayout
    changed: tuple[Difference, ...] = ()
    """What is different from now on, in a run that goes on."""

    @classmethod
    def of(cls, recipe: Recipe, run: Path, change: Collection[str] = ()) -> Launchable:
        """Raises RecipeError for a layout that does not divide or fit, CheckpointError where another run is in the way.

        Args:
            change: keys that may differ from the run's recipe although they change what an update computes.
        """
        plan = make_plan(recipe)
        directory = RunDirectory(run)
        changed = changes.permitted(run, directory.recipe(), recipe, change) if directory.exists else ()
        return cls(recipe, run.absolute(), plan.layout, tuple(changed))

    @property
    def finished(self) -> bool:
        """Its last checkpoint is that of its last update."""
        return attempts.saved_updates(self.run) >= self.recipe.updates


def resolve_executor(executor: str) -> str:
    """Inside an allocation `auto` means that allocation, else Slurm. Raises UserError for an unknown name, and where there is no Slurm."""
    if executor not in (*EXECUTORS, *LAUNCHERS.names()):
        raise UserError(f"--executor {executor}: one of {', '.join((*EXECUTORS, *LAUNCHERS.names()))}; others are brought by a recipe's `plugins`")
    if executor == "local" or executor in LAUNCHERS.names():
        return executor
    if executor in ("auto", "allocation") and slurm.job_id() is not None:
        return "allocation"
    if executor == "allocation":
        raise UserError(
            "--executor allocation: this shell is in no allocation (SLURM_JOB_ID is not set); get one with salloc, or use --executor slurm"
        )
    if not slurm.available():
        raise UserError("no Slurm here (sbatch is not found): run this on a login node of the cluster, or use --executor local on this machine")
    return "slurm"


def script(launch: Launchable, executor: str = "slurm") -> str:
    """The batch script of one run: exactly what `submit` gives to sbatch, or `submit_to` to another scheduler."""
    if executor in LAUNCHERS.names():
        return LAUNCHERS.find(executor).script(launch)
    return _text(_executor([launch], attempts.folder(launch.run)))


def array_script(launches: Sequence[Launchable], parallelism: int | None, folder: Path) -> str:
    """The batch script of several runs as one array."""
    executor = _executor(launches, folder, parallelism)
    _core(executor).parameters["map_count"] = len(launches)
    return _text(executor)


def submit(launch: Launchable) -> Submission:
    """One run as one job. Raises SlurmError, CheckpointError."""
    check_partition(launch)
    prepare(launch)
    folder = attempts.folder(launch.run)
    text = script(launch)
    job = _submitted(lambda: _executor([launch], folder).submit(Job(str(launch.run))))
    return _record(launch, Submission("slurm", job.job_id, text))


def submit_to(executor: str, launch: Launchable) -> Submission:
    """One run as one job of a scheduler that a plugin knows. Raises RecipeError for a layout of several nodes; UserError."""
    if launch.layout.nodes > 1:
        raise RecipeError(f"cluster: the layout has {launch.layout.nodes} nodes; --executor {executor} runs jobs of one, only Slurm's have more")
    prepare(launch)
    file = attempts.folder(launch.run) / "submission.sh"
    text = script(launch, executor)
    write_atomically(file, text)
    return _record(launch, Submission(executor, LAUNCHERS.find(executor).submit(launch, file), text))


def submit_array(launches: Sequence[Launchable], parallelism: int | None, folder: Path) -> list[Submission]:
    """Several runs as one array, at most `parallelism` of them at once. Raises RecipeError where they ask for different allocations."""
    check_partition(launches[0])
    for launch in launches:
        prepare(launch)
    text = array_script(launches, parallelism, folder)
    executor = _executor(launches, folder, parallelism)
    jobs = _submitted(lambda: executor.map_array(Job.__call__, [Job(str(launch.run)) for launch in launches]))
    return [_record(launch, Submission("slurm", job.job_id, text)) for launch, job in zip(launches, jobs, strict=True)]


def alike(launches: Sequence[Launchable]) -> list[list[Launchable]]:
    """In groups that ask for the same allocation, each of which can be one array, in the order of their first runs."""
    groups: dict[str, list[Launchable]] = {}
    for launch in launches:
        groups.setdefault(repr(_allocation(launch)), []).append(launch)
    return list(groups.values())


def queued(launches: Sequence[Launchable]) -> dict[Path, str]:
    """run -> job, of the runs whose last submitted job waits or runs. Asks Slurm, where anything was submitted."""
    jobs = {launch.run: found.job for launch in launches if (found := read_submission(launch.run)) is not None and found.executor == "slurm"}
    states = slurm.states(list(jobs.values()))
    return {run: job for run, job in jobs.items() if job in states and states[job].state in _ALIVE}


def run_here(launch: Launchable, executor: Literal["allocation", "local"]) -> int:
    """In this process: in the allocation that it is in, or as processes of this machine. Returns the exit status."""
    prepare(launch)
    job = slurm.job_id()
    _record(launch, Submission("slurm" if slurm.in_batch() else executor, slurm.job_name(job) if job else "", ""))
    if executor == "allocation":
        return main(launch.run)
    local = submitit.AutoExecutor(folder=attempts.folder(launch.run), cluster="local")
    local.update_parameters(timeout_min=launch.recipe.cluster.time_min, stderr_to_stdout=True)
    attempts.take_status(launch.run)  # of an earlier job
    followed = _follow(local.submit(Job(str(launch.run))))
    status = attempts.take_status(launch.run)
    return (followed or 1) if status is None else status


def prepare(launch: Launchable) -> None:
    """The run directory, before the job: resolved recipe, code revision, command; so that it explains itself even if the job never starts."""
    run, recipe = launch.run, launch.recipe
    architecture_for(recipe)  # a model or tokenizer that is still to be made ends here, not in the job
    with storage_errors(run):
        attempts.folder(run).mkdir(parents=True, exist_ok=True)
    changes.record(run, launch.changed)
    for name, text in (
        ("recipe.yaml", dump_recipe(recipe)),
        ("revision.txt", revision()),
        ("command.txt", shlex.join(["paw", *sys.argv[1:]]) + "\n"),
    ):
        write_atomically(run / name, text)
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":  # a job that Slurm started again is no new wish of its user's
        attempts.launched(run)


def read_submission(run: Path) -> Submission | None:
    """What was submitted last for a run; None: nothing."""
    path = attempts.folder(run) / "submitted.json"
    return Submission(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def check_partition(launch: Launchable) -> None:
    """Raises RecipeError for what Slurm would refuse, or accept and never start."""
    c = launch.recipe.cluster
    known = {p.name: p for p in slurm.partitions()}
    if c.partition is not None and (unknown := [name for name in c.partition.split(",") if name not in known]):
        raise RecipeError(f"cluster.partition: this cluster has no '{unknown[0]}'; it has {', '.join(known)}")
    chosen = [known[name] for name in c.partition.split(",")] if c.partition else list(known.values())[:1]
    for limit, wanted, has in (
        ("gpus_per_node", c.gpus_per_node, max(p.gpus_per_node for p in chosen)),
        ("trainer_nodes", launch.layout.nodes, max(p.nodes for p in chosen)),
    ):
        if wanted > has:
            what = f"{wanted} GPUs per node" if limit == "gpus_per_node" else f"the layout's {wanted} nodes"
            raise RecipeError(f"cluster.{limit}: {what}, but partition {'/'.join(p.name for p in chosen)} has {has}; see `paw plan` and sinfo")
    limits = [p.time_min for p in chosen]
    if None not in limits and c.time_min > max(cast(list[int], limits)):
        longest = max(cast(list[int], limits))
        raise RecipeError(
            f"cluster.time_min: {c.time_min} minutes, but partition {chosen[0].name} allows {longest}; runs that take longer requeue themselves"
        )


def _executor(launches: Sequence[Launchable], folder: Path, parallelism: int | None = None) -> submitit.AutoExecutor:
    for launch in launches:
        if _allocation(launch) != _allocation(launches[0]):
            raise RecipeError(f"--array: {launch.run.name} asks for another allocation than {launches[0].run.name}; tasks of an array are alike")
    parameters = _parameters(launches[0]) | {"name": _name(launches)}
    # exec: the batch script becomes the supervisor, so that Slurm's signal to the batch script reaches it.
    with _without_slurm():
        executor = submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_python=f"exec {shlex.quote(sys.executable)}", slurm_max_num_timeout=UNLIMITED_TIMEOUTS
        )
    extra = dict(parameters.pop("slurm_additional_parameters"))
    extra["output"] = f"{folder}/job-{'%A_%a' if len(launches) > 1 or parallelism else '%j'}.log"
    executor.update_parameters(**parameters, slurm_additional_parameters=extra)
    if parallelism is not None:
        executor.update_parameters(slurm_array_parallelism=parallelism)
    return executor


def _name(launches: Sequence[Launchable]) -> str:
    """Of a job in squeue: the run's, and of an array what its runs' names begin with, and their number."""
    names = [_parameters(launch)["name"] for launch in launches]
    if len(names) == 1:
        return names[0]
    words = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*(name.split("-") for name in names), strict=False))
    return "-".join([*(each[0] for each in words), str(len(names)), "runs"])


def _allocation(launch: Launchable) -> dict[str, Any]:
    """All that a job asks for: what tasks of an array have in common."""
    return {**_parameters(launch), "name": ""}


def _parameters(launch: Launchable) -> dict[str, Any]:
    """submitit's parameters: all that depends on the recipe's `cluster` section."""
    c, layout = launch.recipe.cluster, launch.layout
    extra: dict[str, Any] = {"signal": f"B:USR2@{c.warn_s}", "requeue": True, "open-mode": "append"}
    if c.mem_gb_per_node is not None:
        extra["mem"] = f"{c.mem_gb_per_node}G"
    # A warning that comes before the supervisor listens would end the job: ignored, it costs at most the way back to the last checkpoint.
    setup = ["set -e", "trap '' USR2", *c.setup, *(f"export {name}={shlex.quote(value)}" for name, value in sorted(c.environment.items()))]
    named = {"partition": c.partition, "account": c.account, "qos": c.qos, "constraint": c.constraint, "exclude": c.exclude}
    return {
        "name": f"paw-{launch.recipe.name}-s{launch.recipe.seed}",
        "nodes": layout.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": c.cpus_per_node,
        "timeout_min": c.time_min,
        "stderr_to_stdout": True,
        "slurm_use_srun": False,  # the supervisor starts the steps
        "slurm_setup": setup,
        "slurm_additional_parameters": extra | c.sbatch,
        **({"gpus_per_node": c.gpus_per_node} if c.gpus_per_node else {}),
        **({"slurm_exclusive": True} if c.exclusive else {}),
        **{f"slurm_{name}": value for name, value in named.items() if value is not None},
    }


def _without_slurm() -> AbstractContextManager[object]:
    """submitit wants to see srun before it makes a script; a dry run is as useful on a laptop."""
    return nullcontext() if shutil.which("srun") else mock.patch.object(submitit.SlurmExecutor, "affinity", return_value=1)


def _core(executor: submitit.AutoExecutor) -> Any:
    return executor._executor


def _text(executor: submitit.AutoExecutor) -> str:
    core = _core(executor)
    return cast(str, core._make_submission_file_text(core._submitit_command_str, ""))


def _submitted(submit: Any) -> Any:
    try:
        return submit()
    except submitit.core.utils.FailedJobError as error:
        said = " ".join(str(error).split())
        raise slurm.SlurmError(
            f"sbatch refused the job: {said.rpartition('sbatch: error:')[2].strip() or said}; see `paw launch --dry-run`"
        ) from None


def _record(launch: Launchable, submission: Submission) -> Submission:
    folder = attempts.folder(launch.run)
    folder.mkdir(parents=True, exist_ok=True)
    if submission.script:
        write_atomically(folder / "submission.sh", submission.script)
    write_atomically(folder / "submitted.json", json.dumps(asdict(submission)) + "\n")
    return submission


def _follow(job: submitit.Job[Any]) -> int:
    """Wait for a local job; a Ctrl-C asks it to stop and save."""
    process = cast(Any, job)._process
    while True:
        try:
            return cast(int, process.wait())
        except KeyboardInterrupt:
            print("paw: asked to stop after this update; its checkpoint is being written", file=sys.stderr)


def sweep_folder(launches: Sequence[Launchable]) -> Path:
    """Where an array's own files are: beside its runs."""
    names = sorted(launch.run.name for launch in launches)
    return launches[0].run.parent / f".sweep-{names[0]}-and-{len(names) - 1}-more"
