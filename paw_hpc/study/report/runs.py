"""Run directories, read, and grouped into arms: runs of one recipe that differ in their seed alone.

A folder that holds evaluations and no run (`paw eval MODEL --out FOLDER`) is the common start: its
evaluations stand before the first update of every run that has none of its own on that panel. A file of
outcomes (`paw_hpc.envs.outcomes`) is the play of an arm that was trained elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paw_hpc.evaluation.outcomes import Player, read_players
from paw_hpc.evaluation.results import EvaluationResult, read_evaluations
from paw_hpc.recipe import QUESTION_SETS, TASK_TYPES, Recipe, WorldModelSection, parse_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.resume import differing_keys
from paw_hpc.run.changes import Change, read_changes
from paw_hpc.run.metrics import RunDirectory, read_metrics
from paw_hpc.system.errors import DataError

PanelKey = tuple[str, str, float, str]
"""(panel, checksum, temperature, protocol): evaluations that may be compared."""
Outcomes = dict[int, dict[str, list[float]]]
"""Seed -> task -> outcomes (0, 1) of its repeats."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory."""

    path: Path
    recipe: Recipe
    metrics: list[dict[str, float]]
    evaluations: list[EvaluationResult]
    changes: tuple[Change, ...] = ()
    """What was changed on its way."""
    outside: bool = False
    """Trained elsewhere: `path` is a file of outcomes, there are no metrics, and of the recipe only name,
    seed and benchmark say anything."""

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(updates int64[n], values float64[n]) of one metric, where it was logged and is a number."""
        points = [(m["update"], m[name]) for m in self.metrics if name in m and np.isfinite(m[name])]
        updates, values = zip(*points, strict=True) if points else ((), ())
        return np.array(updates, dtype=np.int64), np.array(values, dtype=np.float64)

    def last_evaluation(self, key: PanelKey) -> EvaluationResult | None:
        """The one after most updates; of several, that of most episodes."""
        of_panel = [e for e in self.evaluations if panel_key(e) == key]
        return max(of_panel, key=lambda e: (e.update, len(e.episodes)), default=None)

    def start_evaluation(self, key: PanelKey) -> EvaluationResult | None:
        """The one before the first update, where there is also a later one."""
        of_panel = [e for e in self.evaluations if panel_key(e) == key]
        if not any(e.update > 0 for e in of_panel):
            return None
        return max((e for e in of_panel if e.update == 0), key=lambda e: len(e.episodes), default=None)


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs of one recipe (seeds), changed alike on their way where they were changed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def outside(self) -> bool:
        """It was trained elsewhere; nothing is known of its recipe."""
        return self.runs[0].outside

    @property
    def title(self) -> str:
        """The label, with the number of seeds where there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.recipe.seed for run in self.runs}))

    def outcomes(self, key: PanelKey, task_type: str | None = None) -> Outcomes:
        """At the end of training. Runs that repeat a seed are one seed."""
        return outcomes_of(
            [(run.recipe.seed, e) for run in self.runs if (e := run.last_evaluation(key))], task_type
        )

    def start_outcomes(self, key: PanelKey) -> Outcomes:
        """Before training; where all runs share one evaluation of one start, that once (there is nothing of
        seeds in it)."""
        found = [(run.recipe.seed, e) for run in self.runs if (e := run.start_evaluation(key))]
        return outcomes_of(found[:1] if len({id(e) for _, e in found}) == 1 else found)

    def last(self, key: PanelKey) -> list[EvaluationResult]:
        return [e for run in self.runs if (e := run.last_evaluation(key))]

    def start(self, key: PanelKey) -> list[EvaluationResult]:
        return [e for run in self.runs if (e := run.start_evaluation(key))]


