"""A small study on one machine: many runs from one start (one for each prompt), several at a time, all
judged on one held-out panel, and a report (`paw study SWEEP`).

The quickstart is the study of two arms and one seed. Whatever was done already is not done again, so a study
that was stopped goes on with the same command. Seed after seed is trained and judged: one that was stopped
has whole seeds to report.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console

from paw_hpc.build import Machinery
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.evaluation.panel import RULES, Evaluation, evaluate, write
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.experience import Group
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.run.metrics import RunDirectory, read_metrics
from paw_hpc.study.report import Report, print_report, write_report
from paw_hpc.study.sweep import load_sweep
from paw_hpc.system import processes
from paw_hpc.system.errors import CheckpointError, RecipeError

BEFORE, AFTER = "start", "end"
"""Labels of the two evaluations of every run."""
_SHARED = ("env", "model", "eval")
"""Sections that all runs must have alike: one start, one panel."""
_FREE = {"validity", "invalid_penalty"}
"""Keys of `env` that may differ all the same: they say what training calls invalid and what that costs, and
change neither task nor game."""
_PROMPT = {"prompt", "history"}
"""Keys of `env` that may differ, too: the same games, shown in another way. A policy plays by the prompt that
it knows, so each has a start of its own, which the runs with that prompt share."""
_Prompt = tuple[str, int | str]
"""Their values."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a study: what `paw train` gets, and where it is kept."""

    label: str
    source: Path
    """The recipe file."""
    changes: tuple[str, ...]
    """`key=value` overrides."""
    directory: Path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.source, self.changes)


def run_sweep(path: Path, overrides: Sequence[str], directory: Path, parallel: int) -> bool:
    """Every run of a sweep in `directory`/NAME-sSEED, seed by seed.

    Raises:
        RecipeError: see `load_sweep` and `run`.
    """
    sweep = load_sweep(path)
    runs = [
        PlannedRun(label, variant.base, (*variant.changes, *overrides, f"seed={seed}"), directory / label)
        for seed in sweep.seeds
        for variant in sweep.variants
        for label in (f"{variant.name}-s{seed}",)
    ]
    return run(runs, directory / "report", parallel) is not None


def run(runs: Sequence[PlannedRun], report_folder: Path, parallel: int) -> Report | None:
    """Train every run, judge the start and every end on the recipes' panel, write and print the report.

    Args:
        runs: the report's other arms are compared with that of the first.
        parallel: so many runs at a time, each on its share of the cores: a small model gains little from a
            second core, and arms that run side by side meet the same machine.

    Returns:
        None when it ended early: a signal stopped it (the same command continues), or a run failed and has
            said why.

    Raises:
        RecipeError: runs that differ in environment or evaluation, or in the model that a prompt starts from.
    """
    started, recipes = time.perf_counter(), {planned.label: planned.recipe for planned in runs}
    _check_alike(runs, recipes)
    first = recipes[runs[0].label]
    judged = make_benchmark(first.env).panel(first.eval.panel)
    with _peak_memory() as memory:
        panel = (
            f"{judged.name}: {len(judged.tasks)} tasks never trained on, {first.eval.repeats} episode(s) each"
        )
        _say(f"{len(runs)} runs, {parallel} at a time; judged on {panel}")
        to_go, judges = len(runs), dict[_Prompt, _Judges]()
        for seed in dict.fromkeys(recipe.seed for recipe in recipes.values()):
            batch = [planned for planned in runs if recipes[planned.label].seed == seed]
            if not _train(batch, recipes, parallel, to_go):
                return None
            for prompt in dict.fromkeys(_prompt(recipes[planned.label]) for planned in batch):
                same = [planned for planned in batch if _prompt(recipes[planned.label]) == prompt]
                recipe = recipes[same[0].label]
                judges.setdefault(prompt, _Judges(recipe, parallel)).judge(same, recipe)
            to_go -= len(batch)
    report = write_report([planned.directory for planned in runs], report_folder)
    print_report(report)
    minutes = (time.perf_counter() - started) / 60
    Console().print(
        "Observation CE is measured on the same transitions for every row: those that the policy before "
        "training played on the panel.\n"
        f"{minutes:.1f} minutes, at most {memory[0] / 2**30:.1f} GiB of memory in all processes together.",
        highlight=False,
        soft_wrap=True,
    )
    return report


def _say(text: str) -> None:
    Console(stderr=True).print(f"study  {text}", highlight=False, soft_wrap=True)


def _prompt(recipe: Recipe) -> _Prompt:
    return recipe.env.prompt, recipe.env.history


