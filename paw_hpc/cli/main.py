"""The `paw` command: parses arguments and calls one function per command. Heavy imports stay inside commands,
so `paw --help` answers at once."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from paw_hpc import __version__
from paw_hpc.cli.alfworld import app as alfworld
from paw_hpc.cli.cluster import OVERRIDE, Change
from paw_hpc.cli.cluster import app as cluster
from paw_hpc.cli.episodes import app as episodes
from paw_hpc.cli.model import add_model
from paw_hpc.cli.plain import Json, print_json
from paw_hpc.cli.prompt import add_prompt
from paw_hpc.cli.recipes import app as recipes
from paw_hpc.cli.search import app as search
from paw_hpc.cli.webshop import app as webshop
from paw_hpc.system.errors import UserError
from paw_hpc.system.extras import explained

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Policy and world-model co-training of language agents.",
)
data = typer.Typer(no_args_is_help=True, help="Get, make and check the benchmarks' data, and a model.")
app.add_typer(cluster)  # launch, plan, status, logs, cancel
app.add_typer(episodes)  # view, episodes
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
data.add_typer(alfworld, name="alfworld")
data.add_typer(webshop, name="webshop")
data.add_typer(search, name="search")
add_model(data)
for benchmark, commands in (("alfworld", alfworld), ("webshop", webshop), ("search", search)):
    add_prompt(commands, benchmark)

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), or a name of `paw recipes list`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides by dotted path, for example optimizer.lr=2e-6."),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run is kept. Default: runs/NAME-sSEED.")
]


def main() -> None:
    """Entry point. A UserError, and a file that may not be used, become one line on standard error and exit
    status 2; Ctrl-C ends with 130."""
    # lastResort writes warnings to whatever standard error is at that moment, which is the progress bar's
    # while it runs.
    if logging.lastResort is not None:
        logging.getLogger().addHandler(logging.lastResort)
    try:
        app()
    except UserError as error:
        _refuse(error)
    except ModuleNotFoundError as error:
        told = explained(error)
        if told is None:
            raise
        _refuse(told)
    except PermissionError as error:
        if error.filename is None:
            raise
        _refuse(
            UserError(
                f"{error.filename}: you may not use this (permission denied); ask its owner, or name "
                "another place"
            )
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(error: UserError) -> NoReturn:
    print(f"paw: {error}", file=sys.stderr)
    sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"paw_hpc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Resume: there must be a run to go on with. Fresh: set an existing run aside. Default: go "
            "on where there is one.",
            show_default=False,
        ),
    ] = None,
    change: Change = None,
) -> None:
    """Train a policy: the loop of the paper, from a recipe."""
    from paw_hpc.recipe import load_recipe
    from paw_hpc.recipe.shipped import recipe_path

    loaded = load_recipe(recipe_path(recipe), overrides or ())
    directory = run_dir or Path("runs") / f"{loaded.name}-s{loaded.seed}"

    from paw_hpc.system import distributed, processes

    processes.end_with_parent()
    count = loaded.processes
    if count > 1 and distributed.Process.of_environment().processes == 1:
        raise typer.Exit(processes.run_here(count, [sys.executable, "-m", "paw_hpc.cli.main", *sys.argv[1:]]))

    from paw_hpc import loop

    loop.train(
        loaded, directory, command=shlex.join(["paw", *sys.argv[1:]]), resume=resume, change=change or ()
    )


@app.command("eval")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL|RECIPE",
            help="A run directory (its latest checkpoint), a model folder or hub name, or a recipe file: "
            "the policy that its runs begin with.",
        ),
    ],
    overrides: Overrides = None,
    *,
    panel: Annotated[
        str,
        typer.Option(
            help="A panel of the benchmark (valid_seen, test, nq, ...), or PANEL:N@SEED for a seeded part."
        ),
    ],
    repeats: Annotated[int, typer.Option(min=1, help="Episodes per game.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sampling temperature; default: the recipe's eval.temperature."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Environment processes; default: the recipe's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the result; default: the run directory.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Judge by this protocol's prompt, parsing, limits and temperature: reference or ours. "
            "Default: the target's own recipe."
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Whose protocol: alfworld, webshop or search. Default: the target's, else the one with "
            "this panel."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Play a whole fixed panel; success with its interval, per task type."""
    if temperature is not None and not math.isfinite(temperature):
        raise UserError(f"--temperature {temperature}: a finite number, at least 0")
    from paw_hpc.evaluation import panel as evaluation
    from paw_hpc.study.report import print_evaluation
    from paw_hpc.study.report.data import evaluation_data

    found = evaluation.evaluate_path(
        target,
        panel=panel,
        repeats=repeats,
        temperature=temperature,
        workers=workers,
        out=out,
        protocol=protocol,
        benchmark=benchmark,
        overrides=overrides or (),
    )
    if as_json:
        print_json(evaluation_data(found))
    else:
        print_evaluation(found)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or folders of them, and files of outcomes of other trainers "
            "(docs/environments.md); arms are compared with the "
            "vanilla one of their set-up, else with the first.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report. Default: RUN/report of one run, ./report of several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tables beside the paper's and learning curves, from run directories alone."""
    from paw_hpc.study.report import print_report, write_report

    written = write_report(runs, out)
    if as_json:
        print_json(
            {"markdown": written.markdown, "html": written.html, "figures": written.figures} | written.data
        )
    else:
        print_report(written)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face folder, or a Megatron checkpoint, a directory of such, or a run.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder for the other of the two.")],
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, help="Layout that a Megatron checkpoint is meant for: it must fit the model."),
    ] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Its pipeline stages.")] = 1,
    virtual_pipeline: Annotated[int | None, typer.Option(min=1, help="Its model chunks per stage.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer folder, where SOURCE has none.")] = None,
) -> None:
    """Hugging Face <-> Megatron checkpoints, in one process or (under torchrun or srun) in the processes of
    the layout."""
    from paw_hpc.policy.megatron import conversion
    from paw_hpc.system.distributed import Process

    done = conversion.convert(
        source, target, conversion.Target(tensor_parallel, pipeline_parallel, virtual_pipeline), tokenizer
    )
    if Process.of_environment().rank == 0:
        print(done)


