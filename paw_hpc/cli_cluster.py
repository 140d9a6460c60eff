"""`paw launch`, `plan`, `status`, `logs`, `cancel`: runs on a cluster."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from paw_hpc.errors import RecipeError, UserError

app = typer.Typer()
Arguments = Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipe files, then overrides by dotted path.")]
_OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")


@app.command()
def launch(
    arguments: Arguments,
    executor: Annotated[
        str, typer.Option(help="slurm: submit; allocation: in the one that this shell is in; local: as processes here. auto: allocation, else slurm.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script that would be submitted, and stop.")] = False,
    array: Annotated[bool, typer.Option("--array", help="Submit all runs as one array; runs that are complete are left out.")] = False,
    parallelism: Annotated[int | None, typer.Option("--parallelism", min=1, help="With --array: so many tasks at once.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Launch every recipe with each of these seeds: 0,1,2 or 0-4.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The run's directory. Default: runs/NAME-sSEED. One recipe and seed only.")
    ] = None,
) -> None:
    """Submit runs to Slurm (or run them here). A run that was launched before goes on where it stopped."""
    from paw_hpc.cluster import submit

    if executor not in ("auto", "slurm", "allocation", "local"):
        raise UserError(f"--executor {executor}: one of slurm, allocation, local, auto")
    if parallelism is not None and not array:
        raise UserError("--parallelism: it bounds the tasks of an array; add --array")
    launches = [_launchable(path, overrides, run_dir) for path, overrides in _recipes(arguments, seeds, run_dir)]
    unfinished = [one for one in launches if not one.finished]
    for one in launches:
        if one.finished:
            print(f"{one.run}: complete already", file=sys.stderr)
    if array:
        if unfinished:
            _array(unfinished, parallelism, dry_run)
        return
    chosen = submit.resolve_executor(executor) if not dry_run else "slurm"  # type: ignore[arg-type]
    for one in unfinished:
        if dry_run:
            print(submit.script(one), end="")
        elif chosen == "slurm":
            print(f"{one.run}: job {submit.submit(one).job}; paw status {_short(one.run)}")
        elif status := submit.run_here(one, chosen):
            raise typer.Exit(status)


@app.command()
def plan(arguments: Arguments) -> None:
    """What runs where, what it needs of a GPU's memory, and how long an update may take; refuses what cannot fit."""
    from paw_hpc.cluster.plan import make_plan, print_plan
    from paw_hpc.cluster.settings import load_for_cluster

    for path, overrides in _recipes(arguments, None, None):
        print_plan(make_plan(load_for_cluster(path, overrides)))


@app.command()
def status(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run directories, or folders of them. Default: runs.")] = None,
) -> None:
    """Launched runs: job, state, progress, attempts, and why the last one ended."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from paw_hpc.cluster.status import find_runs, status_of

    table = Table(box=None, pad_edge=False)
    for column in ("run", "job", "state", "nodes", "updates (saved)", "attempts", "note"):
        table.add_column(column, overflow="fold")
    for row in status_of(find_runs(runs or [Path("runs")])):
        progress = f"{row.played}/{row.wanted} ({row.saved})"
        table.add_row(*map(escape, (str(row.run), row.job, row.state, row.nodes, progress, str(row.attempts), row.note)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    role: Annotated[str | None, typer.Option(help="trainer, rollout or retriever. Default: all.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the latest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")] = False,
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


def _recipes(arguments: list[str], seeds: str | None, run_dir: Path | None) -> list[tuple[Path, list[str]]]:
    """(recipe file, overrides) of every run."""
    paths = [Path(item) for item in arguments if not _OVERRIDE.match(item)]
    overrides = [item for item in arguments if _OVERRIDE.match(item)]
    if not paths:
        raise RecipeError("no recipe file among the arguments; name at least one")
    numbers = _seeds(seeds) if seeds is not None else [None]
    if run_dir is not None and len(paths) * len(numbers) > 1:
        raise UserError("--run-dir: it names one run; leave it out for several recipes or seeds")
    return [(path, overrides + ([f"seed={seed}"] if seed is not None else [])) for path in paths for seed in numbers]


def _seeds(text: str) -> list[int | None]:
    found: list[int | None] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise UserError(f"--seeds {text}: numbers and ranges such as 0,1,2 or 0-4")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _launchable(path: Path, overrides: list[str], run_dir: Path | None):  # type: ignore[no-untyped-def]
    from paw_hpc.cluster.settings import load_for_cluster
    from paw_hpc.cluster.submit import Launchable

    recipe = load_for_cluster(path, overrides)
    return Launchable.of(recipe, run_dir or Path("runs") / f"{recipe.name}-s{recipe.seed}")


def _array(launches, parallelism: int | None, dry_run: bool) -> None:  # type: ignore[no-untyped-def]
    from paw_hpc.cluster import submit

    folder = submit.sweep_folder(launches)
    if dry_run:
        print(submit.array_script(launches, parallelism, folder), end="")
        return
    for one, submission in zip(launches, submit.submit_array(launches, parallelism, folder), strict=True):
        print(f"{one.run}: job {submission.job}")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
