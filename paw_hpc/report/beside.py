"""Our numbers beside the paper's, each with a verdict that a rule gives: reproduced, not reproduced, or undecided at this n."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paw_hpc.report.compare import comparisons, rate_cell, size_cell
from paw_hpc.report.document import TableBlock
from paw_hpc.report.paper import paper_row
from paw_hpc.report.runs import Arm, PanelKey, pooled_score, rate
from paw_hpc.statistics import Interval

TITLE = "Beside the paper"
MARGIN = 5.0
"""Points: a difference that is surely smaller counts as none."""
PAPER_SEEDS = 3
NOTE = (
    f"Verdicts: the difference's 95 % interval is our own, widened by 1.96 standard errors of the paper's mean (its deviation over {PAPER_SEEDS} "
    f"seeds; 0 where it gives none). Reproduced: it lies within ±{MARGIN:g} points. Not reproduced: it excludes 0, and reaches beyond them. "
    "Undecided: it includes 0 and reaches beyond them, so that n is too small here, or there. Arms that depart from the paper's set-up (listed "
    "below) are judged in brackets."
)


def paper_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """Success (and score) of every arm that the paper reports, then the differences between such arms. None where there is no such arm."""
    rows = [row for arm in arms for row in _levels(arm, key)]
    evaluated = [arm for arm in arms if arm.last(key)]
    for name, found, arm, against in comparisons(evaluated, key):
        of, base = paper_row(arm.recipe), paper_row(against.recipe)
        if of is None or base is None or "All" not in of.columns or "All" not in base.columns:
            continue
        theirs = of.columns["All"][0] - base.columns["All"][0]
        error = math.hypot(*(standard_error(row.columns["All"]) for row in (of, base)))
        ours, interval = 100 * found.difference, (100 * found.low, 100 * found.high)
        cells = f"{ours:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}]", f"{theirs:+.1f}"
        departs = bool(of.deviations or base.deviations)
        rows.append((name, f"{found.seeds} × {found.tasks}", *cells, *_judged(ours - theirs, interval, ours, error, departs)))
    header = ("beside the paper, points", "n", "ours [95 %]", "the paper's", "ours - the paper's [95 %]", "verdict")
    return TableBlock(TITLE, header, tuple(rows)) if rows else None


def verdict(difference: Interval) -> str:
    """By the rule in NOTE, of the interval of ours - the paper's, in points."""
    low, high = difference
    if low >= -MARGIN and high <= MARGIN:
        return "reproduced"
    return "undecided" if low <= 0 <= high else "not reproduced"


def standard_error(measured: tuple[float, ...]) -> float:
    """Of the paper's (mean, standard deviation over its seeds), or (mean,)."""
    return measured[1] / math.sqrt(PAPER_SEEDS) if len(measured) > 1 else 0.0


def _levels(arm: Arm, key: PanelKey) -> list[tuple[str, ...]]:
    paper, found = paper_row(arm.recipe), arm.last(key)
    if paper is None or not found:
        return []
    rows = list[tuple[str, ...]]()
    for column, what, measured in (("All", "success", rate(arm.outcomes(key))), ("Score", "score", pooled_score(found))):
        if measured is None or column not in paper.columns:
            continue
        theirs = paper.columns[column]
        value, interval = 100 * measured[0], (100 * measured[1][0], 100 * measured[1][1])
        judged = _judged(value - theirs[0], interval, value, standard_error(theirs), bool(paper.deviations))
        number = " ± ".join(f"{x:.1f}" for x in theirs)
        rows.append((f"{arm.label}: {what} ({paper.label})", size_cell(arm.outcomes(key)), rate_cell(measured), number, *judged))
    return rows


def _judged(difference: float, interval: Interval, centre: float, error: float, departs: bool) -> tuple[str, str]:
    """(cell of the difference, verdict): our interval around `centre`, each half widened by the paper's standard error."""
    low = difference - math.hypot(centre - interval[0], 1.96 * error)
    high = difference + math.hypot(interval[1] - centre, 1.96 * error)
    said = verdict((low, high))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"({said})" if departs else said
