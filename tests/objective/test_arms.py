"""Arms and controls are configuration: each differs from PaW in exactly the intended streams."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Pool
from paw_hpc.objective.plan import derange, plan
from tests.factories import random_groups, random_pool, random_scores, tiny_recipe
from tests.objective.rows import attach_logp, identical, row_losses


@pytest.fixture(scope="module")
def pool() -> Pool:
    # Every group fails somewhere, so that every selected transition is trained on.
    return random_pool(20, groups=6, success=0.3, observation=(4, 8), vocabulary=1000)


def planned(pool: Pool, update: int = 0, **overrides):
    return plan(pool, random_scores(pool), tiny_recipe(**overrides), update)


def action_part(batch) -> dict[str, torch.Tensor]:
    """Everything about action rows: what the RL loss sees."""
    action = batch.row_kind == ACTION
    sample = torch.repeat_interleave(torch.arange(len(batch)), batch.row_cu[1:] - batch.row_cu[:-1])
    offset = batch.row_position - batch.cu_seqlens[sample]
    return {
        "target": batch.row_target[action],
        "offset": offset[action],
        "sample": sample[action],
        **{k: v[action] for k, v in batch.streams.items()},
    }


def same_actions(a, b, but: frozenset[str] = frozenset()) -> bool:
    x, y = action_part(a), action_part(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x if k not in but)


def observation_rows(batch) -> torch.Tensor:
    return batch.row_kind == OBSERVATION


@pytest.mark.parametrize(
    "arm",
    [
        {"wm__rho": 1.0},
        {"wm__loss": "mae"},
        {"wm__loss": "cross_entropy"},
    ],
)
def test_loss_arms_differ_in_the_loss_alone(pool: Pool, arm: dict) -> None:
    paw, other = planned(pool).batch, planned(pool, **arm).batch
    assert identical(paw, other)
    attach_logp(paw)
    ours, theirs = row_losses(paw, tiny_recipe()), row_losses(paw, tiny_recipe(**arm))
    assert torch.equal(ours[~observation_rows(paw)], theirs[~observation_rows(paw)])
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("target", ["true", "shuffled"])
def test_the_token_mean_gives_every_observation_token_one_weight(pool: Pool, target: str) -> None:
    echo = {
        "wm__alpha": 1.0,
        "wm__loss": "cross_entropy",
        "wm__coefficient": "constant",
        "wm__scale": 0.05,
        "wm__target": target,
    }
    by_group, by_token = planned(pool, **echo).batch, planned(pool, **echo, wm__aggregation="token").batch
    observation = observation_rows(by_token)
    weights = by_token.streams["weight"][observation]
    torch.testing.assert_close(weights, torch.full_like(weights, 0.05 / len(weights)))
    assert len(by_group.streams["weight"][observation].unique()) > 1
    by_group.streams["weight"] = torch.where(
        observation, by_token.streams["weight"], by_group.streams["weight"]
    )
    assert identical(by_group, by_token)


@pytest.mark.parametrize("factor", [0.02, 0.05])
def test_small_cross_entropy_arms_scale_observation_weights_alone(pool: Pool, factor: float) -> None:
    paw, other = planned(pool).batch, planned(pool, wm__loss="cross_entropy", wm__scale=factor).batch
    observation = observation_rows(paw)
    torch.testing.assert_close(
        other.streams["weight"][observation], paw.streams["weight"][observation] * factor
    )
    other.streams["weight"] = torch.where(observation, paw.streams["weight"], other.streams["weight"])
    assert identical(paw, other)


def test_constant_coefficient_changes_observation_weights_alone(pool: Pool) -> None:
    paw, other = planned(pool), planned(pool, wm__coefficient="constant")
    observation = observation_rows(paw.batch)
    sample = torch.repeat_interleave(torch.arange(len(pool)), paw.batch.row_cu[1:] - paw.batch.row_cu[:-1])
    lam = paw.coefficient[pool.group[sample[observation]]].float()
    assert 0 < float(lam.min()) < 1 and torch.equal(other.coefficient, torch.ones_like(other.coefficient))
    torch.testing.assert_close(
        other.batch.streams["weight"][observation] * lam, paw.batch.streams["weight"][observation]
    )
    other.batch.streams["weight"] = torch.where(
        observation, paw.batch.streams["weight"], other.batch.streams["weight"]
    )
    assert identical(paw.batch, other.batch)


def test_alpha_one_and_random_change_what_is_selected_alone(pool: Pool) -> None:
    paw, everything, random = (
        planned(pool),
        planned(pool, wm__alpha=1.0),
        planned(pool, wm__selection="random"),
    )
    assert everything.selected.tolist() == [len(t.observation_ids) > 0 for t in pool.transitions]
    assert int(random.selected.sum()) == int(paw.selected.sum())
    assert not torch.equal(random.selected, paw.selected)
    for other in (everything, random):
        assert same_actions(paw.batch, other.batch)
        assert other.metrics["lambda_mean"] == paw.metrics["lambda_mean"]
        assert other.metrics["wm_weight"] == pytest.approx(paw.metrics["wm_weight"])
    assert torch.equal(random.selected, planned(pool, wm__selection="random").selected)
    assert not torch.equal(random.selected, planned(pool, wm__selection="random", update=1).selected)


def test_sampled_entropy_changes_what_is_selected_alone(pool: Pool) -> None:
    paw, other = planned(pool), planned(pool, wm__entropy="sampled")
    assert same_actions(paw.batch, other.batch)
    assert int(other.selected.sum()) == int(paw.selected.sum()) and not torch.equal(
        paw.selected, other.selected
    )


def test_vanilla_differs_in_observations_alone(pool: Pool) -> None:
    paw, vanilla = planned(pool).batch, planned(pool, wm__enabled=False).batch
    assert same_actions(paw, vanilla)
    assert paw.num_tokens > vanilla.num_tokens and observation_rows(paw).any()


@pytest.mark.parametrize("loss", ["clipped_mae", "cross_entropy"])
def test_shuffled_control_exchanges_targets_alone(pool: Pool, loss: str) -> None:
    paw, shuffled = planned(pool, wm__loss=loss), planned(pool, wm__loss=loss, wm__target="shuffled")
    assert same_actions(paw.batch, shuffled.batch)
    assert torch.equal(paw.selected, shuffled.selected) and torch.equal(paw.coefficient, shuffled.coefficient)
    assert shuffled.batch.num_tokens == paw.batch.num_tokens
    assert shuffled.batch.num_rows == paw.batch.num_rows
    true, other = targets(paw.batch), targets(shuffled.batch)
    assert true.keys() == other.keys() and Counter(true.values()) == Counter(other.values())
    assert all(true[n] != other[n] for n in true)
    weights, moved = wm_weights(paw.batch), wm_weights(shuffled.batch)
    torch.testing.assert_close(weights, moved)
    assert shuffled.metrics["shuffled_equal_share"] == 0.0 and "shuffled_equal_share" not in paw.metrics
    assert targets(planned(pool, wm__target="shuffled").batch) == other
    assert targets(planned(pool, update=1, wm__target="shuffled").batch) != other


def targets(batch) -> dict[int, tuple[int, ...]]:
    result = {}
    for n in range(len(batch)):
        rows = slice(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
        ids = batch.row_target[rows][batch.row_kind[rows] == OBSERVATION]
        if len(ids):
            result[n] = tuple(ids.tolist())
    return result


def wm_weights(batch) -> torch.Tensor:
    """float32[N]: the world-model weight of each transition."""
    sample = torch.repeat_interleave(torch.arange(len(batch)), batch.row_cu[1:] - batch.row_cu[:-1])
    return torch.zeros(len(batch)).index_add(0, sample, batch.streams["weight"] * observation_rows(batch))


def test_equal_observations_are_reported_by_the_shuffled_control() -> None:
    groups = random_groups(21, success=0.0)
    for group in groups:
        for episode in group.episodes:
            for t in episode.transitions:
                t.observation_ids = np.array([1, 2, 3], dtype=np.int32)
    assert planned(Pool.from_groups(groups), wm__target="shuffled").metrics["shuffled_equal_share"] == 1.0


def test_a_single_target_cannot_be_shuffled_and_is_left_out() -> None:
    pool = random_pool(22, success=0.0)
    alpha = 1.2 / sum(len(t.observation_ids) > 0 for t in pool.transitions)
    assert planned(pool, wm__alpha=alpha).metrics["wm_transitions"] == 1
    control = planned(pool, wm__alpha=alpha, wm__target="shuffled")
    assert control.metrics["wm_transitions"] == 0 and control.metrics["wm_weight"] == 0
    assert identical(control.batch, planned(pool, wm__enabled=False).batch)


@pytest.mark.parametrize("k", [2, 3, 10, 101])
def test_derangement_leaves_nothing_in_place(k: int) -> None:
    items = list(range(100, 100 + k))
    for update in range(20):
        moved = derange(items, 0, update)
        assert sorted(moved) == items and all(a != b for a, b in zip(items, moved, strict=True))
    assert k == 2 or len({tuple(derange(items, 0, u)) for u in range(20)}) > 1
    assert derange([], 0, 0) == []


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "gigpo", "ppo"])
@pytest.mark.parametrize(
    "change", [{"algorithm__penalty": "after_normalization"}, {"env__invalid_penalty": 1.0}]
)
def test_the_penalty_changes_advantages_alone(pool: Pool, algorithm: str, change: dict) -> None:
    one, other = planned(pool, algorithm__name=algorithm), planned(pool, algorithm__name=algorithm, **change)
    assert same_actions(one.batch, other.batch, but=frozenset({"advantage"}))
    assert not torch.equal(one.advantage, other.advantage)
    assert targets(one.batch) == targets(other.batch) and torch.equal(
        wm_weights(one.batch), wm_weights(other.batch)
    )


def test_penalty_by_hand() -> None:
    # One group of two failures; member 0 has one invalid action of two, member 1 none.
    groups = random_groups(0, groups=1, members=2, max_steps=1, success=0.0, invalid=0.0)
    first = groups[0].episodes[0]
    first.transitions = [
        first.transitions[0],
        *random_groups(1, groups=1, members=1, max_steps=1, success=0.0, invalid=1.0)[0]
        .episodes[0]
        .transitions,
    ]
    first.transitions[1].step = 1
    pool = Pool.from_groups(groups)
    assert pool.valid.tolist() == [True, False, True]
    # Inside: returns -0.1 and 0, deviation -+0.05, std 0.0707107: a penalty of 0.1 becomes a signal of 0.7,
    # for the valid action too.
    assert planned(pool).advantage.tolist() == pytest.approx([-0.707097, -0.707097, 0.707097], abs=1e-5)
    assert planned(pool, algorithm__normalize_std=False).advantage.tolist() == pytest.approx(
        [-0.05, -0.05, 0.05]
    )
    # Outside: the group has no contrast, the invalid action alone pays.
    assert planned(pool, algorithm__penalty="after_normalization").advantage.tolist() == pytest.approx(
        [0.0, -0.1, 0.0]
    )


@pytest.mark.parametrize("aggregation", ["transition", "episode"])
def test_aggregation_changes_action_weights_alone(pool: Pool, aggregation: str) -> None:
    one, other = planned(pool).batch, planned(pool, algorithm__aggregation=aggregation).batch
    assert same_actions(one, other, but=frozenset({"weight"})) and not same_actions(one, other)
    assert torch.equal(wm_weights(one), wm_weights(other))


def test_optional_streams_exist_only_where_they_are_used(pool: Pool) -> None:
    assert set(planned(pool).batch.streams) == {"weight", "advantage", "old_logp", "ref_logp"}
    assert set(planned(pool, algorithm__kl_coefficient=0.0).batch.streams) == {
        "weight",
        "advantage",
        "old_logp",
    }
    streams = planned(pool, algorithm__truncated_importance=2.0).batch.streams
    assert set(streams) == {"weight", "advantage", "old_logp", "ref_logp", "behaviour_logp"}
