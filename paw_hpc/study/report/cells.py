"""What stands in one cell of a table: rates with intervals, deviations, readings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paw_hpc.evaluation.results import EvaluationResult
from paw_hpc.evaluation.statistics import Interval
from paw_hpc.study.report.measures import rate
from paw_hpc.study.report.runs import Arm, Outcomes

ABSENT = "–"


WINDOW = 10
"""Updates at either end of a run whose mean stands for its start and end (fewer in runs of less than 20)."""


def success_cell(outcomes: Outcomes) -> str:
    """`54.3 [46.0, 62.3]`."""
    return rate_cell(rate(outcomes))


def size_cell(outcomes: Outcomes) -> str:
    """`5 × 40 × 3`: seeds, games, episodes per game."""
    games = {task for of_seed in outcomes.values() for task in of_seed}
    repeats = sorted({len(of_task) for of_seed in outcomes.values() for of_task in of_seed.values()})
    return f"{len(outcomes)} × {len(games)} × {repeats[0]}" + (f"–{repeats[-1]}" if len(repeats) > 1 else "")


def deviation_cell(outcomes: Outcomes) -> str:
    means = [np.mean([np.mean(of_task) for of_task in of_seed.values()]) for of_seed in outcomes.values()]
    return f"{100 * np.std(means, ddof=1):.1f}" if len(means) > 1 else ABSENT


def ce_cell(found: Sequence[EvaluationResult]) -> str:
    """`1.234 [1.200, 1.270]` of one evaluation, `1.234 ± 0.020` over seeds."""
    values = [e.observation_ce for e in found if e.observation_ce is not None]
    if not values:
        return ABSENT
    if len(values) > 1:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    interval = next(e.observation_ce_interval for e in found if e.observation_ce is not None)
    return f"{values[0]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def rate_cell(rate: tuple[float, Interval] | None) -> str:
    if rate is None:
        return ABSENT
    value, (low, high) = rate
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def paper_cell(measured: tuple[float, ...] | None) -> str:
    return ABSENT if measured is None else " ± ".join(f"{x:.1f}" for x in measured)


def mean_cell(arm: Arm, metric: str, factor: float = 1.0, form: str = ".2f") -> str:
    values = np.concatenate([run.series(metric)[1] for run in arm.runs])
    return f"{factor * values.mean():{form}}" if values.size else ABSENT


def episodes_cell(arm: Arm) -> str:
    counts = [int(run.series("train/episodes")[1].sum()) for run in arm.runs]
    return f"{round(sum(counts) / len(counts)):,}" if any(counts) else ABSENT


def ends_cell(arm: Arm, metric: str, factor: float, form: str) -> str:
    series = [values for run in arm.runs for _, values in [run.series(metric)] if values.size]
    if not series:
        return ABSENT
    first, last = (
        np.mean([part.mean() for part in parts])
        for parts in zip(*((v[: window(v)], v[-window(v) :]) for v in series), strict=True)
    )
    return f"{factor * first:{form}} → {factor * last:{form}}"


def window(values: np.ndarray) -> int:
    return min(WINDOW, max(1, values.size // 2))