def panel_key(evaluation: EvaluationResult) -> PanelKey:
    return evaluation.panel, evaluation.panel_checksum, evaluation.temperature, evaluation.protocol


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """The arms: vanilla ones first, then in the order given, then those of files of outcomes. A folder that
    is no run itself stands for the runs in it, or for the common start.

    Raises:
        DataError: a path without a run, or a damaged file.
        CheckpointError: a recipe.yaml that this version cannot read.
    """
    players = read_players([path for path in paths if path.is_file()])
    folders = [path for given in paths if not given.is_file() for path in _run_folders(given)]
    starts = [e for path in folders if not RunDirectory(path).exists for e in _read_start(path)]
    runs = [_with_start(_read_run(path), starts) for path in folders if RunDirectory(path).exists]
    if not runs and (starts or not players):
        raise DataError(
            f"{', '.join(map(str, paths))}: evaluations only; give the runs that they belong to as well"
        )
    _check_starts(starts, runs)
    runs += map(_outside, players)
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if _same_arm(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    groups.sort(key=lambda group: (group[0].outside, group[0].recipe.wm.enabled))  # stable
    names = [group[0].recipe.name for group in groups]
    labels = [
        name if names.count(name) == 1 else f"{name} ({group[0].path.name})"
        for name, group in zip(names, groups, strict=True)
    ]
    return [Arm(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def reference_of(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """What an arm is compared with: the vanilla arm of its set-up, or the first arm where there is none; None
    for that one itself. Of an arm from outside nobody knows the set-up: it is compared with the first, and
    none with it but others from outside."""
    if arm.outside:
        return None if arms[0] is arm else arms[0]
    vanilla = [
        other
        for other in arms
        if not other.outside
        and not other.recipe.wm.enabled
        and not differing_keys(_set_up(other.recipe), _set_up(arm.recipe))
    ]
    reference = vanilla[0] if vanilla else arms[0]
    return None if reference is arm or (vanilla and not arm.recipe.wm.enabled) else reference


def controls_of(arm: Arm, arms: Sequence[Arm]) -> list[Arm]:
    """The arms that are this one with the observations of other transitions as targets (`wm.target:
    shuffled`)."""
    if arm.outside or not arm.recipe.wm.enabled or arm.recipe.wm.target == "shuffled":
        return []
    shuffled = _identity(arm.recipe).model_copy(
        update={"wm": arm.recipe.wm.model_copy(update={"target": "shuffled"})}
    )
    return [other for other in arms if not differing_keys(_identity(other.recipe), shuffled)]


def elsewhere_of(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The first arm with the same start and world model in another set-up (another protocol, say); None where
    it is the first itself."""
    known = [] if arm.outside else [other for other in arms if not other.outside]
    for other in known:
        if other.recipe.wm == arm.recipe.wm and other.recipe.model == arm.recipe.model:
            return (
                other
                if other is not arm and differing_keys(_set_up(other.recipe), _set_up(arm.recipe))
                else None
            )
    return None


def outcomes_of(found: Sequence[tuple[int, EvaluationResult]], task_type: str | None = None) -> Outcomes:
    """Of (seed of the run, evaluation) pairs, all task types or one."""
    outcomes: Outcomes = {}
    for seed, result in found:
        for episode in result.episodes:
            if task_type in (None, episode.task_type):
                outcomes.setdefault(seed, {}).setdefault(episode.task_id, []).append(float(episode.success))
    return outcomes


def panels(arms: Sequence[Arm]) -> list[PanelKey]:
    """Every panel on which a run was evaluated, those of most runs first."""
    keys = [
        panel_key(e)
        for arm in arms
        for run in arm.runs
        for e in {panel_key(e): e for e in run.evaluations}.values()
    ]
    return sorted(dict.fromkeys(keys), key=lambda key: (-keys.count(key), key))


def task_types(arms: Sequence[Arm], key: PanelKey) -> list[str]:
    """The task types of a panel, in the benchmark's order."""
    found = {name for arm in arms for result in arm.last(key) for name in result.per_task_type}
    known = (*TASK_TYPES, *QUESTION_SETS)
    return [name for name in known if name in found] + sorted(found - set(known))


def _run_folders(path: Path) -> list[Path]:
    if RunDirectory(path).exists or _only_evaluations(path):
        return [path]
    inside = sorted(
        p
        for p in path.glob("*/")
        if ".old-" not in p.name and (RunDirectory(p).exists or _only_evaluations(p))
    )
    for folder in [
        p for p in inside if not RunDirectory(p).exists and any(e.update > 0 for e in read_evaluations(p))
    ]:
        _log.warning(
            "%s: left out: evaluations of a trained policy without its run (paw eval --out), which belong "
            "to no arm",
            folder,
        )
        inside.remove(folder)
    if not any(RunDirectory(p).exists for p in inside):
        raise DataError(f"{path}: no run here (no recipe.yaml in it, nor in a folder in it)")
    return inside


def _only_evaluations(path: Path) -> bool:
    return not RunDirectory(path).exists and any(RunDirectory(path).evaluations.glob("*.json"))


def _same_arm(one: Run, other: Run) -> bool:
    if one.outside or other.outside:
        return one.outside and other.outside and one.recipe.name == other.recipe.name
    return one.changes == other.changes and not differing_keys(_identity(one.recipe), _identity(other.recipe))


def _outside(player: Player) -> Run:
    env = {"env": {"name": player.benchmark}} if player.benchmark in BENCHMARKS.names() else {}
    recipe = parse_recipe(
        {"name": player.name, "seed": player.seed, "model": {"path": "elsewhere"}, "wm": {"enabled": False}}
        | env
    )
    return Run(player.files[0], recipe, [], list(player.evaluations), outside=True)


def _read_run(path: Path) -> Run:
    run = RunDirectory(path)
    return Run(
        path, run.recipe(), read_metrics(run.metrics_path), read_evaluations(path), tuple(read_changes(path))
    )


def _read_start(path: Path) -> list[EvaluationResult]:
    found = read_evaluations(path)
    if trained := [e.label for e in found if e.update > 0]:
        raise DataError(
            f"{path}: {', '.join(trained)}: evaluations of a trained policy without its run; evaluate it "
            "with its run as the target"
        )
    return found


def _check_starts(starts: Sequence[EvaluationResult], runs: Sequence[Run]) -> None:
    """Raises DataError for a start that was played by other rules than every run's evaluations on its
    panel."""
    played = {panel_key(e) for run in runs for e in run.evaluations if e.update > 0}
    for e in starts:
        others = sorted({key[3] for key in played if key[:3] == panel_key(e)[:3]})
        if others and e.protocol not in others:
            raise DataError(
                f"evaluation {e.label} of the start was played with {e.protocol or 'unknown rules'}, those "
                f"of the runs with {' / '.join(others)}; "
                "evaluate it by the runs' recipe: paw eval RECIPE.yaml --out FOLDER"
            )


def _with_start(run: Run, starts: Sequence[EvaluationResult]) -> Run:
    own = {panel_key(e) for e in run.evaluations if e.update == 0}
    common = [
        e
        for e in starts
        if panel_key(e) not in own and any(panel_key(e) == panel_key(o) for o in run.evaluations)
    ]
    return (
        replace(run, evaluations=sorted([*common, *run.evaluations], key=lambda e: e.update))
        if common
        else run
    )


def _identity(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"seed": 0, "name": "run"})


def _set_up(recipe: Recipe) -> Recipe:
    """All but the world model's part."""
    return _identity(recipe).model_copy(update={"wm": WorldModelSection()})
