"""Eq. 4 and 7-11 one by one: by hand, by loops, and against what they must not be."""

from __future__ import annotations

import math

import pytest
import torch

from paw_hpc.objective import world_model as wm
from tests.factories import random_pool, random_scores
from tests.objective import slow


def f64(*xs: float) -> torch.Tensor:
    return torch.tensor(xs, dtype=torch.float64)


def test_action_entropy_by_hand() -> None:
    # Transition 1 has no action token.
    assert wm.token_entropy_mean(torch.tensor([1.0, 3.0, 0.5]), torch.tensor([0, 0, 2]), 3).tolist() == [
        2.0,
        0.0,
        0.5,
    ]


def test_sampled_token_entropy_by_hand() -> None:
    # -0.5 ln 0.5 = 0.346573590, -0.1 ln 0.1 = 0.230258509; their mean is 0.288416050.
    logp = f64(math.log(0.5), math.log(0.1), math.log(0.5))
    result = wm.sampled_token_entropy_mean(logp, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(result, f64(0.288416050, 0.346573590), rtol=1e-8, atol=0)


def test_action_entropy_equals_loops() -> None:
    pool = random_pool(0)
    scores = random_scores(pool)
    ours = wm.token_entropy_mean(scores.entropy, pool.action_sample, len(pool))
    theirs = [slow.mean(h) for h in slow.per_transition(pool, scores.entropy.tolist())]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))
    sampled = wm.sampled_token_entropy_mean(scores.old_logp, pool.action_sample, len(pool))
    theirs = [
        slow.mean([-math.exp(x) * x for x in xs])
        for xs in slow.per_transition(pool, scores.old_logp.tolist())
    ]
    torch.testing.assert_close(sampled, torch.tensor(theirs, dtype=torch.float64))


def test_selection_by_hand() -> None:
    assert wm.select_top_entropy(torch.tensor([0.1, 0.9, 0.5, 0.9]), 0.75).tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert wm.select_top_entropy(torch.tensor([0.5, 0.5, 0.5, 0.5]), 0.5).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert wm.select_top_entropy(torch.tensor([0.1, 0.5, 0.9, 0.5]), 0.5).tolist() == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_exactly_round_alpha_n_are_kept_and_none_above_the_threshold_is_left(n: int, alpha: float) -> None:
    entropy = torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)).float()
    kept = wm.select_top_entropy(entropy, alpha)
    assert int(kept.sum()) == round(alpha * n)
    if kept.any() and not kept.all():
        assert entropy[kept].min() >= entropy[~kept].max()
    assert int(wm.select_random(n, alpha, 0, 0).sum()) == round(alpha * n)


def test_selection_is_global_not_per_group() -> None:
    entropy, group = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1])
    per_group = torch.cat([wm.select_top_entropy(entropy[group == g], 0.5) for g in (0, 1)])
    assert wm.select_top_entropy(entropy, 0.5).tolist() == [True, True, False, False]
    assert per_group.tolist() == [True, False, True, False]


def test_random_selection_is_a_function_of_seed_and_update() -> None:
    one = wm.select_random(1000, 0.75, 7, 3)
    assert torch.equal(one, wm.select_random(1000, 0.75, 7, 3))
    assert not torch.equal(one, wm.select_random(1000, 0.75, 7, 4))
    assert not torch.equal(one, wm.select_random(1000, 0.75, 8, 3))
    entropy = torch.arange(1000.0)
    assert abs(float(entropy[one].mean() - entropy.mean())) < 20, "a random choice knows nothing of entropy"
    assert float(entropy[wm.select_top_entropy(entropy, 0.75)].mean() - entropy.mean()) > 100


def test_clipped_mae_by_hand() -> None:
    # p = 0.1, 0.125, 0.3, 0.9 at rho = 0.2: 0.9, 0.875, 0, 0. The observation's mean divides by all four
    # tokens: 1.775 / 4.
    losses = wm.clipped_mae(f64(0.1, 0.125, 0.3, 0.9).log(), 0.2)
    torch.testing.assert_close(losses, f64(0.9, 0.875, 0.0, 0.0))
    assert losses.mean().item() == pytest.approx(0.44375)
    assert losses.sum().item() / int((losses > 0).sum()) == pytest.approx(0.8875), (
        "dividing by unmasked tokens only is another loss"
    )


def test_a_token_at_rho_is_still_learnt() -> None:
    logp = f64(math.log(0.25))
    rho = float(logp.exp())
    assert wm.clipped_mae(logp, rho).item() == pytest.approx(0.75)
    assert wm.clipped_mae(logp, math.nextafter(rho, 0.0)).item() == 0.0


