"""Row losses and their sums: by hand, by loops, by autograd."""

from __future__ import annotations

import math

import pytest
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch
from paw_hpc.objective import policy_loss as pl
from paw_hpc.objective.plan import micro_batches, plan
from paw_hpc.policy.critic import critic_batch
from tests.factories import random_pool, random_scores, tiny_recipe
from tests.objective import slow

LN2, LN3 = math.log(2), math.log(3)


def f64(*xs: float) -> torch.Tensor:
    return torch.tensor(xs, dtype=torch.float64)


def current(batch: Batch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 log-probs near the old ones on action rows, anywhere on observation rows; and entropies."""
    rng = torch.Generator().manual_seed(seed)
    near = batch.streams["old_logp"].double() + 0.4 * torch.randn(
        batch.num_rows, generator=rng, dtype=torch.float64
    )
    free = -torch.empty(batch.num_rows, dtype=torch.float64).exponential_(0.8, generator=rng)
    return torch.where(batch.row_kind == ACTION, near, free), 3 * torch.rand(
        batch.num_rows, generator=rng, dtype=torch.float64
    )


def test_ppo_clip_by_hand() -> None:
    ratio = f64(1.5, 1.5, 0.5, 0.5, 5.0, 1.1)
    advantage = f64(1.0, -1.0, 1.0, -1.0, -1.0, 2.0)
    args = (ratio.log() - 1.0, torch.full_like(ratio, -1.0), advantage)
    torch.testing.assert_close(pl.ppo_clip(*args, 0.2, 0.2), f64(-1.2, 1.5, -0.5, 0.8, 5.0, -2.2))
    torch.testing.assert_close(
        pl.ppo_clip(*args, 0.2, 0.2, dual_clip=3.0), f64(-1.2, 1.5, -0.5, 0.8, 3.0, -2.2)
    )
    torch.testing.assert_close(pl.ppo_clip(*args, 0.4, 0.3), f64(-1.3, 1.5, -0.5, 0.6, 5.0, -2.2))


def test_ppo_gradient_is_minus_ratio_times_advantage_where_unclipped() -> None:
    logp = f64(math.log(1.1), math.log(1.5), math.log(1.5)).requires_grad_()
    pl.ppo_clip(logp, torch.zeros(3), f64(2.0, 2.0, -2.0), 0.2, 0.2, 3.0).sum().backward()
    torch.testing.assert_close(logp.grad, f64(-2.2, 0.0, 3.0))


def test_kl_estimators_by_hand() -> None:
    # p = 1/2, q = 1/4: k1 = ln 2, k2 = (ln 2)^2 / 2, k3 = 1/2 - 1 + ln 2.
    p, q = f64(-LN2), f64(-2 * LN2)
    assert pl.kl_k1(p, q).item() == pytest.approx(0.693147181)
    assert pl.kl_k2(p, q).item() == pytest.approx(0.240226507)
    assert pl.kl_low_variance(p, q).item() == pytest.approx(0.193147181)
    assert pl.kl_low_variance(f64(-20.0), f64(-1.0)).item() == 10.0


def test_low_variance_kl_is_unbiased() -> None:
    p, q = torch.softmax(f64(0.1, 1.0, -0.5), 0), torch.softmax(f64(0.4, 0.2, 0.3), 0)
    exact = (p * (p / q).log()).sum()
    for estimator in (pl.kl_k1, pl.kl_low_variance):
        torch.testing.assert_close((p * estimator(p.log(), q.log())).sum(), exact)


def test_truncated_importance_weight_by_hand() -> None:
    old = f64(-1.0, -1.0, -1.0).requires_grad_()
    weight = pl.truncated_importance_weight(old, f64(-1.0 - LN3, -1.0 + LN2, -1.0), 2.0)
    torch.testing.assert_close(weight, f64(2.0, 0.5, 1.0))
    assert not weight.requires_grad


def test_clipped_value_loss_by_hand() -> None:
    # Moved from 1 to 2 with clip 0.2, so the near value is 1.2. Target 0: max(4, 1.44) / 2. Target 3: max(1,
    # 3.24) / 2. Unmoved: 4 / 2.
    loss = pl.clipped_value_loss(f64(2.0, 2.0, 1.0), f64(1.0, 1.0, 1.0), f64(0.0, 3.0, 3.0), 0.2)
    torch.testing.assert_close(loss, f64(2.0, 1.62, 2.0))


ARMS = [
    {},
    {"algorithm__clip_low": 0.1, "algorithm__clip_high": 0.3, "algorithm__dual_clip": None},
    {"algorithm__kl_estimator": "k1", "algorithm__kl_coefficient": 0.3, "algorithm__entropy_bonus": 0.05},
    {"algorithm__kl_estimator": "k2", "algorithm__truncated_importance": 1.02, "wm__loss": "mae"},
    {"algorithm__kl_coefficient": 0.0, "wm__loss": "cross_entropy", "algorithm__dual_clip": 1.1},
]


@pytest.mark.parametrize("arm", ARMS)
def test_row_loss_equals_loops(arm: dict) -> None:
    recipe, pool = tiny_recipe(**arm), random_pool(0)
    scores = random_scores(pool)
    batch = plan(pool, scores, recipe, 0).batch
    logp, entropy = current(batch)
    loss = pl.make_row_loss(batch, recipe)(logp, entropy, torch.arange(batch.num_rows))
    s, behaviour = batch.streams, iter([float(x) for t in pool.transitions for x in t.response_logprobs])
    assert scores.ref_logp is not None
    ref = iter(scores.ref_logp.tolist())
    for r in range(batch.num_rows):
        if batch.row_kind[r] == OBSERVATION:
            expected = slow.observation_token_loss(float(logp[r]), recipe)
        else:
            old, advantage = float(s["old_logp"][r]), float(s["advantage"][r])
            expected = slow.action_token_loss(
                float(logp[r]), old, next(ref), next(behaviour), advantage, float(entropy[r]), recipe
            )
        assert loss[r].item() == pytest.approx(float(s["weight"][r]) * expected, abs=1e-12, rel=1e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_row_loss_is_differentiable_in_float64(arm: dict) -> None:
    pool = random_pool(1, groups=2, members=2)
    recipe = tiny_recipe(**arm)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    assert set(batch.row_kind.tolist()) == {ACTION, OBSERVATION}
    batch.streams["weight"] = torch.ones(batch.num_rows)
    logp, entropy = current(batch, seed=1)
    loss = pl.make_row_loss(batch, recipe)
    rows = torch.arange(batch.num_rows)
    assert torch.autograd.gradcheck(
        lambda x, h: loss(x, h, rows), (logp.requires_grad_(), entropy.requires_grad_())
    )


def test_row_loss_of_any_rows_in_any_order() -> None:
    recipe, pool = tiny_recipe(), random_pool(2)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    logp, entropy = current(batch)
    loss = pl.make_row_loss(batch, recipe)
    rows = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(
        loss(logp[rows], entropy[rows], rows), loss(logp, entropy, torch.arange(batch.num_rows))[rows]
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "low_variance"])
def test_an_impossible_observation_token_gives_no_nan(estimator: str) -> None:
    recipe, pool = (
        tiny_recipe(algorithm__kl_estimator=estimator, algorithm__entropy_bonus=0.1),
        random_pool(2),
    )
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    logp, entropy = current(batch)
    logp = torch.where(batch.row_kind == OBSERVATION, -math.inf, logp).requires_grad_()
    loss = pl.make_row_loss(batch, recipe)(logp, entropy.requires_grad_(), torch.arange(batch.num_rows))
    loss.sum().backward()
    assert logp.grad is not None and entropy.grad is not None
    assert loss.isfinite().all() and logp.grad.isfinite().all() and entropy.grad.isfinite().all()


def test_entropy_of_observation_rows_has_no_gradient() -> None:
    recipe, pool = tiny_recipe(algorithm__entropy_bonus=0.1), random_pool(2)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    logp, entropy = current(batch)
    pl.make_row_loss(batch, recipe)(
        logp, entropy.requires_grad_(), torch.arange(batch.num_rows)
    ).sum().backward()
    torch.testing.assert_close(
        entropy.grad, torch.where(batch.row_kind == ACTION, -0.1 * batch.streams["weight"], 0.0).double()
    )


def test_a_batch_of_another_recipe_is_refused() -> None:
    pool = random_pool(0)
    batch = plan(pool, random_scores(pool), tiny_recipe(algorithm__kl_coefficient=0.0), 0).batch
    with pytest.raises(ValueError, match="ref_logp"):
        pl.make_row_loss(batch, tiny_recipe())


def test_metrics_by_hand() -> None:
    # One transition: two action tokens (p 0.5 and 0.8), four observation tokens (p 0.1, 0.125, 0.3, 0.9), rho
    # = 0.2.
    p = f64(0.5, 0.8, 0.1, 0.125, 0.3, 0.9)
    kind = torch.tensor([ACTION] * 2 + [OBSERVATION] * 4, dtype=torch.uint8)
    streams = {
        "weight": f64(0.5, 0.5, 0.25, 0.25, 0.25, 0.25).float(),
        "advantage": f64(1.0, 1.0, 0, 0, 0, 0).float(),
        "old_logp": f64(math.log(0.5), math.log(0.4), 0, 0, 0, 0),
        "ref_logp": f64(math.log(0.25), math.log(0.8), 0, 0, 0, 0),
    }
    empty = torch.zeros(0, dtype=torch.long)
    batch = Batch(
        empty,
        empty,
        torch.tensor([0, 7]),
        empty,
        torch.zeros(6),
        kind,
        torch.tensor([0, 6]),
        streams,
        torch.tensor([0]),
    )
    entropy = f64(1.0, 0.5, 9, 9, 9, 9)
    metrics = pl.finalize(pl.row_metrics(batch, p.log(), entropy, tiny_recipe()))
    k3_ref = 0.5 * (0.5 - 1 + LN2)  # ratio q/p = 1/2 on the first token, 1 on the second
    assert metrics == pytest.approx(
        {
            "policy_loss": (-1.0 - 1.2) / 2 + 0.01 * k3_ref,
            "approx_kl": (2 - 1 - LN2) / 2,
            "ratio_clip_fraction": 0.5,
            "ref_kl": k3_ref,
            "entropy": 0.75,
            "wm_loss": 1.775 / 4,
            "clipped_token_ratio": 0.5,
            "observation_ce": -sum(math.log(x) for x in (0.1, 0.125, 0.3, 0.9)) / 4,
            "observation_p": 1.425 / 4,
        }
    )


@pytest.mark.parametrize("arm", ARMS)
def test_metrics_of_micro_batches_add_up(arm: dict) -> None:
    recipe, pool = tiny_recipe(**arm), random_pool(4, groups=5)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    batch.streams["logp"], batch.streams["entropy"] = (x.float() for x in current(batch))
    whole = pl.finalize(pl.row_metrics(batch, batch.streams["logp"], batch.streams["entropy"], recipe))
    parts = micro_batches(batch, 60)
    assert len(parts) > 5
    sums = [pl.row_metrics(part, part.streams["logp"], part.streams["entropy"], recipe) for part in parts]
    assert all(s.keys() == sums[0].keys() for s in sums), "ranks reduce name by name"
    assert pl.finalize(pl.add_sums(sums)) == pytest.approx(whole, rel=1e-6)


def test_wm_loss_is_the_mean_over_transitions_not_over_tokens() -> None:
    recipe, pool = tiny_recipe(), random_pool(4, groups=5)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    logp, entropy = current(batch)
    means, tokens = [], []
    for n in range(len(batch)):
        rows = range(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
        losses = [
            slow.observation_token_loss(float(logp[r]), recipe)
            for r in rows
            if batch.row_kind[r] == OBSERVATION
        ]
        means += [slow.mean(losses)] if losses else []
        tokens += losses
    assert slow.mean(tokens) != pytest.approx(slow.mean(means), rel=1e-3)
    assert pl.finalize(pl.row_metrics(batch, logp, entropy, recipe))["wm_loss"] == pytest.approx(
        slow.mean(means)
    )


def test_metrics_without_observation_rows() -> None:
    recipe, pool = tiny_recipe(wm__enabled=False), random_pool(0)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    sums = pl.row_metrics(batch, *current(batch), recipe)
    assert {"wm_loss", "observation_ce", "clipped_token_ratio"} <= sums.keys()
    assert (
        not {"wm_loss", "observation_ce", "clipped_token_ratio", "observation_p"} & pl.finalize(sums).keys()
    )


def test_value_loss_and_metrics_equal_loops() -> None:
    recipe, pool = tiny_recipe(algorithm__name="ppo", algorithm__value_coefficient=0.5), random_pool(0)
    scores = random_scores(pool)
    batch = critic_batch(plan(pool, scores, recipe, 0).batch, per_token=False)
    assert scores.values is not None
    values = scores.values + torch.linspace(-1, 1, len(pool))
    loss = pl.make_value_loss(batch, recipe)(values)
    expected = []
    for n in range(len(pool)):
        v, old, target = (float(x[n]) for x in (values, scores.values, batch.streams["value_target"]))
        near = old + min(max(v - old, -0.2), 0.2)
        expected.append(max((v - target) ** 2, (near - target) ** 2) / 2)
    assert loss.tolist() == pytest.approx([0.5 * x / len(pool) for x in expected], rel=1e-5)
    metrics = pl.finalize(pl.value_metrics(batch, values, recipe))
    assert metrics == pytest.approx(
        {"value_loss": slow.mean(expected), "value_mean": float(values.mean())}, rel=1e-5
    )
