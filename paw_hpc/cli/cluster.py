"""`paw launch`, `plan`, `status`, `logs`, `cancel`: runs on a cluster."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from paw_hpc.cli.plain import Json, print_json
from paw_hpc.system.errors import RecipeError, UserError

app = typer.Typer()
Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE... [KEY=VALUE]...",
        help="Recipes or sweeps (files, or names of `paw recipes list`), then overrides.",
    ),
]
Only = Annotated[
    str | None, typer.Option("--only", help="Of a sweep, the runs whose names match: '*1.5b*-paw'.")
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        "--words",
        help="Of a sweep, other words than its file's: AXIS=WORD[,WORD], for example protocol=ours.",
    ),
]
Seeds = Annotated[
    str | None, typer.Option(help="Every recipe with each of these seeds: 0,1,2 or 0-4. A sweep has its own.")
]
Change = Annotated[
    list[str] | None,
    typer.Option(
        "--change",
        metavar="KEY",
        help="Of a run that goes on: let this key differ from now on, although it changes what is computed.",
    ),
]
OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A recipe, one run of a sweep, or either with a seed."""

    path: Path
    overrides: list[str]
    variant: tuple[str, ...] = ()

    def recipe(self):  # type: ignore[no-untyped-def]
        from paw_hpc.cluster.settings import load_for_cluster

        return load_for_cluster(self.path, self.overrides, variant=self.variant)


@app.command()
def launch(
    arguments: Arguments,
    executor: Annotated[
        str,
        typer.Option(
            help="slurm: submit; allocation: in the one that this shell is in; local: as processes here; "
            "or a launcher of a plugin. "
            "auto: allocation, else slurm."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script that would be submitted, and stop.")
    ] = False,
    array: Annotated[
        bool,
        typer.Option(
            "--array",
            help="Submit all runs as one array per kind of allocation; those that are complete or queued "
            "are left out.",
        ),
    ] = False,
    parallelism: Annotated[
        int | None,
        typer.Option("--parallelism", min=1, help="With --array: so many tasks of an array at once."),
    ] = None,
    seeds: Seeds = None,
    only: Only = None,
    words: Words = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", help="The run's directory. Default: runs/NAME-sSEED. One recipe and seed only."
        ),
    ] = None,
    change: Change = None,
) -> None:
    """Submit runs to Slurm (or run them here). A run that was launched before goes on where it stopped."""
    from paw_hpc.cluster import submit
    from paw_hpc.recipe.doors import LAUNCHERS

    if parallelism is not None and not array:
        raise UserError("--parallelism: it bounds the tasks of an array; add --array")
    launches = [
        _launchable(wanted, run_dir, change or ())
        for wanted in _wanted(arguments, seeds, only, words or (), run_dir)
    ]
    unfinished = [one for one in launches if not one.finished]
    for one in launches:
        if one.finished:
            print(f"{one.run}: complete already", file=sys.stderr)
    chosen = submit.resolve_executor(executor, queue=array or dry_run)
    launcher = LAUNCHERS.find(chosen)
    if not dry_run:
        launcher.ready()
    if array:
        if unfinished:
            _array(unfinished, chosen, parallelism, dry_run)
        return
    for one in unfinished:
        if dry_run:
            print(submit.script(one, chosen), end="")
        elif launcher.run is None:
            print(f"{one.run}: job {submit.submit(one, chosen).job}; paw status {_short(one.run)}")
        elif status := submit.run_here(one, chosen):
            raise typer.Exit(status)


@app.command()
def plan(
    arguments: Arguments, seeds: Seeds = None, only: Only = None, words: Words = None, as_json: Json = False
) -> None:
    """What runs where, what it needs of a GPU's memory, and how long an update may take; refuses what cannot
    fit. Of a sweep: a line per run."""
    from paw_hpc.cluster.footprint import footprint_data, footprint_of, print_footprint
    from paw_hpc.cluster.overview import overview_lines
    from paw_hpc.study.sweep import is_sweep, load_sweep

    planned = []
    paths, overrides = _split(arguments)
    for path in paths:
        if not is_sweep(path):
            footprint = footprint_of(_Wanted(path, overrides).recipe())
            planned.append(footprint_data(footprint, len(_seeds(seeds)) if seeds is not None else 1))
            if not as_json:
                print_footprint(footprint)
            continue
        sweep, count = load_sweep(path, words or ()), len(_seeds(seeds)) if seeds is not None else None
        footprints = [
            footprint_of(_Wanted(one.base, overrides, one.changes).recipe())
            for one in _chosen(path, sweep, only)
        ]
        planned += [footprint_data(one, count or len(sweep.seeds)) for one in footprints]
        if not as_json:
            print("\n".join(overview_lines(sweep.name, footprints, count or len(sweep.seeds))))
    if as_json:
        print_json({"runs": planned})


