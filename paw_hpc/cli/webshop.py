"""`paw data webshop ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paw_hpc.system.errors import UserError

app = typer.Typer(no_args_is_help=True, help="WebShop's catalogue and goals.")
SetOption = Annotated[
    str, typer.Option("--set", help="auto (the largest at hand), small, full or generated.")
]
GoalsOption = Annotated[str, typer.Option("--goals", help="synthetic or human.")]


@app.command()
def fetch(
    name: Annotated[
        str, typer.Option("--set", help="small (1,000 products) or full (1.18 million, about 5 GB).")
    ] = "small",
) -> None:
    """Download a set from where WebShop's own set-up takes it."""
    from paw_hpc.envs.webshop import data

    for path in data.fetch(_one_of("--set", name, "small", "full")):
        print(path)


@app.command()
def generate(
    products: Annotated[int, typer.Option(min=1, help="Products.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another catalogue.")] = 0,
) -> None:
    """Make a catalogue in WebShop's file formats, for machines that cannot get the real one."""
    from paw_hpc.envs.webshop import data

    print(data.generated_files(products, seed).products)


@app.command()
def verify(name: SetOption = "auto") -> None:
    """Read a whole set, build its index, and compare it with the release. Exit status 1 where it differs."""
    from paw_hpc.envs.webshop import data

    found = data.verify(_catalogue(name))
    print(
        f"{found.name}: {found.products:,} products, {found.synthetic_goals:,} synthetic and "
        f"{found.human_goals:,} human goals; {found.detail}"
    )
    if found.intact is False:
        raise typer.Exit(1)


@app.command("list")
def list_goals(
    split: Annotated[str, typer.Argument(help="test or train.")] = "test",
    name: SetOption = "auto",
    goals: GoalsOption = "synthetic",
) -> None:
    """List the goals of a split: task id and instruction."""
    from paw_hpc.envs.webshop.benchmark import Webshop
    from paw_hpc.recipe import EnvSection, WebshopSection

    section = WebshopSection(
        catalogue=_catalogue(name), goals=_one_of("--goals", goals, "synthetic", "human")
    )
    shop = Webshop(EnvSection(name="webshop", webshop=section))
    for task in shop.tasks(split):
        print(f"{task.task_id}\t{shop.goals[int(task.source)].instruction}")


@app.command()
def replay(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Transcripts of the original environment (JSON lines, .gz or plain)."
        ),
    ],
    name: SetOption = "small",
    goals: GoalsOption = "synthetic",
    tagger: Annotated[str, typer.Option(help="Tagger of the recording: textblob or spacy.")] = "textblob",
) -> None:
    """Play recorded episodes again and compare every field of every step. Exit status 1 unless all match."""
    from paw_hpc.envs.webshop import data
    from paw_hpc.envs.webshop.replay import replay as play_again
    from paw_hpc.envs.webshop.reward import make_tagger

    catalogue = data.find_catalogue(_catalogue(name))
    used, nouns = make_tagger(_one_of("--tagger", tagger, "textblob", "spacy"))
    report = play_again(file, catalogue, nouns, _one_of("--goals", goals, "synthetic", "human"))
    print(
        f"{report.episodes} episodes on {catalogue.about['set']} ({len(catalogue.products):,} products), "
        f"nouns by {used}"
    )
    for field, compared in report.compared.items():
        matched = report.matched[field]
        print(
            f"{field:12} {matched:>7} of {compared:>7}  {matched / compared:.2%}"
            if compared
            else f"{field:12} nothing to compare"
        )
    for difference in report.differences:
        print(difference)
    if not report.exact:
        raise typer.Exit(1)


def _catalogue(name: str) -> Any:
    return _one_of("--set", name, "auto", "small", "full", "generated")


def _one_of(option: str, value: str, *known: str) -> Any:
    if value not in known:
        raise UserError(f"{option} {value}: one of {', '.join(known)}")
    return value
