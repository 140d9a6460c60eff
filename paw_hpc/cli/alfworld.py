"""`paw data alfworld ...`"""

from __future__ import annotations

from typing import Annotated

import typer

from paw_hpc.system.errors import UserError

app = typer.Typer(no_args_is_help=True, help="ALFWorld's games.")


@app.command()
def fetch() -> None:
    """Download the official games into the cache."""
    from paw_hpc.envs.alfworld import games

    print(games.fetch())


@app.command()
def generate() -> None:
    """Make new games of all six task types, for machines that cannot get the official ones."""
    from paw_hpc.envs.alfworld import games

    for split in games.OFFICIAL_COUNTS:
        print(f"{split}: {len(games.tasks(split, 'generated'))} generated games")


@app.command()
def verify() -> None:
    """Compare the official games at hand with the release, by content. Exit status 1 where they differ."""
    from paw_hpc.envs.alfworld import games

    found = games.verify()
    for split in found:
        state = "as released" if split.intact else "NOT those of the release"
        print(f"{split.split}: {split.found} of {split.expected} games, {state}")
    if not all(split.intact for split in found):
        raise typer.Exit(1)


@app.command("list")
def list_games(
    split: Annotated[
        str, typer.Argument(help="train, valid_seen, valid_unseen or valid_train.")
    ] = "valid_seen",
    games_source: Annotated[str, typer.Option("--games", help="auto, official or generated.")] = "auto",
) -> None:
    """List the games of a split, one task id per line."""
    from paw_hpc.envs.alfworld import games

    if games_source not in ("auto", "official", "generated"):
        raise UserError(f"--games {games_source}: one of auto, official, generated")
    for task in games.tasks(split, games_source):  # type: ignore[arg-type]
        print(task.task_id)
