"""Uncertainty of measured proportions and means, thin over SciPy.

Episodes of one game are not independent, so every interval here resamples or counts games, never episodes of
the same game. An interval over games alone speaks of the games that might have been drawn and of the sampling
of the policy; only one over games and seeds (`crossed_mean`) speaks of training again with another seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Interval = tuple[float, float]
Array = npt.NDArray[np.float64]

RESAMPLES = 9_999
"""Bootstrap and permutation resamples: the Monte Carlo error of a 95 % bound is then far below the rounding
of a table."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of independent trials (Wilson 1927).

    Raises:
        ValueError: no trial, or successes outside 0..trials.
    """
    return _bounds(stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson"))


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of sum(numerators) / sum(denominators) with whole clusters resampled
    (Davison and Hinkley 1997, section 3.8).

    For example nats and tokens per transition with the game as cluster: the interval of a cross-entropy per
    token. With one cluster there is nothing to resample and the interval is the point itself.

    Args:
        numerators, denominators, clusters: one entry per observation, equal lengths. Denominators are
            positive in sum.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: unequal lengths or nothing to resample.
    """
    if not len(numerators) == len(denominators) == len(clusters) > 0:
        raise ValueError(
            f"{len(numerators)} numerators, {len(denominators)} denominators and {len(clusters)} clusters: "
            "need one of each per observation"
        )
    place = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = [place[cluster] for cluster in clusters]
    above = np.bincount(index, weights=np.asarray(numerators, dtype=float)).astype(float)
    below = np.bincount(index, weights=np.asarray(denominators, dtype=float)).astype(float)
    if len(place) == 1:
        point = float(above[0] / below[0])
        return point, point

    def ratio(a: Array, b: Array, axis: int = -1) -> Array:
        return a.sum(axis=axis) / b.sum(axis=axis)

    return _percentile_interval((above, below), ratio, confidence, seed)


def cluster_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of mean(values) with whole clusters (games) resampled; see
    `ratio_interval`."""
    return ratio_interval(values, [1.0] * len(values), clusters, confidence=confidence, seed=seed)


def stratified_mean(
    values: Sequence[float],
    strata: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, Interval]:
    """The unweighted mean of the strata's means, and its percentile bootstrap interval with whole clusters
    resampled within each stratum.

    For example success on several sets of questions, the set being the stratum and the question the cluster.

    Args:
        values, strata, clusters: one entry per observation, equal lengths.

    Raises:
        ValueError: unequal lengths or no observation.
    """
    if not len(values) == len(strata) == len(clusters) > 0:
        raise ValueError(
            f"{len(values)} values, {len(strata)} strata and {len(clusters)} clusters: need one of each "
            "per observation"
        )
    rng, means, resampled = np.random.default_rng(seed), [], np.zeros(RESAMPLES)
    names = list(dict.fromkeys(strata))
    for name in names:
        sums: dict[Hashable, list[float]] = {}
        for value, stratum, cluster in zip(values, strata, clusters, strict=True):
            if stratum == name:
                sums.setdefault(cluster, []).append(float(value))
        above, below = np.array([sum(v) for v in sums.values()]), np.array([len(v) for v in sums.values()])
        means.append(above.sum() / below.sum())
        for first in range(0, RESAMPLES, 500):  # a few at a time: a set may have fourteen thousand questions
            draws = rng.integers(len(above), size=(min(500, RESAMPLES - first), len(above)))
            resampled[first : first + len(draws)] += above[draws].sum(1) / below[draws].sum(1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled / len(names), [tail, 100 - tail])
    return float(np.mean(means)), (float(low), float(high))


def success_interval(
    successes: Sequence[bool], games: Sequence[Hashable], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of a success rate: Wilson where every game was played once, else the cluster bootstrap
    over games.

    Where all games have the same rate (all won, all lost) a bootstrap would have no width; Wilson over the
    games, as if each had been played once, is then used: it is the wider of the two.

    Raises:
        ValueError: no episode, or unequal lengths.
    """
    if not len(successes) == len(games) > 0:
        raise ValueError(
            f"{len(successes)} outcomes and {len(games)} games: need one game per outcome, and at least one"
        )
    outcomes: dict[Hashable, list[bool]] = {}
    for game, success in zip(games, successes, strict=True):
        outcomes.setdefault(game, []).append(bool(success))
    rates = [sum(of_game) / len(of_game) for of_game in outcomes.values()]
    if len(rates) == len(games) or len(set(rates)) == 1:
        return wilson_interval(round(sum(rates)), len(rates), confidence)
    return cluster_interval([float(s) for s in successes], games, confidence=confidence, seed=seed)


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """The mean of a table seeds x tasks, for other seeds and other tasks."""

    mean: float
    low: float
    high: float
    p_value: float
    """Two-sided, of a true mean of 0."""
    seeds: int
    tasks: int


