"""Figures: learning curves of all runs in one grid, and success on a panel by task type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from paw_hpc.study.report.measures import PHASES, phase_seconds, rate
from paw_hpc.study.report.paper import COLUMN_OF
from paw_hpc.study.report.runs import Arm, PanelKey, outcomes_of, panel_key, task_types

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8a8a8a")
"""Okabe and Ito's palette, and grey: distinct under every common colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_PHASE_GREYS = ("#303030", "#5c5c5c", "#858585", "#adadad", "#cfcfcf", "#e8e8e8")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
}
_DPI = 130
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class _Curve:
    title: str
    metric: str
    share: bool = False
    """Shown in percent from 0."""


_CURVES = (
    _Curve("Training success", "train/success", share=True),
    _Curve("World-model loss", "wm/loss"),
    _Curve("Observation cross-entropy (nats/token)", "wm/observation_ce"),
    _Curve("λ (mean over groups)", "train/lambda"),
    _Curve("Clipped observation tokens", "wm/clipped_token_ratio", share=True),
    _Curve("Response length (tokens)", "train/response_tokens"),
    _Curve("Invalid actions", "train/invalid", share=True),
    _Curve("Entropy threshold of the selection (nats)", "wm/entropy_threshold"),
)


def plot_curves(arms: Sequence[Arm], path: Path) -> Path:
    """A grid of small panels against the update. One run: raw points and a smoothed line. Several seeds: the
    mean of their smoothed lines, with a band of one standard deviation over seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 9.2), layout="constrained")
        axes = figure.subplots(3, 3).flat
        for axis, curve in zip(axes, _CURVES, strict=False):
            _draw_curve(axis, curve, arms)
        _draw_phases(axes[len(_CURVES)], arms)
        handles = [Line2D([], [], color=_colour(i), lw=2.2, label=arm.title) for i, arm in enumerate(arms)]
        figure.legend(handles=handles, loc="outside upper center", ncols=_columns(arms, figure), fontsize=10)
        figure.savefig(path, dpi=_DPI)
    return path


def plot_panel(arms: Sequence[Arm], key: PanelKey, path: Path) -> Path:
    """Success on one panel: at every evaluation over the run (left), and at the end per task type (right),
    with 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        over_time, per_type = figure.subplots(1, 2, width_ratios=(1, 1.6))
        for index, arm in enumerate(arms):
            _draw_evaluations(over_time, arm, key, index, len(arms))
        over_time.set_title("All games")
        over_time.set_xlabel("updates done")
        over_time.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_STEPS))
        _draw_types(per_type, arms, key)
        for axis in (over_time, per_type):
            axis.set_ylim(0, 1.02)
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        handles = [
            Line2D([], [], color=_colour(i), marker=_marker(i), lw=1.6, label=arm.title)
            for i, arm in enumerate(arms)
            if arm.last(key)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=_columns(arms, figure), fontsize=10)
        figure.savefig(path, dpi=_DPI)
    return path


def _columns(arms: Sequence[Arm], figure: Figure) -> int:
    """Of a legend above the figure: four at most, fewer where long names would stand out at its sides (a
    letter is about 0.085 inches wide)."""
    widest = 0.085 * max(len(arm.title) for arm in arms) + 0.7
    return max(1, min(len(arms), 4, int(figure.get_figwidth() / widest)))


