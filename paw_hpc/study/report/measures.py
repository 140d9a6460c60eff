"""What arms come to: rates, means over sets, seconds per phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paw_hpc.evaluation.results import EvaluationResult, mean_score
from paw_hpc.evaluation.statistics import (
    Interval,
    crossed_rate,
    crossed_table,
    stratified_mean,
    success_interval,
)
from paw_hpc.recipe import QUESTION_SETS
from paw_hpc.study.report.runs import Arm, Outcomes

PHASES = ("collect", "score", "plan", "train", "publish")
"""`time/PHASE_s`: the parts of `time/update_s` that follow each other."""


def rate(outcomes: Outcomes) -> tuple[float, Interval] | None:
    """Success with its interval: over seeds and games where there are several seeds, else over games; None:
    nothing was played."""
    if not outcomes:
        return None
    values = [v for of_seed in outcomes.values() for of_task in of_seed.values() for v in of_task]
    if min(crossed_table(outcomes).shape) >= 2:
        return sum(values) / len(values), crossed_rate(outcomes)
    tasks = [task for of_seed in outcomes.values() for task, of_task in of_seed.items() for _ in of_task]
    return sum(values) / len(values), success_interval([v > 0.5 for v in values], tasks)


def mean_of_sets(evaluations: Sequence[EvaluationResult]) -> tuple[float, Interval] | None:
    """The unweighted mean of the success rates on the sets of search QA (the paper's average), with its
    interval over questions; None where there are fewer than two sets."""
    episodes = [e for result in evaluations for e in result.episodes if e.task_type in QUESTION_SETS]
    if len({e.task_type for e in episodes}) < 2:
        return None
    return stratified_mean(
        [float(e.success) for e in episodes], [e.task_type for e in episodes], [e.task_id for e in episodes]
    )


def pooled_score(evaluations: Sequence[EvaluationResult]) -> tuple[float, Interval] | None:
    """The benchmark's own score over the episodes of several evaluations of one panel; None where it says no
    more than success."""
    if not any(result.scored for result in evaluations):
        return None
    return mean_score([e for result in evaluations for e in result.episodes])


def phase_seconds(arm: Arm) -> dict[str, float]:
    """Mean seconds per update and phase over an arm's runs, and `other`, what `time/update_s` holds beyond
    them. A phase that was not logged is absent."""
    means = {phase: _mean(arm, f"time/{phase}_s") for phase in PHASES}
    logged = {phase: seconds for phase, seconds in means.items() if seconds is not None}
    whole = _mean(arm, "time/update_s")
    if whole is not None:
        other = whole - sum(logged.values())
        if other > 0.01 * whole:
            logged["other"] = other
    return logged


def _mean(arm: Arm, metric: str) -> float | None:
    values = np.concatenate([run.series(metric)[1] for run in arm.runs])
    return float(values.mean()) if values.size else None
