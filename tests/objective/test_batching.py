"""Mini-batches keep the expectation of the objective, micro-batches keep the objective."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from paw_hpc.experience import Batch
from paw_hpc.objective.plan import micro_batches, mini_batches, plan
from tests.factories import random_pool, random_scores, tiny_recipe
from tests.objective.rows import attach_logp, total

RECIPE = tiny_recipe(algorithm__name="ppo")


def make(seed: int = 0, groups: int = 3) -> Batch:
    pool = random_pool(seed, groups=groups)
    return attach_logp(plan(pool, random_scores(pool), RECIPE, 0).batch)


def test_mini_batches_partition_the_samples_nearly_equally() -> None:
    batch = make()
    for size in (1, 2, 7, len(batch) - 1):
        parts = mini_batches(batch, size, seed=0)
        assert sorted(torch.cat([p.transition for p in parts]).tolist()) == list(range(len(batch)))
        sizes = [len(p) for p in parts]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1 and len(parts) == -(-len(batch) // size)


def test_no_size_is_the_whole_update_untouched() -> None:
    batch = make()
    assert mini_batches(batch, None, 0) == [batch] or mini_batches(batch, None, 0)[0] is batch
    assert mini_batches(batch, len(batch), 0)[0] is batch


def test_mini_batches_are_a_function_of_the_seed() -> None:
    batch = make()
    one, again, other = (
        torch.cat([p.transition for p in mini_batches(batch, 5, seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_mean_of_mini_batch_objectives_weighted_by_size_is_the_objective(size: int) -> None:
    batch = make()
    parts = mini_batches(batch, size, seed=3)
    assert sum(len(p) / len(batch) * total(p, RECIPE) for p in parts) == pytest.approx(
        total(batch, RECIPE), rel=1e-5
    )
    value_weight = sum(len(p) / len(batch) * float(p.sample_streams["value_weight"].sum()) for p in parts)
    assert value_weight == pytest.approx(float(batch.sample_streams["value_weight"].sum()), rel=1e-5)


def test_each_mini_batch_expects_the_full_objective() -> None:
    # Over shuffles, also for the chunk that is smaller than the others; unscaled chunks would expect about a
    # third.
    batch = make(groups=1)
    batch.streams["loss"] = 0.5 + torch.rand(batch.num_rows, generator=torch.Generator().manual_seed(0))
    size = -(-len(batch) // 3)
    assert len(batch) % 3, "one chunk must be smaller"

    def objective(part: Batch) -> float:
        return float((part.streams["weight"] * part.streams["loss"]).sum())

    full = objective(batch)
    draws = np.array([[objective(part) for part in mini_batches(batch, size, seed)] for seed in range(300)])
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - full) < 4 * error).all()
    assert (np.abs(draws.mean(0) / 3 - full) > 20 * error).all()


def test_the_original_is_left_alone() -> None:
    batch = make()
    weight, value_weight = batch.streams["weight"].clone(), batch.sample_streams["value_weight"].clone()
    mini_batches(batch, 3, seed=0)
    assert torch.equal(batch.streams["weight"], weight) and torch.equal(
        batch.sample_streams["value_weight"], value_weight
    )


@pytest.mark.parametrize("max_tokens", [1, 25, 60, 10**6])
def test_micro_batches_respect_the_budget_and_keep_neighbours_alike(max_tokens: int) -> None:
    batch = make(groups=6)
    parts = micro_batches(batch, max_tokens)
    assert sorted(torch.cat([p.transition for p in parts]).tolist()) == list(range(len(batch)))
    assert all(p.num_tokens <= max_tokens or len(p) == 1 for p in parts)
    lengths = torch.cat([p.lengths for p in parts])
    assert (lengths.diff() <= 0).all()
    assert sum(total(p, RECIPE) for p in parts) == pytest.approx(total(batch, RECIPE), rel=1e-12)
    for part, following in itertools.pairwise(parts):
        assert part.num_tokens + int(following.lengths[0]) > max_tokens, (
            "no part ends while the next sample would fit"
        )


def test_sorting_saves_padding() -> None:
    batch = make(groups=6)
    padded = sum(len(p) * int(p.lengths.max()) for p in micro_batches(batch, 100))
    unsorted = [batch.take(torch.arange(i, min(i + 5, len(batch)))) for i in range(0, len(batch), 5)]
    assert padded < 1.1 * batch.num_tokens < sum(len(p) * int(p.lengths.max()) for p in unsorted)