def _check_alike(runs: Sequence[PlannedRun], recipes: Mapping[str, Recipe]) -> None:
    """Against the first run, and the model against the first with the same prompt."""
    of_prompt: dict[_Prompt, PlannedRun] = {}
    for planned in runs:
        recipe = recipes[planned.label]
        same = of_prompt.setdefault(_prompt(recipe), planned)
        for section in _SHARED:
            first, left_out = same if section == "model" else runs[0], None
            if section == "env":
                left_out = _FREE | _PROMPT
            mine, theirs = (
                getattr(one, section).model_dump(exclude=left_out) for one in (recipe, recipes[first.label])
            )
            if mine != theirs:
                raise RecipeError(
                    f"{planned.source}: {section}: {planned.label} differs from {first.label}; runs of a "
                    "study share start and panel: let them differ in algorithm, wm, optimizer, rollout, "
                    "seed, env.validity or env.invalid_penalty, or in env.prompt and env.history, each of "
                    "which may have a model of its own"
                )


def _train(runs: Sequence[PlannedRun], recipes: Mapping[str, Recipe], parallel: int, to_go: int) -> bool:
    """`paw train` of every run that is not complete. True when all are."""
    left = [planned for planned in runs if not _complete(planned, recipes[planned.label])]
    to_go -= len(runs) - len(left)
    for first in range(0, len(left), parallel):
        part = left[first : first + parallel]
        _say(f"training {', '.join(planned.label for planned in part)} ({to_go - first} runs to go)")
        programs = [
            processes.Program(
                planned.label,
                [
                    sys.executable,
                    "-m",
                    "paw_hpc.cli.main",
                    "train",
                    str(planned.source),
                    *planned.changes,
                    "--run-dir",
                    str(planned.directory),
                ],
                {"OMP_NUM_THREADS": processes.threads_each(parallel)},
            )
            for planned in part
        ]
        if processes.run_together(programs) or not all(
            _complete(planned, recipes[planned.label]) for planned in part
        ):
            return False
    return True


def _complete(planned: PlannedRun, recipe: Recipe) -> bool:
    path = RunDirectory(planned.directory).metrics_path
    return path.exists() and len(read_metrics(path)) == recipe.updates


class _Judges:
    """Of the runs with one prompt: judge the policy before training, once per seed (seeds of episodes come
    from the run's), and the end of every run that has no result yet.

    The play of the very first start is what every observation cross-entropy is measured on: also in a study
    that goes on with a later seed.
    """

    def __init__(self, first: Recipe, parallel: int):
        self._first, self._parallel = first, parallel
        self._reference: Evaluation | None = None

    def judge(self, runs: Sequence[PlannedRun], recipe: Recipe) -> None:
        """Runs of one seed, and the recipe of one of them."""
        left = [
            planned
            for planned in runs
            if {result.label for result in read_evaluations(planned.directory)} < {BEFORE, AFTER}
        ]
        if not left:
            return
        # Only the main process may have many threads; a pool of fresh processes has none to inherit, and each
        # judges on its share of the cores.
        context, threads = multiprocessing.get_context("spawn"), int(processes.threads_each(self._parallel))
        with ProcessPoolExecutor(
            self._parallel, mp_context=context, initializer=_limit_threads, initargs=(threads,)
        ) as pool:
            if self._reference is None:
                self._reference = pool.submit(_judge, self._first, None, None).result()
            before, groups = self._reference, self._reference.groups
            starting = pool.submit(_judge, recipe, None, groups) if recipe.seed != self._first.seed else None
            ending = {
                pool.submit(_judge, planned.recipe, planned.directory, groups): planned for planned in left
            }
            if starting is not None:
                before = starting.result()
            _say(
                f"before training, seed {recipe.seed}, {recipe.env.prompt} prompt: success "
                f"{before.result.success:.1%}; judging {len(left)} ends"
            )
            for future in as_completed(ending):
                planned, after = ending[future], future.result()
                _say(f"{planned.label}: success {after.result.success:.1%}")
                for evaluation in (before, after):
                    write(planned.directory, evaluation, planned.recipe)


def _limit_threads(threads: int) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _judge(recipe: Recipe, run_directory: Path | None, observed: list[Group] | None) -> Evaluation:
    """Play the panel: with the initial weights where `run_directory` is None, else with the run's newest.
    Observation cross-entropy and diagnostics are on the play of `observed`; where that is None, on its own,
    which is returned (in `groups`) for the others."""
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        update = (
            0
            if run_directory is None
            else machinery.policy.resume(RunDirectory(run_directory).checkpoints, RULES)
        )
        if run_directory is not None and not update:
            raise CheckpointError(
                f"{run_directory}: complete, but without a checkpoint to judge; restore it from a copy, or "
                "set the run aside"
            )
        machinery.publisher.publish(version=update)
        label = BEFORE if run_directory is None else AFTER
        evaluation = evaluate(
            machinery,
            recipe,
            update=update,
            label=label,
            observed=observed,
            foreign=() if observed is None else observed,
        )
        return evaluation if observed is None else replace(evaluation, groups=[])


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """[bytes]: the most that this process and all below it held together (proportional set size: shared pages
    count once), looked at every 2 s."""
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
