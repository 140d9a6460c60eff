"""`paw view`, `paw episodes`: looking at kept episodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from paw_hpc.system.errors import UserError

app = typer.Typer()


@app.command()
def view(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run directories; episodes of the same task stand beside each other."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the page with its data into this one file (HTML) instead of serving it."),
    ] = None,
    update: Annotated[
        list[int] | None,
        typer.Option("--update", help="With --out: only these updates. Default: all that are kept."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """A local page of what the agent did, what it expected, and what it was taught."""
    from paw_hpc.study.view.library import Library

    library = Library(runs)
    if out is not None:
        from paw_hpc.study.view.single import write_page

        print(write_page(library, out, update))
        return
    if update:
        raise UserError("--update: the served page has all updates; it chooses what --out writes")
    from paw_hpc.study.view.server import serve

    serve(library, browser=browser)


@app.command()
def episodes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    update: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of this update, and of evaluations after so many. Default: the newest file."
        ),
    ] = None,
    group: Annotated[int | None, typer.Option(min=0, help="Only this group; its steps are shown.")] = None,
    member: Annotated[int | None, typer.Option(min=0, help="Only this member of each group.")] = None,
    outcome: Annotated[str | None, typer.Option(help="success or failure.")] = None,
    task_type: Annotated[str | None, typer.Option("--type", help="Only this task type.")] = None,
    grep: Annotated[
        str | None, typer.Option(help="Steps with this text in response or next observation.")
    ] = None,
    selected: Annotated[bool, typer.Option("--selected", help="Only episodes with a selected step.")] = False,
    invalid: Annotated[bool, typer.Option("--invalid", help="Only episodes with an invalid action.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="So many episodes of a file at most.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per episode and line, with its steps.")
    ] = False,
) -> None:
    """Kept episodes as text: a line each, and with --group or --grep their steps. Exit status 1: nothing is
    like that."""
    from rich.console import Console

    from paw_hpc.study.view import terminal
    from paw_hpc.study.view.library import Library

    library = Library([run])
    files = library.files(next(iter(library.runs)))
    chosen = (
        files[-1:]
        if update is None and grep is None
        else [file for file in files if update in (None, file.file.update)]
    )
    if not chosen:
        kept = ", ".join(str(file.file.update) for file in files)
        raise UserError(f"--update {update}: nothing is kept of it in {run}; there are {kept}")
    wanted = terminal.Wanted(group, member, outcome, task_type, grep, selected, invalid)
    shown = 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    for file in chosen:
        if as_json:
            for line in terminal.as_json(file, wanted, limit):
                print(line)
                shown += 1
        else:
            shown += terminal.show(file, wanted, limit=limit, steps=group is not None, console=console)
    if not shown:
        groups = sorted({e.group for file in chosen for e in file.episodes})
        print(
            f"paw: no kept episode is like that; kept groups: {', '.join(map(str, groups))}", file=sys.stderr
        )
        raise typer.Exit(1)
