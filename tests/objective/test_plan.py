"""The plan: rows stand where they should, eq. 11 comes out, and nothing depends on order or packing."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Pool, Scores
from paw_hpc.objective.plan import micro_batches, plan, world_model_scale
from paw_hpc.system.errors import TrainingError
from tests.factories import random_groups, random_pool, random_scores, tiny_recipe
from tests.objective import slow
from tests.objective.rows import attach_logp, by_transition, identical, row_losses, total

ALGORITHMS = ["grpo", "rloo", "gigpo", "ppo"]
NAMED: dict[str, dict[str, object]] = {
    **{name: {"name": name} for name in ALGORITHMS},
    "gigpo-observation": {"name": "gigpo", "gigpo_anchor": "observation"},
    "ppo-tokens": {"name": "ppo", "ppo_advantages": "tokens", "token_gamma": 0.9, "token_lambda": 0.8},
}


def sample_rows(batch, n: int, kind: int) -> torch.Tensor:
    rows = torch.arange(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
    return rows[batch.row_kind[rows] == kind]


def test_samples_and_rows_are_those_of_the_transitions() -> None:
    pool = random_pool(0)
    result = plan(pool, random_scores(pool), tiny_recipe(), 0)
    batch, kinds = result.batch, set()
    for n, t in enumerate(pool.transitions):
        start, end = batch.cu_seqlens[n : n + 2].tolist()
        action, observation = sample_rows(batch, n, ACTION), sample_rows(batch, n, OBSERVATION)
        parts = [
            t.prompt_ids,
            t.response_ids,
            *([t.bridge_ids, t.observation_ids] if len(observation) else []),
        ]
        kinds.add(len(observation) > 0)
        assert batch.tokens[start:end].tolist() == np.concatenate(parts).tolist()
        assert batch.position_ids[start:end].tolist() == list(range(end - start))
        assert batch.row_target[action].tolist() == t.response_ids.tolist()
        first = start + len(t.prompt_ids) - 1
        assert batch.row_position[action].tolist() == list(range(first, first + len(t.response_ids)))
        if len(observation):
            assert batch.row_target[observation].tolist() == t.observation_ids.tolist()
            assert batch.row_position[observation].tolist() == list(
                range(end - 1 - len(t.observation_ids), end - 1)
            )
    assert kinds == {True, False}, "both kinds of transition must occur"
    assert torch.equal(batch.row_target, batch.tokens[batch.row_position + 1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_action_streams_are_those_of_the_scores(algorithm: str) -> None:
    pool, recipe = random_pool(1), tiny_recipe(algorithm__name=algorithm, algorithm__truncated_importance=2.0)
    scores = random_scores(pool)
    batch = plan(pool, scores, recipe, 0).batch
    action = batch.row_kind == ACTION
    assert torch.equal(batch.streams["old_logp"][action], scores.old_logp)
    assert scores.ref_logp is not None and torch.equal(batch.streams["ref_logp"][action], scores.ref_logp)
    behaviour = np.concatenate([t.response_logprobs for t in pool.transitions])
    assert torch.equal(batch.streams["behaviour_logp"][action], torch.from_numpy(behaviour))
    expected = torch.tensor(slow.advantages(pool, scores, recipe))[pool.action_sample]
    torch.testing.assert_close(batch.streams["advantage"][action], expected.float(), rtol=1e-5, atol=1e-6)
    for name, stream in batch.streams.items():
        assert stream.dtype == torch.float32 and len(stream) == batch.num_rows
        assert name == "weight" or not stream[~action].any()


@pytest.mark.parametrize("algorithm", NAMED)
@pytest.mark.parametrize("aggregation", ["token", "transition", "episode"])
@pytest.mark.parametrize("penalty", ["episode", "sample", "after_normalization"])
@pytest.mark.parametrize("statistics", ["episodes", "samples"])
def test_summed_rows_are_the_objective(
    algorithm: str, aggregation: str, penalty: str, statistics: str
) -> None:
    pool = random_pool(5, groups=4, members=3)
    scores = random_scores(pool, per_token_values=algorithm == "ppo-tokens")
    keys = {"aggregation": aggregation, "penalty": penalty, "statistics": statistics, **NAMED[algorithm]}
    # In float32, and a penalty that stands alone in its group is divided by a deviation of almost nothing: no
    # such group here.
    recipe = tiny_recipe(wm__scale=0.7, **{f"algorithm.{key}": value for key, value in keys.items()})
    batch = attach_logp(plan(pool, scores, recipe, 0).batch)
    rl, wm = slow.objective(pool, scores, recipe, by_transition(batch))
    losses = row_losses(batch, recipe)
    assert wm > 0
    assert float(losses[batch.row_kind == ACTION].sum()) == pytest.approx(rl, rel=1e-5, abs=1e-6)
    assert float(losses[batch.row_kind == OBSERVATION].sum()) == pytest.approx(wm, rel=1e-5)


@pytest.mark.parametrize("loss", ["clipped_mae", "mae", "cross_entropy"])
@pytest.mark.parametrize("coefficient", ["reward_adaptive", "constant"])
@pytest.mark.parametrize("aggregation", ["group", "token"])
def test_world_model_part_of_every_arm(loss: str, coefficient: str, aggregation: str) -> None:
    pool = random_pool(6, groups=5)
    scores = random_scores(pool)
    recipe = tiny_recipe(
        wm__loss=loss, wm__coefficient=coefficient, wm__alpha=0.4, wm__aggregation=aggregation
    )
    batch = attach_logp(plan(pool, scores, recipe, 0).batch)
    _, wm = slow.objective(pool, scores, recipe, by_transition(batch))
    assert float(row_losses(batch, recipe)[batch.row_kind == OBSERVATION].sum()) == pytest.approx(
        wm, rel=1e-5
    )


def test_the_slow_objective_tells_near_misses_apart() -> None:
    pool = random_pool(6, groups=5)
    scores, recipe = random_scores(pool), tiny_recipe(wm__alpha=0.4)
    batch = attach_logp(plan(pool, scores, recipe, 0).batch)
    _, wm = slow.objective(pool, scores, recipe, by_transition(batch))
    observation = batch.row_kind == OBSERVATION
    losses, weight = row_losses(batch, recipe)[observation], batch.streams["weight"][observation]
    unmasked_only = float(losses.sum() * len(losses) / (losses > 0).sum())
    token_mean = float((losses / weight).mean() * weight.sum())
    assert unmasked_only != pytest.approx(wm, rel=1e-3)
    assert token_mean != pytest.approx(wm, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_observation_weights_sum_to_the_mean_lambda_of_selected_groups(seed: int) -> None:
    pool = random_pool(seed, groups=8, members=2, max_steps=2)
    result = plan(pool, random_scores(pool), tiny_recipe(wm__alpha=0.3), 0)
    batch = result.batch
    selected_groups = {int(pool.group[n]) for n in range(len(pool)) if result.selected[n]}
    assert 0 < len(selected_groups) < 8, "some groups must stay without a selected transition"
    expected = sum(float(result.coefficient[g]) for g in selected_groups) / 8
    assert float(batch.streams["weight"][batch.row_kind == OBSERVATION].double().sum()) == pytest.approx(
        expected, rel=1e-6
    )
    assert result.metrics["wm_weight"] == pytest.approx(expected)
    assert float(batch.streams["weight"][batch.row_kind == ACTION].double().sum()) == pytest.approx(
        1.0, rel=1e-6
    )


def test_lambda_sees_clean_returns() -> None:
    pool = random_pool(3, invalid=0.9)
    result = plan(pool, random_scores(pool), tiny_recipe(env__invalid_penalty=5.0), 0)
    for g in range(pool.num_groups):
        won = [e.success for e, h in zip(pool.episodes, pool.episode_group.tolist(), strict=True) if h == g]
        assert float(result.coefficient[g]) == pytest.approx(1 - slow.mean(won))


def test_selection_draws_from_transitions_with_an_observation_over_the_whole_update() -> None:
    pool = random_pool(7, groups=6, no_observation=1.0)
    scores = random_scores(pool)
    result = plan(pool, scores, tiny_recipe(wm__alpha=0.5), 0)
    with_observation = [n for n, t in enumerate(pool.transitions) if len(t.observation_ids)]
    assert len(with_observation) == len(pool) - len(pool.episodes)
    assert set(result.selected.nonzero().flatten().tolist()) == slow.selected(pool, scores, 0.5)
    assert int(result.selected.sum()) == round(0.5 * len(with_observation))
    shares = {float(result.selected[pool.group == g].float().mean()) for g in range(6)}
    assert len(shares) > 1, "a selection per group would take the same share of each"


def test_ppo_streams() -> None:
    pool, recipe = random_pool(2), tiny_recipe(algorithm__name="ppo")
    scores = random_scores(pool)
    assert scores.values is not None
    batch = plan(pool, scores, recipe, 0).batch
    rewards = [t.reward - (0.0 if t.valid else 0.1) for t in pool.transitions]
    dones = [n + 1 == len(pool) or bool(pool.episode[n + 1] != pool.episode[n]) for n in range(len(pool))]
    _, target = slow.gae(rewards, scores.values.tolist(), dones, 0.95, 0.95)
    assert batch.sample_streams["value_target"].tolist() == pytest.approx(target, rel=1e-5)
    assert torch.equal(batch.sample_streams["old_value"], scores.values)
    assert float(batch.sample_streams["value_weight"].sum()) == pytest.approx(1.0)
    assert batch.value_position is not None
    for n, t in enumerate(pool.transitions):
        assert int(batch.value_position[n]) == int(batch.cu_seqlens[n]) + len(t.prompt_ids) - 1
        assert int(batch.tokens[batch.value_position[n]]) == t.prompt_ids[-1]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    taken = batch.take(order)
    assert torch.equal(taken.tokens[taken.value_position], batch.tokens[batch.value_position][order])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_depends_neither_on_order_nor_on_packing_nor_on_ranks(algorithm: str) -> None:
    pool, recipe = random_pool(8, groups=5), tiny_recipe(algorithm__name=algorithm)
    batch = attach_logp(plan(pool, random_scores(pool), recipe, 0).batch)
    whole = total(batch, recipe)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    assert total(batch.take(order), recipe) == pytest.approx(whole, rel=1e-12)
    for max_tokens in (1, 40, 200, 10_000):
        assert sum(total(part, recipe) for part in micro_batches(batch, max_tokens)) == pytest.approx(
            whole, rel=1e-12
        )
    for ranks in (2, 3, 4):
        assert sum(total(batch.take(order[r::ranks]), recipe) for r in range(ranks)) == pytest.approx(
            whole, rel=1e-12
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_transition_gets_the_same_streams_in_whatever_order_groups_arrive(algorithm: str) -> None:
    groups = random_groups(9, groups=5)
    pool, mirrored = Pool.from_groups(groups), Pool.from_groups(groups[::-1])
    recipe, scores = tiny_recipe(algorithm__name=algorithm), random_scores(pool)
    place = {id(t): n for n, t in enumerate(pool.transitions)}
    # position in `pool` of each transition of `mirrored`
    origin = [place[id(t)] for t in mirrored.transitions]
    tokens = torch.cat([(pool.action_sample == n).nonzero().flatten() for n in origin])
    assert scores.ref_logp is not None and scores.values is not None
    moved = Scores(
        scores.old_logp[tokens], scores.entropy[tokens], scores.ref_logp[tokens], scores.values[origin]
    )
    straight, other = plan(pool, scores, recipe, 0).batch, plan(mirrored, moved, recipe, 0).batch
    expected = straight.take(torch.tensor(origin))
    assert torch.equal(other.tokens, expected.tokens) and torch.equal(
        other.row_position, expected.row_position
    )
    for name, stream in other.streams.items():
        torch.testing.assert_close(stream, expected.streams[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("target", ["true", "shuffled"])
def test_lambda_zero_is_vanilla_bit_for_bit(algorithm: str, target: str) -> None:
    pool = random_pool(10, groups=5)
    scores = random_scores(pool)

    def batch(update: int = 0, **wm):
        return plan(pool, scores, tiny_recipe(algorithm__name=algorithm, **wm), update).batch

    vanilla = batch(wm__enabled=False)
    assert not (vanilla.row_kind == OBSERVATION).any()
    assert identical(batch(wm__target=target, wm__scale=0.0), vanilla)
    assert identical(batch(wm__target=target, wm__alpha=0.0), vanilla)
    assert identical(batch(wm__target=target, wm__every=2, update=1), vanilla)
    assert not identical(batch(wm__target=target, wm__every=2, update=2), vanilla)
    won = random_pool(10, groups=5, success=1.0)
    scores = random_scores(won)
    paw, off = (
        plan(won, scores, tiny_recipe(algorithm__name=algorithm, wm__enabled=on, wm__target=target), 0)
        for on in (True, False)
    )
    assert paw.selected.any() and not paw.coefficient.any()
    assert identical(paw.batch, off.batch)


def test_only_groups_with_lambda_above_zero_append_observations() -> None:
    pool = random_pool(11, groups=8, members=2)
    result = plan(pool, random_scores(pool), tiny_recipe(wm__alpha=1.0), 0)
    zero = {g for g in range(8) if result.coefficient[g] == 0}
    assert 0 < len(zero) < 8
    for n, t in enumerate(pool.transitions):
        expected = len(t.observation_ids) if int(pool.group[n]) not in zero else 0
        assert len(sample_rows(result.batch, n, OBSERVATION)) == expected


def test_schedule_by_hand() -> None:
    falling = tiny_recipe(wm__scale=1.0, wm__final_scale=0.0).wm
    assert [world_model_scale(falling, u, 5) for u in range(5)] == pytest.approx(
        [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    )
    partial = tiny_recipe(wm__scale=0.4, wm__final_scale=0.2).wm
    assert [world_model_scale(partial, u, 3) for u in range(3)] == pytest.approx([0.4, 0.3, 0.2])
    assert world_model_scale(partial, 0, 1) == 0.4
    assert [world_model_scale(tiny_recipe(wm__every=3).wm, u, 9) for u in range(7)] == [1, 0, 0, 1, 0, 0, 1]
    assert world_model_scale(tiny_recipe(wm__enabled=False).wm, 0, 9) == 0.0


def test_metrics() -> None:
    pool = random_pool(12, groups=6, members=2)
    scores = random_scores(pool)
    result = plan(pool, scores, tiny_recipe(wm__alpha=0.5), 0)
    m, entropy = result.metrics, [slow.mean(h) for h in slow.per_transition(pool, scores.entropy.tolist())]
    chosen = slow.selected(pool, scores, 0.5)
    assert m["entropy_mean"] == pytest.approx(slow.mean(entropy))
    assert m["entropy_threshold"] == pytest.approx(min(entropy[n] for n in chosen))
    assert m["selected_transitions"] == len(chosen)
    assert m["wm_tokens"] == sum(
        len(pool.transitions[n].observation_ids) for n in chosen if result.coefficient[pool.group[n]] > 0
    )
    assert m["success"] == slow.mean([e.success for e in pool.episodes])
    assert m["return_mean"] == pytest.approx(slow.mean([e.episode_return for e in pool.episodes]))
    assert m["invalid_share"] == pytest.approx(slow.mean([not t.valid for t in pool.transitions]))
    assert m["response_length_mean"] == pytest.approx(
        slow.mean([len(t.response_ids) for t in pool.transitions])
    )
    assert m["observation_length_mean"] == pytest.approx(
        slow.mean([len(t.observation_ids) for t in pool.transitions if len(t.observation_ids)])
    )
    assert (m["lambda_min"], m["lambda_max"]) == (
        float(result.coefficient.min()),
        float(result.coefficient.max()),
    )
    assert m["advantage_abs_mean"] == pytest.approx(
        slow.mean([abs(a) for a in slow.advantages(pool, scores, tiny_recipe())]), rel=1e-5
    )
    gap = [abs(o - b) for t, old in zip(pool.transitions, slow.per_transition(pool, scores.old_logp.tolist()), strict=True)
           for o, b in zip(old, t.response_logprobs.tolist(), strict=True)]  # fmt: skip
    assert (m["behaviour_gap_mean"], m["behaviour_gap_max"]) == pytest.approx(
        (slow.mean(gap), max(gap)), rel=1e-5
    )
    assert all(isinstance(x, float) for x in m.values())


def test_zero_signal_groups_are_counted() -> None:
    pool = random_pool(12, groups=4, success=0.0, invalid=0.0)
    pool.returns[pool.episode_group.tolist().index(2)] = 10.0
    assert plan(pool, random_scores(pool), tiny_recipe(), 0).metrics["zero_signal_groups"] == 0.75


def test_vanilla_logs_the_same_diagnostics() -> None:
    pool = random_pool(0)
    scores = random_scores(pool)
    on, off = (plan(pool, scores, tiny_recipe(wm__enabled=e), 0).metrics for e in (True, False))
    assert on.keys() == off.keys()
    assert {k for k in on if on[k] != off[k]} == {
        "wm_scale",
        "wm_weight",
        "wm_transitions",
        "wm_tokens",
        "tokens",
    }


def test_an_empty_update_is_a_clear_error() -> None:
    groups = random_groups(0)
    for group in groups:
        for episode in group.episodes:
            episode.failed_by_environment = True
    empty = Scores(torch.zeros(0), torch.zeros(0))
    with pytest.raises(TrainingError, match="update 3: no transition"):
        plan(Pool.from_groups(groups), empty, tiny_recipe(), 3)
    with pytest.raises(TrainingError, match="no response has a single token"):
        plan(random_pool(0, response=(0, 0)), empty, tiny_recipe(), 3)


def test_scores_of_another_pool_are_refused() -> None:
    pool = random_pool(0)
    scores = random_scores(pool)
    for lacking, recipe in (
        (dataclasses.replace(scores, old_logp=scores.old_logp[1:]), tiny_recipe()),
        (dataclasses.replace(scores, ref_logp=None), tiny_recipe()),
        (dataclasses.replace(scores, values=None), tiny_recipe(algorithm__name="ppo")),
    ):
        with pytest.raises(ValueError, match=r"scores\.(old_logp|ref_logp|values): expected"):
            plan(pool, lacking, recipe, 0)


def test_a_large_update_is_planned_in_well_under_a_second() -> None:
    pool = random_pool(0, 16, 8, max_steps=60, prompt=(50, 150), response=(10, 40), observation=(5, 40))
    scores, recipe = random_scores(pool), tiny_recipe(algorithm__name="gigpo")
    start = time.process_time()
    batch = plan(pool, scores, recipe, 0).batch
    assert time.process_time() - start < 1.0
    assert len(batch) > 3000 and batch.num_tokens > 400_000
