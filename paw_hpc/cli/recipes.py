"""`paw recipes`: what comes with the package, and the schema by which editors check it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    no_args_is_help=True, help="The recipes, sweeps and batch files that come with the package."
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name that `paw recipes list` shows, for example alfworld/reference."
    ),
]


@app.command("list")
def list_recipes() -> None:
    """All of them: name, kind, and what it is. Commands take these names in place of a file."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from paw_hpc.recipe.shipped import shipped_files

    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "about"):
        table.add_column(column, overflow="fold")
    for file in shipped_files():
        table.add_row(file.name, file.kind, escape(file.about))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def show(
    name: Name,
    resolved: Annotated[
        bool,
        typer.Option("--resolved", help="A recipe with its bases and defaults: every key that a run has."),
    ] = False,
) -> None:
    """Print a file as it is, or every key of the recipe that it stands for."""
    from paw_hpc.recipe import dump_recipe, load_recipe
    from paw_hpc.recipe.shipped import find_shipped
    from paw_hpc.system.errors import UserError

    file = find_shipped(name)
    if resolved and file.kind != "recipe":
        raise UserError(f"--resolved: {file.name} is a {file.kind}; only a recipe stands for one run")
    print(dump_recipe(load_recipe(file.path)) if resolved else file.path.read_text(encoding="utf-8"), end="")


@app.command("copy")
def copy_recipe(
    name: Name,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it is missing.")],
    replace: Annotated[bool, typer.Option("--replace", help="Write over files that differ.")] = False,
) -> None:
    """Copy a file into a folder to change it there, with every file that it builds on. Prints the copy's
    path."""
    from paw_hpc.recipe.shipped import copy, find_shipped

    print(copy(find_shipped(name), directory, replace=replace)[0])


@app.command()
def keys(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only keys with every word in their path or sentence."),
    ] = None,
) -> None:
    """Every key of a recipe: what it takes, its default, and what it means."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from paw_hpc.recipe.keys import key_rows
    from paw_hpc.system.errors import UserError

    rows = [
        row
        for row in key_rows()
        if all(word.lower() in f"{row.path} {row.about}".lower() for word in words or ())
    ]
    if not rows:
        raise UserError(f"no key of a recipe has {' and '.join(words or ())} in its path or its sentence")
    table = Table(box=None, pad_edge=False)
    for column in ("key", "values", "default", "about"):
        table.add_column(column, overflow="fold", ratio=4 if column == "about" else None)
    for row in rows:
        table.add_row(
            *(escape(text.replace("`", "")) for text in (row.path, row.values, row.default, row.about))
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def schema(
    of: Annotated[Literal["recipe", "sweep"], typer.Option("--of", help="What the schema is of.")] = "recipe",
) -> None:
    """Print a JSON schema; a YAML file whose first line is `# yaml-language-server: $schema=FILE` is checked
    by it in most editors."""
    from paw_hpc.recipe.schema import recipe_schema, sweep_schema

    print(json.dumps(recipe_schema() if of == "recipe" else sweep_schema(), indent=2, ensure_ascii=False))
