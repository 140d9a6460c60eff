"""Intervals against known values, closed forms and slow implementations; repeats of a game are not new
games."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from paw_hpc.evaluation import statistics
from paw_hpc.evaluation.statistics import (
    cluster_interval,
    crossed_mean,
    crossed_rate,
    paired_difference,
    paired_over_seeds,
    ratio_interval,
    stratified_mean,
    success_interval,
    wilson_interval,
)


def wilson_by_hand(successes: int, trials: int) -> tuple[float, float]:
    z, p = 1.959963984540054, successes / trials
    centre, scale = p + z * z / (2 * trials), 1 + z * z / trials
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return (centre - half) / scale, (centre + half) / scale


@pytest.mark.parametrize(("successes", "trials"), [(18, 40), (1, 3), (0, 10), (10, 10), (98, 140)])
def test_wilson_is_its_closed_form(successes: int, trials: int) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(wilson_by_hand(successes, trials), abs=1e-12)


def test_wilson_has_the_tabulated_values() -> None:
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson_interval(17, 40) == pytest.approx((0.2851, 0.5780), abs=5e-5)


def slow_ratio_bootstrap(
    numerators: list[float], denominators: list[float], clusters: list[str], rounds: int = 4000
) -> tuple[float, float]:
    rng = np.random.default_rng(123)
    names = sorted(set(clusters))
    found = []
    for _ in range(rounds):
        above = below = 0.0
        for name in rng.choice(names, size=len(names)):
            for n, d, c in zip(numerators, denominators, clusters, strict=True):
                if c == name:
                    above, below = above + n, below + d
        found.append(above / below)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def test_the_bootstrap_equals_a_slow_one_with_unequal_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = [f"game{i}" for i in range(12) for _ in range(1 + i % 3)]
    tokens = rng.integers(5, 50, len(clusters)).astype(float).tolist()
    nats = [t * rng.gamma(2.0, 0.5) for t in tokens]
    low, high = ratio_interval(nats, tokens, clusters)
    slow_low, slow_high = slow_ratio_bootstrap(nats, tokens, clusters)
    assert (low, high) == pytest.approx((slow_low, slow_high), abs=0.08 * (high - low))
    assert low < sum(nats) / sum(tokens) < high


def test_playing_a_game_again_with_the_same_result_adds_nothing() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    games = list("abcdefgh")
    once = cluster_interval(values, games)
    assert cluster_interval(values * 5, games * 5) == pytest.approx(once, abs=1e-12)
    # The negative control: taken as forty games, the interval shrinks.
    as_if_independent = cluster_interval(values * 5, [f"{g}{i}" for i in range(5) for g in games])
    assert as_if_independent[1] - as_if_independent[0] < 0.6 * (once[1] - once[0])


def test_the_interval_covers_the_truth_and_one_that_ignores_games_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 399)
    rng = np.random.default_rng(7)
    covered, naive, rounds = 0, 0, 250
    for _ in range(rounds):
        # games are mostly easy or hard: repeats of one agree; the mean rate is 0.5
        rates = rng.beta(0.5, 0.5, size=40)
        wins = rng.random((40, 6)) < rates[:, None]
        flat, games = wins.ravel().tolist(), np.repeat(np.arange(40), 6).tolist()
        low, high = success_interval(flat, games)
        covered += low <= 0.5 <= high
        low, high = wilson_interval(sum(flat), len(flat))
        naive += low <= 0.5 <= high
    assert 0.89 <= covered / rounds <= 0.99
    assert naive / rounds < 0.80


def test_the_success_interval_takes_wilson_where_games_are_played_once() -> None:
    assert success_interval([True, False, True], ["a", "b", "c"]) == wilson_interval(2, 3)
    assert success_interval([True, False, True, True], ["a", "a", "b", "b"]) == cluster_interval(
        [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    )


def test_all_won_is_not_certainty() -> None:
    assert success_interval([True] * 8, list("aabbccdd")) == wilson_interval(4, 4)
    assert success_interval([False] * 8, list("aabbccdd")) == wilson_interval(0, 4)
    assert success_interval([True, False] * 4, list("aabbccdd")) == wilson_interval(2, 4)


def slow_sign_flip(differences: list[float]) -> float:
    observed = abs(sum(differences))
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(f >= observed - 1e-12 for f in flips) / len(flips)


def test_the_permutation_test_is_exact_on_few_tasks() -> None:
    rng = np.random.default_rng(3)
    a = {f"t{i}": rng.random(3).tolist() for i in range(9)}
    b = {f"t{i}": (rng.random(3) + 0.15).tolist() for i in range(9)}
    result = paired_difference(a, b)
    differences = [float(np.mean(b[t]) - np.mean(a[t])) for t in sorted(a)]
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.p_value == pytest.approx(slow_sign_flip(differences), abs=1e-9)
    slow = slow_ratio_bootstrap(differences, [1.0] * 9, sorted(a))
    assert (result.low, result.high) == pytest.approx(slow, abs=0.08 * (result.high - result.low))
    assert 0.0 < result.p_value < 1.0


def test_pairing_finds_what_unpaired_intervals_cannot() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.random(60)
    a = {f"t{i}": [d] for i, d in enumerate(difficulty)}
    b = {
        f"t{i}": [d + 0.05 + 0.02 * e]
        for i, (d, e) in enumerate(zip(difficulty, rng.normal(size=60), strict=True))
    }
    paired = paired_difference(a, b)
    assert paired.low > 0.03 and paired.p_value < 0.001
    apart = [cluster_interval([v[0] for v in arm.values()], list(arm)) for arm in (a, b)]
    assert apart[0][1] > apart[1][0]


def test_equal_arms_differ_by_nothing_and_unshared_tasks_are_left_out() -> None:
    a = {"x": [1.0], "y": [0.0], "only a": [1.0]}
    b = {"x": [1.0, 1.0], "y": [0.0], "only b": [1.0]}
    result = paired_difference(a, b)
    assert (result.difference, result.low, result.high, result.p_value, result.tasks) == (
        0.0,
        0.0,
        0.0,
        1.0,
        2,
    )


def test_the_same_seed_gives_the_same_interval() -> None:
    values, games = np.random.default_rng(1).random(30).tolist(), [f"g{i // 2}" for i in range(30)]
    assert cluster_interval(values, games) == cluster_interval(values, games)
    assert cluster_interval(values, games, seed=1) != cluster_interval(values, games, seed=2)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="no task in common"):
        paired_difference({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="at least one"):
        success_interval([], [])
    with pytest.raises(ValueError, match="one of each"):
        ratio_interval([1.0], [1.0, 2.0], ["a"])


class TestTheMeanOfStrata:
    def test_weighs_strata_alike_whatever_their_size(self) -> None:
        mean, (low, high) = stratified_mean(
            [1.0] * 30 + [0.0] * 30 + [1.0] * 4, ["a"] * 60 + ["b"] * 4, list(range(64))
        )
        assert mean == 0.75 and low < 0.75 < high

    def test_has_the_interval_of_the_sum_of_its_variances(self) -> None:
        rng = np.random.default_rng(0)
        sizes, rates = (400, 100), (0.3, 0.6)
        values = [float(rng.random() < p) for n, p in zip(sizes, rates, strict=True) for _ in range(n)]
        mean, (low, high) = stratified_mean(values, ["a"] * 400 + ["b"] * 100, list(range(500)))
        means = [np.mean(values[:400]), np.mean(values[400:])]
        error = math.sqrt(sum(m * (1 - m) / n for m, n in zip(means, sizes, strict=True))) / 2
        assert mean == pytest.approx(np.mean(means)) and (high - low) / 2 == pytest.approx(
            1.96 * error, rel=0.05
        )

    def test_of_one_stratum_is_the_cluster_bootstrap(self) -> None:
        values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b", "c", "d", "e", "e"]
        mean, interval = stratified_mean(values, ["s"] * 8, clusters)
        assert mean == 0.5 and interval == pytest.approx(cluster_interval(values, clusters), abs=0.05)

    def test_of_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="need one of each"):
            stratified_mean([], [], [])


def crossed(
    rng: np.random.Generator, seeds: int, tasks: int, of_seed: float, of_task: float, of_cell: float
) -> np.ndarray:
    """[seeds, tasks] with a true mean of 0."""
    return (
        rng.normal(0, of_seed, (seeds, 1))
        + rng.normal(0, of_task, (1, tasks))
        + rng.normal(0, of_cell, (seeds, tasks))
    )


class TestSeedsAndTasks:
    @pytest.mark.parametrize(
        ("of_seed", "of_task", "of_cell"), [(0.1, 0.1, 0.3), (0.15, 0.05, 0.1), (0.0, 0.2, 0.5)]
    )
    def test_the_interval_covers_the_truth_whatever_varies(
        self, of_seed: float, of_task: float, of_cell: float
    ) -> None:
        rng, covered, over_tasks, rounds = np.random.default_rng(2), 0, 0, 500
        for _ in range(rounds):
            table = crossed(rng, 5, 40, of_seed, of_task, of_cell)
            found = crossed_mean(table)
            covered += found.low <= 0 <= found.high
            means = table.mean(axis=0)
            over_tasks += abs(means.mean()) < 1.96 * means.std(ddof=1) / math.sqrt(40)
        assert 0.93 <= covered / rounds <= 0.995
        if of_seed:  # the negative control: an interval over tasks alone knows nothing of seeds
            assert over_tasks / rounds < 0.8

    def test_it_is_narrower_than_a_bootstrap_over_both_where_cells_are_noisy(self) -> None:
        rng = np.random.default_rng(4)
        table = crossed(rng, 20, 40, 0.0, 0.0, 0.5)
        found = crossed_mean(table)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=2000) / n for n in table.shape]
        pigeonhole = np.einsum("bs,st,bt->b", weights[0], table, weights[1])
        assert found.high - found.low < 0.8 * np.ptp(np.quantile(pigeonhole, [0.025, 0.975]))

    def test_two_seeds_that_differ_by_the_same_everywhere_are_a_t_test_of_two(self) -> None:
        found = crossed_mean([[0.1] * 30, [0.3] * 30])
        assert (found.mean, found.seeds, found.tasks) == (pytest.approx(0.2), 2, 30)
        # t of one degree of freedom; standard error 0.1
        assert found.high - found.mean == pytest.approx(12.706 * 0.1, rel=1e-3)

    def test_a_constant_table_has_no_width_and_a_single_row_is_refused(self) -> None:
        assert crossed_mean(np.zeros((3, 4))) == statistics.CrossedMean(0.0, 0.0, 0.0, 1.0, 3, 4)
        with pytest.raises(ValueError, match="two seeds and two tasks"):
            crossed_mean([[1.0, 0.0]])

    def test_rates_stay_rates(self) -> None:
        won = {seed: {f"g{i}": [1.0] for i in range(8)} for seed in range(3)}
        assert crossed_rate(won) == wilson_interval(8, 8)
        nearly = {seed: {f"g{i}": [float(i > 0 or seed > 0)] for i in range(8)} for seed in range(3)}
        low, high = crossed_rate(nearly)
        assert 0.0 < low < 23 / 24 < high == 1.0

    def test_pairs_are_of_the_same_seed(self) -> None:
        """Seeds that lift both arms alike cancel; paired with the wrong ones they do not."""
        rng = np.random.default_rng(6)
        lift = [0.0, 0.2, 0.4]
        a = {s: {f"g{i}": [lift[s] + rng.normal(0, 0.02)] for i in range(10)} for s in range(3)}
        b = {
            s: {f"g{i}": [a[s][f"g{i}"][0] + 0.05 + rng.normal(0, 0.01)] for i in range(10)} for s in range(3)
        }
        paired = paired_over_seeds(a, b)
        assert paired.low > 0.03 and (paired.seeds, paired.tasks, paired.favourable) == (3, 10, 3)
        wrong = paired_over_seeds(a, {s: b[(s + 1) % 3] for s in range(3)})
        assert wrong.low < 0 and wrong.favourable == 2

    def test_one_policy_without_seeds_is_paired_with_every_seed(self) -> None:
        start = {7: {"x": [0.0, 1.0], "y": [0.0]}}
        end = {s: {"x": [1.0], "y": [float(s)]} for s in (0, 1)}
        assert paired_over_seeds(start, end).difference == pytest.approx(((0.5 + 0.0) + (0.5 + 1.0)) / 4)
        assert paired_over_seeds(end, start).difference == -paired_over_seeds(start, end).difference

    def test_without_two_pairs_it_is_over_tasks_alone(self) -> None:
        a, b = {0: {"x": [0.0], "y": [1.0], "z": [0.0]}}, {1: {"x": [1.0], "y": [1.0], "z": [1.0]}}
        assert paired_over_seeds(a, b) == paired_difference(a[0], b[1])
