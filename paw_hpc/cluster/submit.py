"""From recipes to submitted jobs, by any launcher: the script that a dry run shows is the one that is
submitted, and is kept with the run."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paw_hpc.cluster import attempts, slurm
from paw_hpc.cluster.footprint import footprint_of
from paw_hpc.cluster.layout import ClusterLayout
from paw_hpc.cluster.models import architecture_for
from paw_hpc.recipe import Recipe, dump_recipe
from paw_hpc.recipe.doors import LAUNCHERS, Launcher
from paw_hpc.recipe.resume import Difference
from paw_hpc.run import changes
from paw_hpc.run.metrics import RunDirectory, revision
from paw_hpc.system.errors import DataError, RecipeError, UserError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors, write_atomically

JOB = (sys.executable, "-u", "-m", "paw_hpc.cluster.job")
"""What a job runs, before the run's directory: it begins or continues the run, and ends with its status."""
_ASKED_LATER = {
    "trainer_nodes",
    "rollout_nodes",
    "retriever_node",
    "trainer_gpus",
    "processes_per_node",
    "servers_per_node",
    "gpu",
    "attempts",
    "interface",
    "srun",
    "container",
}
"""Keys of the `cluster` section that the job reads, not the scheduler."""


@dataclass(frozen=True, slots=True)
class Submission:
    """RUN/cluster/submitted.json: what was submitted last for a run."""

    executor: str
    """The launcher's name."""
    job: str
    """The scheduler's id; of Slurm, ARRAY_TASK for a task of an array."""
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
        """Raises RecipeError for a layout that does not divide or fit, CheckpointError where another run is
        in the way.

        Args:
            change: keys that may differ from the run's recipe although they change what an update computes.
        """
        footprint = footprint_of(recipe)
        directory = RunDirectory(run)
        changed = changes.permitted(run, directory.recipe(), recipe, change) if directory.exists else ()
        return cls(recipe, run.absolute(), footprint.layout, tuple(changed))

    @property
    def finished(self) -> bool:
        """Its last checkpoint is that of its last update."""
        return attempts.saved_updates(self.run) >= self.recipe.updates


def resolve_executor(executor: str, *, queue: bool = False) -> str:
    """The launcher that is meant: `auto` is the allocation that this shell is in, else Slurm.

    Args:
        queue: it is to take jobs for later: `auto` is then Slurm, wherever this shell is.

    Raises:
        UserError: there is none of this name.
    """
    if executor == "auto":
        return "allocation" if slurm.job_id() is not None and not queue else "slurm"
    if executor not in LAUNCHERS.names():
        raise UserError(
            f"--executor {executor}: one of auto, {', '.join(LAUNCHERS.names())}; others are brought by a "
            "recipe's `plugins`"
        )
    return executor


def script(launch: Launchable, executor: str = "slurm") -> str:
    """The script of one run's job: exactly what `submit` hands in."""
    return LAUNCHERS.find(executor).script(launch)


def array_script(
    launches: Sequence[Launchable], parallelism: int | None, folder: Path, executor: str = "slurm"
) -> str:
    """The script of several runs as one array; of a single one, its own.

    Raises:
        RecipeError: they ask for different allocations.
        UserError: this launcher has no arrays.
    """
    launcher = LAUNCHERS.find(executor)
    if launcher.array_script is None:
        raise UserError(f"--array: {executor} has no arrays; leave out --executor {executor}")
    for launch in launches:
        if _allocation(launch) != _allocation(launches[0]):
            raise RecipeError(
                f"--array: {launch.run.name} asks for another allocation than {launches[0].run.name}; "
                "tasks of an array are alike"
            )
    return (
        launcher.array_script(launches, parallelism, folder)
        if len(launches) > 1
        else launcher.script(launches[0])
    )


def submit(launch: Launchable, executor: str = "slurm") -> Submission:
    """One run as one job. Raises RecipeError for what could never run, CheckpointError, and UserError with
    what the scheduler said."""
    launcher = _launcher(executor, launch)
    prepare(launch)
    text = launcher.script(launch)
    return _record(
        launch, Submission(executor, launcher.submit(launch, _keep(text, attempts.folder(launch.run))), text)
    )


