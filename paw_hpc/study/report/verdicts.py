"""Our numbers beside the paper's, each with a verdict that a rule gives: reproduced, not reproduced, or
undecided at this n."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paw_hpc.evaluation.statistics import Interval
from paw_hpc.study.report.cells import rate_cell, size_cell
from paw_hpc.study.report.compare import comparisons
from paw_hpc.study.report.document import TableBlock
from paw_hpc.study.report.measures import pooled_score, rate
from paw_hpc.study.report.runs import Arm, PanelKey
from paw_hpc.study.report.standings import known_of

TITLE = "Beside the paper"
MARGIN = 5.0
"""Points: a difference that is surely smaller counts as none."""
PAPER_SEEDS = 3
NOTE = (
    "Verdicts: the difference's 95 % interval is our own, widened by 1.96 standard errors of the paper's "
    f"mean (its deviation over {PAPER_SEEDS} "
    f"seeds; 0 where it gives none). Reproduced: it lies within ±{MARGIN:g} points. Not reproduced: it "
    "excludes 0, and reaches beyond them. "
    "Undecided: it includes 0 and reaches beyond them, so that n is too small here, or there. In brackets: "
    "arms whose set-up departs from the "
    "protocol `reference`, which the paper's numbers most likely come from (the departures are listed here)."
)


def paper_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """Success (and score) of every arm that the paper reports and whose protocol has a name, then the
    differences between such arms. None where there is no such arm."""
    rows = [row for arm in arms for row in _levels(arm, key)]
    evaluated = [arm for arm in arms if arm.last(key)]
    for name, difference, arm, against in comparisons(evaluated, key):
        both = [
            known for each in (arm, against) if (known := known_of(each, key)) and "All" in known.row.columns
        ]
        if len(both) < 2:
            continue
        theirs = both[0].row.columns["All"][0] - both[1].row.columns["All"][0]
        error = math.hypot(*(standard_error(each.row.columns["All"]) for each in both))
        ours, interval = 100 * difference.difference, (100 * difference.low, 100 * difference.high)
        cells = f"{ours:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}]", f"{theirs:+.1f}"
        protocol = " - ".join(dict.fromkeys(each.protocol for each in both))
        departs = any(each.departs for each in both)
        rows.append(
            (
                name,
                protocol,
                f"{difference.seeds} × {difference.tasks}",
                *cells,
                *_judged(ours - theirs, interval, ours, error, departs),
            )
        )
    header = (
        "beside the paper, points",
        "protocol",
        "n",
        "measured [95 %]",
        "the paper's",
        "measured - the paper's [95 %]",
        "verdict",
    )
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
    known, found = known_of(arm, key), arm.last(key)
    if known is None or not found:
        return []
    rows = list[tuple[str, ...]]()
    for column, what, measured in (
        ("All", "success", rate(arm.outcomes(key))),
        ("Score", "score", pooled_score(found)),
    ):
        if measured is None or column not in known.row.columns:
            continue
        theirs = known.row.columns[column]
        value, interval = 100 * measured[0], (100 * measured[1][0], 100 * measured[1][1])
        judged = _judged(value - theirs[0], interval, value, standard_error(theirs), known.departs)
        number = " ± ".join(f"{x:.1f}" for x in theirs)
        rows.append(
            (
                f"{arm.label}: {what} ({known.row.label})",
                known.protocol,
                size_cell(arm.outcomes(key)),
                rate_cell(measured),
                number,
                *judged,
            )
        )
    return rows


def _judged(
    difference: float, interval: Interval, centre: float, error: float, departs: bool
) -> tuple[str, str]:
    """(cell of the difference, verdict): our interval around `centre`, each half widened by the paper's
    standard error."""
    low = difference - math.hypot(centre - interval[0], 1.96 * error)
    high = difference + math.hypot(interval[1] - centre, 1.96 * error)
    said = verdict((low, high))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", f"({said})" if departs else said