def crossed_mean(table: npt.ArrayLike, *, confidence: float = 0.95) -> CrossedMean:
    """Mean and interval of a complete table whose rows (seeds) and columns (tasks) are both samples: the
    two-way random-effects variance Vs + Vt - Ve with Student's t at Satterthwaite's degrees of freedom
    (Searle, Casella and McCulloch 1992, chapter 4).

    A bootstrap over both counts the noise of single cells three times (Owen 2007, the pigeonhole bootstrap):
    with few episodes per cell its intervals are up to 1.7 times too wide, while one over tasks alone leaves
    out the seeds. Neither fault is here (tested by coverage).

    Args:
        table: [seeds, tasks], a cell is the mean of that seed's episodes of that task.

    Raises:
        ValueError: fewer than two seeds or two tasks.
    """
    x = np.asarray(table, dtype=float)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"a table of shape {x.shape}: need at least two seeds and two tasks")
    (s, t), mean = x.shape, float(x.mean())
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    residual = x - rows[:, None] - columns[None, :] + mean
    of_seeds, of_tasks = rows.var(ddof=1) / s, columns.var(ddof=1) / t
    of_cells = (residual**2).sum() / ((s - 1) * (t - 1)) / (s * t)
    # Never below either part: the difference of three estimates can fall short of what it estimates, which
    # each of them bounds from below.
    variance = max(of_seeds + of_tasks - of_cells, of_seeds, of_tasks)
    if variance <= 1e-18:
        return CrossedMean(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, s, t)
    freedom = variance**2 / (
        of_seeds**2 / (s - 1) + of_tasks**2 / (t - 1) + of_cells**2 / ((s - 1) * (t - 1))
    )
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * variance**0.5
    p = float(2 * stats.t.sf(abs(mean) / variance**0.5, freedom))
    return CrossedMean(mean, mean - half, mean + half, p, s, t)


def crossed_table(outcomes: Mapping[int, Mapping[str, Sequence[float]]]) -> Array:
    """float64[seeds, tasks] of the tasks that every seed played, from seed -> task -> outcomes (repeats)."""
    tasks = sorted(set.intersection(*(set(of_seed) for of_seed in outcomes.values()))) if outcomes else []
    return np.array([[np.mean(of_seed[task]) for task in tasks] for of_seed in outcomes.values()]).reshape(
        len(outcomes), len(tasks)
    )


def crossed_rate(
    outcomes: Mapping[int, Mapping[str, Sequence[float]]], *, confidence: float = 0.95
) -> Interval:
    """The interval of a success rate for other seeds and other tasks, within [0, 1]. Where nothing varies,
    Wilson's over the tasks.

    Args:
        outcomes: seed -> task -> outcomes (0, 1) of its repeats; at least two seeds with two tasks in common.
    """
    table = crossed_table(outcomes)
    if np.ptp(table) == 0:
        return wilson_interval(round(float(table[0].sum())), table.shape[1], confidence)
    found = crossed_mean(table, confidence=confidence)
    return max(0.0, found.low), min(1.0, found.high)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean over tasks (and seeds) of (b - a), with its interval and the two-sided p-value of `no
    difference`."""

    difference: float
    low: float
    high: float
    p_value: float
    tasks: int
    seeds: int = 1
    """Pairs of seeds that the interval is over; 1: it is over tasks alone."""
    favourable: int | None = None
    """Seeds whose own difference is positive; None where the interval is over tasks alone."""


def paired_over_seeds(
    a: Mapping[int, Mapping[str, Sequence[float]]],
    b: Mapping[int, Mapping[str, Sequence[float]]],
    *,
    confidence: float = 0.95,
) -> PairedDifference:
    """Arm b minus arm a, paired by task and by seed, for other tasks and other seeds (`crossed_mean` of the
    differences).

    A single seed on one side only (a policy that was not trained) is paired with every seed of the other.
    Where fewer than two pairs of seeds are left, the difference is over tasks alone (`paired_difference`).

    Args:
        a, b: seed -> task -> outcomes of its repeats.

    Raises:
        ValueError: no task in common.
    """
    if len(a) == 1 < len(b):
        a = dict.fromkeys(b, next(iter(a.values())))
    elif len(b) == 1 < len(a):
        b = dict.fromkeys(a, next(iter(b.values())))
    seeds = [seed for seed in a if seed in b]
    tables = crossed_table(
        {2 * i + side: arm[seed] for i, seed in enumerate(seeds) for side, arm in enumerate((a, b))}
    )
    if len(seeds) < 2 or tables.shape[1] < 2:
        return paired_difference(_over_seeds(a), _over_seeds(b), confidence=confidence)
    differences = tables[1::2] - tables[::2]
    found = crossed_mean(differences, confidence=confidence)
    favourable = int((differences.mean(axis=1) > 0).sum())
    return PairedDifference(
        found.mean, found.low, found.high, found.p_value, found.tasks, found.seeds, favourable
    )


def _over_seeds(outcomes: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    merged: dict[str, list[float]] = {}
    for of_seed in outcomes.values():
        for task, values in of_seed.items():
            merged.setdefault(task, []).extend(values)
    return merged


def paired_difference(
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Arm b minus arm a on the same tasks: bootstrap interval over tasks and sign-flip permutation test
    (exact where 2^tasks <= RESAMPLES).

    Args:
        a, b: task -> outcomes of that task (repeats, seeds), in any number; a task counts once, with its
            mean. Tasks of only one arm are left out.

    Raises:
        ValueError: no task in common.
    """
    tasks = sorted(a.keys() & b.keys())
    if not tasks:
        raise ValueError("the two arms have no task in common")
    differences = np.array([np.mean(b[task]) - np.mean(a[task]) for task in tasks])
    mean = float(differences.mean())
    low, high = cluster_interval(differences.tolist(), tasks, confidence=confidence, seed=seed)
    if not differences.any():
        return PairedDifference(mean, low, high, 1.0, len(tasks))

    def statistic(d: Array, axis: int = -1) -> Array:
        return d.mean(axis=axis)

    test = stats.permutation_test(
        (differences,),
        statistic,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return PairedDifference(mean, low, high, float(test.pvalue), len(tasks))


def _percentile_interval(
    data: tuple[Array, ...], statistic: object, confidence: float, seed: int
) -> Interval:
    # The percentile method keeps a rate inside [0, 1] and is defined for few and for equal values, where BCa
    # is not.
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return _bounds(result.confidence_interval)


def _bounds(interval: Any) -> Interval:
    return float(interval.low), float(interval.high)