@app.command()
def status(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run directories, or folders of them. Default: runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Launched runs: job, state, progress, attempts, and why the last one ended."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from paw_hpc.cluster.status import find_runs, status_of

    table = Table(box=None, pad_edge=False)
    for column in ("run", "job", "state", "nodes", "updates (saved)", "attempts", "note"):
        table.add_column(column, overflow="fold")
    rows = status_of(
        find_runs(runs or [Path("runs")]), complain=lambda said: typer.echo(f"paw: {said}", err=True)
    )
    if as_json:
        return print_json({"runs": rows})
    for row in rows:
        progress = f"{row.played}/{row.wanted} ({row.saved})"
        table.add_row(
            *map(escape, (str(row.run), row.job, row.state, row.nodes, progress, str(row.attempts), row.note))
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    role: Annotated[str | None, typer.Option(help="trainer, rollout or retriever. Default: all.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the latest.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")
    ] = False,
) -> None:
    """What the processes of a run said, by role and node."""
    from paw_hpc.cluster.status import lines_of

    for line in lines_of(run, role, attempt, follow):
        print(line, flush=follow)


@app.command()
def cancel(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]) -> None:
    """End the job of a run; its checkpoints stay, and `paw launch` goes on with it."""
    from paw_hpc.cluster import status as runs

    print(f"{run}: job {runs.cancel(run)} is being ended")


def _split(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """(files, overrides)."""
    from paw_hpc.recipe.shipped import recipe_path

    paths = [recipe_path(Path(item)) for item in arguments if not OVERRIDE.match(item)]
    if not paths:
        raise RecipeError("no recipe file among the arguments; name at least one")
    return paths, [item for item in arguments if OVERRIDE.match(item)]


def _wanted(
    arguments: list[str], seeds: str | None, only: str | None, words: Sequence[str], run_dir: Path | None
) -> list[_Wanted]:
    """Every run that is asked for, each with its seed."""
    from paw_hpc.study.sweep import is_sweep, load_sweep

    paths, overrides = _split(arguments)
    given = _seeds(seeds) if seeds is not None else None
    found: list[_Wanted] = []
    for path in paths:
        if is_sweep(path):
            sweep = load_sweep(path, words)
            numbers: list[int] = given or list(sweep.seeds)
            found += [
                _Wanted(one.base, [*overrides, f"seed={seed}"], one.changes)
                for one in _chosen(path, sweep, only)
                for seed in numbers
            ]
        else:
            found += (
                [_Wanted(path, [*overrides, f"seed={seed}"]) for seed in given]
                if given
                else [_Wanted(path, overrides)]
            )
    if words and not any(map(is_sweep, paths)):
        raise UserError("--words: it changes the words of a sweep, and none is named")
    if run_dir is not None and len(found) > 1:
        raise UserError("--run-dir: it names one run; leave it out for several recipes or seeds")
    return found


def _chosen(path: Path, sweep, only: str | None):  # type: ignore[no-untyped-def]
    """The runs of a sweep that `--only` leaves."""
    chosen = [one for one in sweep.variants if only is None or fnmatch.fnmatchcase(one.name, only)]
    if not chosen:
        raise UserError(f"--only {only}: no run of {path} has such a name; `paw plan {path}` lists them")
    return chosen


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise UserError(f"--seeds {text}: numbers and ranges such as 0,1,2 or 0-4")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _launchable(wanted: _Wanted, run_dir: Path | None, change: Sequence[str] = ()):  # type: ignore[no-untyped-def]
    from paw_hpc.cluster.submit import Launchable

    recipe = wanted.recipe()
    return Launchable.of(recipe, run_dir or Path("runs") / f"{recipe.name}-s{recipe.seed}", change)


def _array(launches, executor: str, parallelism: int | None, dry_run: bool) -> None:  # type: ignore[no-untyped-def]
    from paw_hpc.cluster import submit
    from paw_hpc.recipe.doors import LAUNCHERS

    for tasks in submit.alike(launches) if not dry_run else ():
        LAUNCHERS.find(executor).check(tasks[0])  # of all, before the first is submitted
    if not dry_run:
        already = submit.queued(launches, executor)
        for run, job in already.items():
            print(f"{run}: in the queue already, job {job}", file=sys.stderr)
        launches = [one for one in launches if one.run not in already]
    for tasks in submit.alike(launches):
        folder = submit.sweep_folder(tasks)
        if dry_run:
            print(submit.array_script(tasks, parallelism, folder, executor), end="")
            for index, one in enumerate(tasks):
                print(f"task {index}: {_short(one.run)}", file=sys.stderr)
        else:
            for one, submission in zip(
                tasks, submit.submit_array(tasks, parallelism, folder, executor), strict=True
            ):
                print(f"{one.run}: job {submission.job}")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