def test_losses_equal_loops() -> None:
    logp = -torch.empty(200, dtype=torch.float64).exponential_(
        0.7, generator=torch.Generator().manual_seed(0)
    )
    p = [math.exp(x) for x in logp.tolist()]
    assert wm.clipped_mae(logp, 0.2).tolist() == pytest.approx([1 - q if q <= 0.2 else 0.0 for q in p])
    assert wm.mae(logp).tolist() == pytest.approx([1 - q for q in p])
    assert wm.cross_entropy(logp).tolist() == pytest.approx([-math.log(q) for q in p])
    assert torch.equal(wm.clipped_mae(logp, 1.0), wm.mae(logp)), "rho = 1 clips nothing"
    assert not torch.equal(wm.clipped_mae(logp, 0.2), wm.mae(logp))


def test_target_logit_gradients_by_hand() -> None:
    # Two tokens, target probability 0.1: MAE 0.1 * 0.9 = 0.09 and CE 0.9. At 0.6 > rho the clipped MAE has
    # none, CE still 0.4.
    for p, clipped, plain, ce in ((0.1, 0.09, 0.09, 0.9), (0.6, 0.0, 0.24, 0.4)):
        for loss, expected in (
            (lambda x: wm.clipped_mae(x, 0.2), clipped),
            (wm.mae, plain),
            (wm.cross_entropy, ce),
        ):
            z = f64(math.log(p), math.log(1 - p)).requires_grad_()
            loss(torch.log_softmax(z, 0)[0]).backward()
            assert z.grad is not None
            assert z.grad[0].item() == pytest.approx(-expected, abs=1e-12)


def test_clipped_mae_gradient_over_a_vocabulary() -> None:
    # dl/dz_j = -m p (onehot_j - p_j): against autograd through log-softmax, and against finite differences.
    z = (
        torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        .mul(2)
        .requires_grad_()
    )
    target = torch.randint(4, (20,), generator=torch.Generator().manual_seed(1))

    def total(logits: torch.Tensor) -> torch.Tensor:
        return wm.clipped_mae(torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0], 0.2).sum()

    total(z).backward()
    p = torch.softmax(z.detach(), -1)
    p_target = p.gather(1, target[:, None])
    mask = p_target <= 0.2
    assert 4 < int(mask.sum()) < 16
    onehot = torch.nn.functional.one_hot(target, 4).double()
    torch.testing.assert_close(z.grad, -(mask * p_target) * (onehot - p))
    assert ((p_target - 0.2).abs() > 1e-4).all(), "finite differences must not cross the mask's edge"
    assert torch.autograd.gradcheck(total, (z.detach().requires_grad_(),))


def test_lambda_by_hand() -> None:
    returns = torch.tensor([10.0, 0.0, 10.0, 10.0, 0.0, 0.0, 10.0, 0.0, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert wm.reward_adaptive_coefficient(returns, group, 10.0).tolist() == pytest.approx(
        [0.5, 0.0, 1.0, 2 / 3]
    )


def test_lambda_is_clamped() -> None:
    assert wm.reward_adaptive_coefficient(
        torch.tensor([14.0, -3.0]), torch.tensor([0, 1]), 10.0
    ).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="r_max"):
        wm.reward_adaptive_coefficient(torch.tensor([1.0]), torch.tensor([0]), 0.0)


def test_weights_by_hand() -> None:
    # Three groups; the second has no selected transition and still counts in |G|.
    selected = torch.tensor([True, False, True, False, True, False])
    group = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = wm.transition_weights(selected, group, f64(0.5, 0.8, 1.0))
    assert weights.tolist() == pytest.approx([0.5 / 6, 0.0, 0.5 / 6, 0.0, 1 / 3, 0.0])
    assert weights.sum().item() == pytest.approx((0.5 + 1.0) / 3)


def test_token_weights_by_hand() -> None:
    # Selected observations of 3, 1 and 4 tokens: every token weighs an eighth of its group's lambda.
    selected, group = torch.tensor([True, False, True, False, True]), torch.tensor([0, 0, 0, 1, 1])
    weights = wm.token_weights(selected, group, f64(0.5, 0.8), torch.tensor([3, 9, 1, 9, 4]))
    assert weights.tolist() == pytest.approx([0.5 * 3 / 8, 0.0, 0.5 / 8, 0.0, 0.8 * 4 / 8])
    assert (
        wm.token_weights(torch.zeros(5, dtype=torch.bool), group, f64(0.5, 0.8), torch.ones(5)).tolist()
        == [0.0] * 5
    )


@pytest.mark.parametrize("seed", range(5))
def test_weighted_sum_is_the_nested_mean_of_eq_11(seed: int) -> None:
    pool = random_pool(seed, groups=6)
    rng = torch.Generator().manual_seed(seed)
    selected = torch.rand(len(pool), generator=rng) < 0.3
    losses, coefficient = torch.rand(len(pool), generator=rng).double(), torch.rand(6, generator=rng).double()
    nested = 0.0
    for g in range(6):
        mine = [float(losses[n]) for n in range(len(pool)) if selected[n] and pool.group[n] == g]
        nested += float(coefficient[g]) * slow.mean(mine) / 6 if mine else 0.0
    assert (wm.transition_weights(selected, pool.group, coefficient) * losses).sum().item() == pytest.approx(
        nested
    )