def smooth(updates: np.ndarray, values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian kernel regression at the same updates: weights exp(-(du / width)^2 / 2), normalised, so that
    gaps and ends need no padding.

    Args:
        updates: int64[n]. values: float64[n]. width: standard deviation of the kernel, in updates.
    """
    weights = np.exp(-0.5 * ((updates[:, None] - updates[None, :]) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


def _draw_curve(axis: Axes, curve: _Curve, arms: Sequence[Arm]) -> None:
    axis.set_title(curve.title)
    drawn = False
    for index, arm in enumerate(arms):
        series = [(u, v) for run in arm.runs for u, v in [run.series(curve.metric)] if u.size]
        drawn = drawn or bool(series)
        if len(series) == 1:
            [(updates, values)] = series
            axis.plot(updates + 1, values, ".", color=_colour(index), ms=5, alpha=0.42, mew=0)
            axis.plot(updates + 1, smooth(updates, values, _width(updates)), color=_colour(index), lw=2.0)
        elif series:
            line, mean, deviation = band(series)
            axis.fill_between(
                line + 1, mean - deviation, mean + deviation, color=_colour(index), alpha=0.16, lw=0
            )
            axis.plot(line + 1, mean, color=_colour(index), lw=2.0)
    if not drawn:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", color="#999999", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    axis.set_xlabel("update")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_STEPS))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_STEPS))
    if curve.share:
        axis.set_ylim(0, max(0.05, min(1.02, axis.get_ylim()[1])))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def band(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(updates, mean, standard deviation) over runs of their smoothed lines, at the updates that all of them
    have reached.

    Args:
        series: (updates int64[n], values float64[n]) per run, at least two.
    """
    last = min(int(updates[-1]) for updates, _ in series)
    line = np.unique(np.concatenate([updates for updates, _ in series]))
    line = line[line <= last]
    smoothed = np.array(
        [np.interp(line, updates, smooth(updates, values, _width(updates))) for updates, values in series]
    )
    return line, smoothed.mean(axis=0), smoothed.std(axis=0, ddof=1)


def _width(updates: np.ndarray) -> float:
    return max(1.0, float(np.ptp(updates)) / 30.0)


def _draw_phases(axis: Axes, arms: Sequence[Arm]) -> None:
    axis.set_title("Seconds per update, by phase")
    seconds = [phase_seconds(arm) for arm in arms]
    longest = max((sum(of_arm.values()) for of_arm in seconds), default=0.0)
    if longest == 0.0:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", color="#999999", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    for row, of_arm in enumerate(seconds):
        left = 0.0
        for grey, phase in zip(_PHASE_GREYS, (*PHASES, "other"), strict=True):
            width = of_arm.get(phase, 0.0)
            axis.barh(
                row,
                width,
                left=left,
                height=0.5,
                color=grey,
                edgecolor="white",
                lw=0.8,
                label=phase if row == 0 and width else None,
            )
            left += width
        axis.text(left + 0.015 * longest, row, f"{left:.2f} s", va="center", fontsize=9)
        axis.plot([-0.02 * longest], [row], marker="s", ms=9, color=_colour(row), clip_on=False)
    axis.set_yticks([])
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.set_xlim(0, 1.2 * longest)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=3,
        fontsize=8.5,
        handlelength=1.0,
        columnspacing=1.2,
    )


def _draw_evaluations(axis: Axes, arm: Arm, key: PanelKey, index: int, count: int) -> None:
    updates = sorted({e.update for run in arm.runs for e in run.evaluations if panel_key(e) == key})
    points = []
    for update in updates:
        found = [
            (run.recipe.seed, e)
            for run in arm.runs
            for e in run.evaluations
            if panel_key(e) == key and e.update == update
        ]
        # a common start is one evaluation, not one of each seed
        shared = found[:1] if len({id(e) for _, e in found}) == 1 else found
        if (measured := rate(outcomes_of(shared))) is not None:
            points.append((update, *_bars(measured)))
    if not points:
        return
    x, y, down, up = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    shift = (index - (count - 1) / 2) * 0.012 * max(1.0, x.max())
    axis.errorbar(
        x + shift,
        y,
        yerr=[down, up],
        color=_colour(index),
        marker=_marker(index),
        ms=6,
        lw=1.6,
        elinewidth=1.2,
        capsize=2.5,
    )


def _draw_types(axis: Axes, arms: Sequence[Arm], key: PanelKey) -> None:
    shown = [(i, arm) for i, arm in enumerate(arms) if arm.last(key)]
    types = task_types(arms, key)
    games = {
        name: max(
            e.per_task_type[name].games for _, arm in shown for e in arm.last(key) if name in e.per_task_type
        )
        for name in types
    }
    step = min(0.18, 0.7 / max(1, len(shown)))
    for place, (index, arm) in enumerate(shown):
        for column, name in enumerate(types):
            measured = rate(arm.outcomes(key, name))
            if measured is None:
                continue
            value, down, up = _bars(measured)
            x = column + (place - (len(shown) - 1) / 2) * step
            axis.errorbar(
                x,
                value,
                yerr=[[down], [up]],
                color=_colour(index),
                marker=_marker(index),
                ms=7,
                elinewidth=1.4,
                capsize=3,
            )
    axis.set_title("By task type, at the end")
    axis.set_xticks(
        range(len(types)), [f"{COLUMN_OF.get(name, name)}\n{games[name]} games" for name in types]
    )
    axis.set_xlim(-0.6, len(types) - 0.4)
    axis.grid(visible=False, axis="x")


def _bars(measured: tuple[float, tuple[float, float]]) -> tuple[float, float, float]:
    value, (low, high) = measured
    return value, max(0.0, value - low), max(0.0, high - value)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]
