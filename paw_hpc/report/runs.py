"""Run directories, read, and grouped into arms: runs of one recipe that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paw_hpc.errors import DataError
from paw_hpc.metrics import RunDirectory, differing_keys, read_metrics
from paw_hpc.recipe import QUESTION_SETS, TASK_TYPES, Recipe
from paw_hpc.results import EvaluationResult, mean_score, read_evaluations
from paw_hpc.statistics import Interval, stratified_mean, success_interval

PanelKey = tuple[str, str, float]
"""(panel, checksum, temperature): evaluations that may be compared."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory."""

    path: Path
    recipe: Recipe
    metrics: list[dict[str, float]]
    evaluations: list[EvaluationResult]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(updates int64[n], values float64[n]) of one metric, where it was logged and is a number."""
        points = [(m["update"], m[name]) for m in self.metrics if name in m and np.isfinite(m[name])]
        updates, values = zip(*points, strict=True) if points else ((), ())
        return np.array(updates, dtype=np.int64), np.array(values, dtype=np.float64)

    def last_evaluation(self, key: PanelKey) -> EvaluationResult | None:
        """The one after most updates."""
        of_panel = [e for e in self.evaluations if panel_key(e) == key]
        return of_panel[-1] if of_panel else None

    def start_evaluation(self, key: PanelKey) -> EvaluationResult | None:
        """The one before the first update, where there is also a later one."""
        of_panel = [e for e in self.evaluations if panel_key(e) == key]
        return of_panel[0] if len(of_panel) > 1 and of_panel[0].update == 0 < of_panel[-1].update else None


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs of one recipe (seeds)."""

    label: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def title(self) -> str:
        """The label, with the number of seeds where there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"

    def last(self, key: PanelKey) -> list[EvaluationResult]:
        return [e for run in self.runs if (e := run.last_evaluation(key))]

    def start(self, key: PanelKey) -> list[EvaluationResult]:
        return [e for run in self.runs if (e := run.start_evaluation(key))]


def panel_key(evaluation: EvaluationResult) -> PanelKey:
    return evaluation.panel, evaluation.panel_checksum, evaluation.temperature


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """The arms in the order given. A folder that is no run itself stands for the runs in it.

    Raises:
        DataError: a path without a run, or a damaged file.
        CheckpointError: a recipe.yaml that this version cannot read.
    """
    runs = [_read_run(path) for given in paths for path in _run_folders(given)]
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if not differing_keys(_identity(group[0].recipe), _identity(run.recipe)):
                group.append(run)
                break
        else:
            groups.append([run])
    names = [group[0].recipe.name for group in groups]
    labels = [name if names.count(name) == 1 else f"{name} ({group[0].path.name})" for name, group in zip(names, groups, strict=True)]
    return [Arm(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def panels(arms: Sequence[Arm]) -> list[PanelKey]:
    """Every panel on which a run was evaluated, those of most runs first."""
    keys = [panel_key(e) for arm in arms for run in arm.runs for e in {panel_key(e): e for e in run.evaluations}.values()]
    return sorted(dict.fromkeys(keys), key=lambda key: (-keys.count(key), key))


def task_types(arms: Sequence[Arm], key: PanelKey) -> list[str]:
    """The task types of a panel, in the benchmark's order."""
    found = {name for arm in arms for result in arm.last(key) for name in result.per_task_type}
    known = (*TASK_TYPES, *QUESTION_SETS)
    return [name for name in known if name in found] + sorted(found - set(known))


def pooled(evaluations: Sequence[EvaluationResult], task_type: str | None = None) -> tuple[float, Interval] | None:
    """Success over the episodes of several evaluations (repeats, seeds) of one panel, with its interval over games; None: no such episode."""
    episodes = [e for result in evaluations for e in result.episodes if task_type in (None, e.task_type)]
    if not episodes:
        return None
    outcomes = [e.success for e in episodes]
    return sum(outcomes) / len(outcomes), success_interval(outcomes, [e.task_id for e in episodes])


def mean_of_sets(evaluations: Sequence[EvaluationResult]) -> tuple[float, Interval] | None:
    """The unweighted mean of the success rates on the sets of search QA (the paper's average), with its interval over questions; None where there are
    fewer than two sets."""
    episodes = [e for result in evaluations for e in result.episodes if e.task_type in QUESTION_SETS]
    if len({e.task_type for e in episodes}) < 2:
        return None
    return stratified_mean([float(e.success) for e in episodes], [e.task_type for e in episodes], [e.task_id for e in episodes])


def pooled_score(evaluations: Sequence[EvaluationResult]) -> tuple[float, Interval] | None:
    """The benchmark's own score over the episodes of several evaluations of one panel; None where it says no more than success."""
    if not any(result.scored for result in evaluations):
        return None
    return mean_score([e for result in evaluations for e in result.episodes])


def by_task(evaluations: Sequence[EvaluationResult]) -> dict[str, list[float]]:
    """Task -> outcomes (0, 1) over repeats and seeds."""
    outcomes: dict[str, list[float]] = {}
    for result in evaluations:
        for episode in result.episodes:
            outcomes.setdefault(episode.task_id, []).append(float(episode.success))
    return outcomes


def _run_folders(path: Path) -> list[Path]:
    if RunDirectory(path).exists:
        return [path]
    inside = sorted(p for p in path.glob("*/") if RunDirectory(p).exists and ".old-" not in p.name) if path.is_dir() else []
    if not inside:
        raise DataError(f"{path}: no run here (no recipe.yaml in it, nor in a folder in it)")
    return inside


def _read_run(path: Path) -> Run:
    run = RunDirectory(path)
    return Run(path, run.recipe(), read_metrics(run.metrics_path), read_evaluations(path))


def _identity(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"seed": 0, "name": "run"})