@app.command()
def doctor() -> None:
    """What this machine has, what is missing, what to do about it."""
    from paw_hpc.cli import doctor as examination

    raise typer.Exit(examination.main())


@app.command("warm-start")
def warm_start(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the policy. Default: runs/NAME.")] = None,
) -> None:
    """Clone a small policy from expert play, as a start for RL where no pretrained weights can be had."""
    from paw_hpc.recipe.shipped import recipe_path
    from paw_hpc.study import warmstart

    print(warmstart.main(recipe_path(recipe), overrides or [], out))


@app.command()
def quickstart(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Default: the quickstart for the games at hand.")
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Where its runs are kept.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """From the warm start, vanilla RL and RL with PaW on one machine, compared on a held-out panel."""
    from paw_hpc.recipe.shipped import recipe_path
    from paw_hpc.study import quickstart as job

    # no recipe was named: the first word is an override
    if recipe is not None and OVERRIDE.match(str(recipe)):
        recipe, overrides = None, [str(recipe), *(overrides or [])]
    raise typer.Exit(
        0 if job.run(recipe_path(recipe or job.for_the_games_at_hand()), overrides or [], run_dir) else 1
    )


@app.command()
def study(
    sweep: Annotated[
        Path,
        typer.Argument(metavar="SWEEP", help="Sweep file (arms and seeds), or a name of `paw recipes list`."),
    ],
    overrides: Overrides = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Where its runs are kept.")] = Path("runs/study"),
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time, each on its share of the cores.")] = 2,
) -> None:
    """Train every run of a sweep on this machine, judge start and ends on one held-out panel, and report."""
    from paw_hpc.recipe.shipped import recipe_path
    from paw_hpc.study import local as job

    raise typer.Exit(0 if job.run_sweep(recipe_path(sweep), overrides or [], run_dir, parallel) else 1)


if __name__ == "__main__":
    main()
