"""`make run`: from one warm start, vanilla RL and RL with PaW on the same games and seeds, both judged on one held-out panel, and a report."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console

from paw_hpc import processes
from paw_hpc.build import Machinery
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.errors import RecipeError
from paw_hpc.evaluation import Evaluation, evaluate
from paw_hpc.metrics import RunDirectory, read_metrics
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.report import print_report, write_report
from paw_hpc.results import write_evaluation
from paw_hpc.rollout.event_loop import EventLoop

ARMS = {"vanilla": False, "paw": True}


def run(recipe_path: str | Path, overrides: Sequence[str], directory: Path) -> bool:
    """Train both arms side by side in `directory`/ARM, judge them, write `directory`/report; what was done already is not done again.

    Returns:
        False when it ended early: a signal stopped it (the same command continues), or an arm failed and has said why.
    """
    started, console = time.perf_counter(), Console(stderr=True)
    recipe = load_recipe(recipe_path, overrides)
    if not recipe.wm.enabled:
        raise RecipeError(f"{recipe_path}: wm.enabled: the quickstart compares a recipe with its vanilla arm; leave it true here")
    arms = {arm: _arm(recipe, arm, enabled) for arm, enabled in ARMS.items()}

    def say(text: str) -> None:
        console.print(f"quickstart  {text}", highlight=False, soft_wrap=True)

    judged = make_benchmark(recipe.env).panel(recipe.eval.panel)
    with _peak_memory() as memory:
        say(f"warm start on {judged.name} ({len(judged.tasks)} games never trained on, {recipe.eval.repeats} episode(s) each)")
        start = _judge(recipe, None, None)
        say(f"warm start: success {start.result.success:.1%}; now both arms train side by side")
        if not _train(arms, Path(recipe_path), overrides, directory):
            return False
        for arm, of_arm in arms.items():
            end = _judge(of_arm, directory / arm, start)
            say(f"{arm}: success {end.result.success:.1%}")
            for evaluation in (start, end):
                write_evaluation(directory / arm, evaluation.result)
    report = write_report([directory / arm for arm in ARMS], directory / "report")
    print_report(report)
    Console().print(
        f"Observation CE is measured on the same transitions for every row: those that the warm start played on the panel.\n"
        f"{(time.perf_counter() - started) / 60:.1f} minutes, at most {memory[0] / 2**30:.1f} GiB of memory in all processes together. "
        f"Curves: {report.figures[0]}",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _arm(recipe: Recipe, arm: str, enabled: bool) -> Recipe:
    return recipe.model_copy(update={"name": f"{recipe.name}-{arm}", "wm": recipe.wm.model_copy(update={"enabled": enabled})})


def _train(arms: Mapping[str, Recipe], recipe_path: Path, overrides: Sequence[str], directory: Path) -> bool:
    """`paw train` of every arm at the same time, each on its share of the cores: a small model gains little from a second core, and both arms meet
    the same machine. True when all are complete."""
    programs = []
    for arm, recipe in arms.items():
        chosen = [*overrides, f"name={recipe.name}", f"wm.enabled={str(recipe.wm.enabled).lower()}"]
        command = [sys.executable, "-m", "paw_hpc.cli", "train", str(recipe_path), *chosen, "--run-dir", str(directory / arm)]
        programs.append(processes.Program(arm, command, {"OMP_NUM_THREADS": processes.threads_each(len(arms))}))
    status = processes.run_together(programs)
    return status == 0 and all(len(read_metrics(RunDirectory(directory / arm).metrics_path)) == arms[arm].updates for arm in arms)


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """[bytes]: the most that this process and all below it held together (proportional set size: shared pages count once), looked at every 2 s."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(2.0):
            total, me = 0, psutil.Process()
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch, name="peak-memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _judge(recipe: Recipe, run: Path | None, start: Evaluation | None) -> Evaluation:
    """Play the panel: with the initial weights where `run` is None, else with the run's newest. Observation cross-entropy is on `start`'s play."""
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        update = 0 if run is None else machinery.policy.resume(RunDirectory(run).checkpoints)
        machinery.publisher.publish(version=update)
        return evaluate(machinery, recipe, update=update, label="start" if run is None else "end", observed=None if start is None else start.groups)
