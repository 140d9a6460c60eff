"""The noise diagnostic (paper, App. A.4): table and figure of what evaluations on WebShop measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from paw_hpc.evaluation.results import EvaluationResult
from paw_hpc.study.report import compare
from paw_hpc.study.report.document import TableBlock
from paw_hpc.study.report.plots import COLOURS, STYLE
from paw_hpc.study.report.runs import Arm, PanelKey

_COLUMNS = (
    ("of all tokens", "token_share"),
    ("cross-entropy", "cross_entropy"),
    ("MAE", "mae"),
    ("clipped MAE", "clipped_mae"),
)
CAPTION = (
    "Share of the gradient on target logits that goes to product ids and brands, on pages of search "
    "results, by loss"
)


def noise_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """One row per policy; None where nothing was measured on this panel."""
    rows = [
        (
            name,
            str(found.noise.transitions),
            f"{found.noise.tokens:,}",
            *(f"{100 * getattr(found.noise, column):.1f}" for _, column in _COLUMNS),
        )
        for name, found in _measured(arms, key)
        if found.noise is not None
    ]
    header = ("gradient on noise, %", "pages", "tokens", *(title for title, _ in _COLUMNS))
    return TableBlock(CAPTION, header, tuple(rows)) if rows else None


def plot_noise(arms: Sequence[Arm], key: PanelKey, path: Path) -> Path | None:
    """Bars per policy and loss, beside the tokens' own share; None (and no file) where nothing was measured
    on this panel."""
    measured = _measured(arms, key)
    if not measured:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.8), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / len(measured)
        for index, (name, found) in enumerate(measured):
            heights = [getattr(found.noise, column) for _, column in _COLUMNS]
            places = [column + (index - (len(measured) - 1) / 2) * width for column in range(len(_COLUMNS))]
            bars = axis.bar(
                places, heights, width=0.92 * width, color=COLOURS[index % len(COLOURS)], label=name
            )
            axis.bar_label(bars, [f"{100 * height:.1f}" for height in heights], fontsize=8, padding=2)
        axis.set_xticks(range(len(_COLUMNS)), [title for title, _ in _COLUMNS])
        axis.set_title("Share of product ids and brands")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(visible=False, axis="x")
        figure.legend(loc="outside upper center", ncols=min(len(measured), 4), fontsize=9)
        figure.savefig(path, dpi=130)
    return path


def _measured(arms: Sequence[Arm], key: PanelKey) -> list[tuple[str, EvaluationResult]]:
    """(policy, its evaluation): before training where all arms began alike, then each arm at its end (its
    first run)."""
    found = [(name, results[0]) for name, results in compare.starts(arms, key)]
    found += [(arm.label, arm.last(key)[0]) for arm in arms if arm.last(key)]
    return [(name, result) for name, result in found if result.noise is not None]
