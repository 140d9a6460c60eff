"""`make run`: from one warm start, vanilla RL and RL with PaW on the same games and seeds, both judged on one held-out panel, and a report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console

from paw_hpc import loop
from paw_hpc.build import Machinery
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.errors import RecipeError
from paw_hpc.evaluation import Evaluation, evaluate
from paw_hpc.metrics import RunDirectory
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.report import print_report, write_report
from paw_hpc.results import write_evaluation
from paw_hpc.rollout.event_loop import EventLoop

ARMS = {"vanilla": False, "paw": True}


def run(recipe_path: str | Path, overrides: Sequence[str], directory: Path) -> bool:
    """Train and judge both arms in `directory`/ARM, write `directory`/report; arms that are complete are not trained again.

    Returns:
        False when a signal stopped it early (the same command continues).
    """
    started, console = time.perf_counter(), Console(stderr=True)
    recipe = load_recipe(recipe_path, overrides)
    if not recipe.wm.enabled:
        raise RecipeError(f"{recipe_path}: wm.enabled: the quickstart compares a recipe with its vanilla arm; leave it true here")

    def say(text: str) -> None:
        console.print(f"quickstart  {text}", highlight=False, soft_wrap=True)

    judged = make_benchmark(recipe.env).panel(recipe.eval.panel)
    say(f"warm start on {judged.name} ({len(judged.tasks)} games never trained on, {recipe.eval.repeats} episode(s) each)")
    start = _judge(recipe, None, None)
    say(f"warm start: success {start.result.success:.1%}")
    for arm, enabled in ARMS.items():
        of_arm = _arm(recipe, arm, enabled)
        outcome = loop.train(of_arm, directory / arm, command=shlex.join(["paw", *sys.argv[1:]]))
        if outcome.stopped_by is not None:
            return False
        end = _judge(of_arm, directory / arm, start)
        say(f"{arm}: success {end.result.success:.1%}")
        for evaluation in (start, end):
            write_evaluation(directory / arm, evaluation.result)
    report = write_report([directory / arm for arm in ARMS], directory / "report")
    print_report(report)
    minutes, resident = (time.perf_counter() - started) / 60, psutil.Process().memory_info().rss / 2**30
    Console().print(
        f"Observation CE is measured on the same transitions for every row: those that the warm start played on the panel.\n"
        f"{minutes:.1f} minutes, {resident:.1f} GiB in the trainer at the end. Curves: {report.figures[0]}",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _arm(recipe: Recipe, arm: str, enabled: bool) -> Recipe:
    return recipe.model_copy(update={"name": f"{recipe.name}-{arm}", "wm": recipe.wm.model_copy(update={"enabled": enabled})})


def _judge(recipe: Recipe, run: Path | None, start: Evaluation | None) -> Evaluation:
    """Play the panel: with the initial weights where `run` is None, else with the run's newest. Observation cross-entropy is on `start`'s play."""
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        update = 0 if run is None else machinery.policy.resume(RunDirectory(run).checkpoints)
        machinery.publisher.publish(version=update)
        return evaluate(machinery, recipe, update=update, label="start" if run is None else "end", observed=None if start is None else start.groups)
