"""World-model diagnostics: how well arms predict next observations, on their own play and on that of the
policy before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paw_hpc.evaluation.results import EvaluationResult, Prediction
from paw_hpc.study.report.cells import ABSENT
from paw_hpc.study.report.document import TableBlock
from paw_hpc.study.report.paper import COLUMN_OF
from paw_hpc.study.report.runs import Arm, PanelKey, task_types

_SOURCES = {"own": "own play", "foreign": "the start's play"}
NOTE = (
    "World model: next observations after an episode's first step. CE: nats per token of the true one. "
    "Exact: the greedy prediction is the true "
    "observation, token by token. Copy: the same of a copier that says the previous observation again (its "
    "CE with the one confidence, and the "
    "frequencies of what is not a copy, that fit these very transitions best). Own play differs from arm "
    "to arm; the start's play, of the policy "
    "before training on games of this panel, is the same for all arms of one seed."
)


def prediction_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """One row per policy and source: CE and exact match beside the copier's. None where nothing was
    measured."""
    rows = []
    for name, found in _policies(arms, key):
        for source, title in _SOURCES.items():
            every = _of(found, source, "all")
            if not every:
                continue
            exact = [
                _mean(every, lambda p: p.exact, lambda p: p.exact_interval, 100, ".1f"),
                _mean(every, lambda p: p.copy_exact, None, 100, ".1f"),
            ]
            ce = [
                _mean(every, lambda p: p.ce, lambda p: p.ce_interval, 1, ".3f"),
                _mean(every, lambda p: p.copy_ce, None, 1, ".3f"),
            ]
            rows.append((name, title, f"{sum(p.transitions for p in every):,}", *ce, *exact))
    header = (
        "world model",
        "transitions of",
        "n",
        "CE [95 %] or ± seeds",
        "copy's CE",
        "exact % [95 %] or ± seeds",
        "copy's exact %",
    )
    return TableBlock("Prediction of next observations", header, tuple(rows)) if rows else None


def split_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """`CE / exact %` per outcome of the episode and per task type, the copier's in brackets."""
    rows = []
    types = task_types(arms, key)
    columns = ["success", "failure", *(types if len(types) > 1 else [])]
    for name, found in _policies(arms, key):
        for source, title in _SOURCES.items():
            cells = [_pair(_of(found, source, split)) for split in columns]
            if any(cell != ABSENT for cell in cells):
                rows.append((name, title, *cells))
    header = ("CE / exact % (copy's)", "transitions of", *(COLUMN_OF.get(split, split) for split in columns))
    return TableBlock("By outcome of the episode and by task type", header, tuple(rows)) if rows else None


def _policies(arms: Sequence[Arm], key: PanelKey) -> list[tuple[str, list[EvaluationResult]]]:
    """The common start once, then every arm at its end."""
    starts = {id(e): e for arm in arms for e in arm.start(key) if e.predictions}
    before = [("before training", [e]) for e in list(starts.values())[:1]]
    return before + [(arm.title, arm.last(key)) for arm in arms]


def _of(found: Sequence[EvaluationResult], source: str, split: str) -> list[Prediction]:
    return [p for e in found for p in e.predictions if (p.source, p.split) == (source, split)]


def _mean(
    found: Sequence[Prediction],
    value: Callable[[Prediction], float | None],
    interval: Callable[[Prediction], tuple[float, float] | None] | None,
    factor: float,
    form: str,
) -> str:
    """`0.612 [0.580, 0.640]` of one run, `0.612 ± 0.020` over seeds."""
    values = [factor * v for p in found if (v := value(p)) is not None]
    if not values:
        return ABSENT
    cell = f"{np.mean(values):{form}}"
    if interval is None:
        return cell
    if len(values) > 1:
        return f"{cell} ± {np.std(values, ddof=1):{form}}"
    bounds = interval(found[0])
    return cell if bounds is None else f"{cell} [{factor * bounds[0]:{form}}, {factor * bounds[1]:{form}}]"


def _pair(found: Sequence[Prediction]) -> str:
    if not found:
        return ABSENT
    ce, copy_ce = (_mean(found, value, None, 1, ".2f") for value in (lambda p: p.ce, lambda p: p.copy_ce))
    exact, copy_exact = (
        _mean(found, value, None, 100, ".0f") for value in (lambda p: p.exact, lambda p: p.copy_exact)
    )
    return f"{ce} ({copy_ce}) / {exact} ({copy_exact})"