def submit_array(
    launches: Sequence[Launchable], parallelism: int | None, folder: Path, executor: str = "slurm"
) -> list[Submission]:
    """Several runs as one array, at most `parallelism` of them at once; a single one as a job of its own.
    Raises like `array_script`, `submit`."""
    if len(launches) == 1:
        return [submit(launches[0], executor)]
    text = array_script(launches, parallelism, folder, executor)
    launcher = _launcher(executor, launches[0])
    for launch in launches:
        prepare(launch)
    job = launcher.submit(launches[0], _keep(text, folder))
    return [
        _record(launch, Submission(executor, f"{job}_{task}", text)) for task, launch in enumerate(launches)
    ]


def alike(launches: Sequence[Launchable]) -> list[list[Launchable]]:
    """In groups that ask for the same allocation, each of which can be one array, in the order of their first
    runs."""
    groups: dict[str, list[Launchable]] = {}
    for launch in launches:
        groups.setdefault(repr(_allocation(launch)), []).append(launch)
    return list(groups.values())


def queued(launches: Sequence[Launchable], executor: str = "slurm") -> dict[Path, str]:
    """run -> job, of the runs whose last submitted job waits or runs. Asks the scheduler, where anything was
    submitted."""
    jobs = {
        launch.run: found.job
        for launch in launches
        if (found := read_submission(launch.run)) is not None and found.executor == executor
    }
    states = LAUNCHERS.find(executor).states(jobs.values()) if jobs else {}
    return {run: job for run, job in jobs.items() if job in states and states[job].alive}


def run_here(launch: Launchable, executor: str) -> int:
    """With a launcher that has no queue: now, to the end. Returns the exit status."""
    launcher = _launcher(executor, launch)
    assert launcher.run is not None
    prepare(launch)
    job = slurm.job_id()
    # A batch script of somebody's own (slurm/train.sbatch) is a job of Slurm's, which can be asked for and
    # ended like any other.
    _record(
        launch, Submission("slurm" if slurm.in_batch() else executor, slurm.job_name(job) if job else "", "")
    )
    return launcher.run(launch)


def prepare(launch: Launchable) -> None:
    """The run directory, before the job: resolved recipe, code revision, command; so that it explains itself
    even if the job never starts."""
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
    # a job that Slurm started again is no new wish of its user's
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        attempts.launched(run)


def read_submission(run: Path) -> Submission | None:
    """What was submitted last for a run; None: nothing."""
    path = attempts.folder(run) / "submitted.json"
    try:
        return checked(Submission, read_json(path.read_bytes())) if path.exists() else None
    except ValueError as error:
        raise DataError(
            f"{path}: not what paw wrote ({error}); remove it when no job of this run waits or runs"
        ) from None


def _launcher(executor: str, launch: Launchable) -> Launcher:
    """Raises RecipeError where it could never run what is launched."""
    launcher = LAUNCHERS.find(executor)
    if launch.layout.nodes > 1 and not launcher.several_nodes:
        raise RecipeError(
            f"cluster: the layout has {launch.layout.nodes} nodes; --executor {executor} runs jobs of one, "
            "only Slurm's have more"
        )
    launcher.check(launch)
    return launcher


def _allocation(launch: Launchable) -> tuple[int, dict[str, object]]:
    """All that a job asks for: what tasks of an array have in common."""
    return launch.layout.nodes, launch.recipe.cluster.model_dump(exclude=_ASKED_LATER)


def _keep(text: str, folder: Path) -> Path:
    """A script as the file that is handed in."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "submission.sh", text)
    return folder / "submission.sh"


def _record(launch: Launchable, submission: Submission) -> Submission:
    folder = attempts.folder(launch.run)
    if submission.script:
        _keep(submission.script, folder)
    write_atomically(folder / "submitted.json", json.dumps(asdict(submission)) + "\n")
    return submission


def sweep_folder(launches: Sequence[Launchable]) -> Path:
    """Where an array's own files are: beside its runs."""
    names = sorted(launch.run.name for launch in launches)
    return launches[0].run.parent / f".sweep-{names[0]}-and-{len(names) - 1}-more"
