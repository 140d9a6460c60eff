"""The critic of PPO against its own backbone run one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from paw_hpc.experience import ACTION, Batch, Pool
from paw_hpc.objective.plan import plan
from paw_hpc.policy.critic import critic_batch
from paw_hpc.policy.huggingface import HuggingFacePolicy
from tests.factories import random_pool
from tests.policy.models import model_folder, policy_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


def ppo(folder: str, **dotted: object) -> HuggingFacePolicy:
    return policy_from(folder, **{"algorithm.name": "ppo", "optimizer.critic_lr": 3e-3, **dotted})


def planned(policy: HuggingFacePolicy, pool: Pool) -> Batch:
    return plan(pool, policy.score(pool), policy.recipe, update=0).batch


@torch.no_grad()
def test_values_are_read_at_the_last_prompt_token(folder: str) -> None:
    policy, pool = ppo(folder, **{"optimizer.max_tokens_per_micro_batch": 60}), random_pool(1)
    assert policy.critic is not None
    policy.critic.head.weight.mul_(50.0)
    body = AutoModel.from_pretrained(folder)
    last = [
        body(input_ids=torch.from_numpy(t.prompt_ids.astype(np.int64))[None]).last_hidden_state[0, -1]
        for t in pool.transitions
    ]
    expected = torch.stack(last) @ policy.critic.head.weight[0] + policy.critic.head.bias
    values = policy.score(pool).values
    assert values is not None and float(values.std()) > 0.1
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_values_of_tokens_are_read_before_each_of_them(folder: str) -> None:
    policy, pool = (
        ppo(folder, **{"algorithm.ppo_advantages": "tokens", "optimizer.max_tokens_per_micro_batch": 60}),
        random_pool(1),
    )
    assert policy.critic is not None
    policy.critic.head.weight.mul_(50.0)
    body = AutoModel.from_pretrained(folder)
    expected = []
    for t in pool.transitions:
        ids = torch.from_numpy(np.concatenate([t.prompt_ids, t.response_ids]).astype(np.int64))
        hidden = body(input_ids=ids[None]).last_hidden_state[0, len(t.prompt_ids) - 1 : len(ids) - 1]
        expected.append(hidden @ policy.critic.head.weight[0] + policy.critic.head.bias)
    values = policy.score(pool).values
    assert values is not None and float(values.std()) > 0.1
    torch.testing.assert_close(values, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_only_prompts_are_run_for_a_value_per_step(folder: str) -> None:
    batch = critic_batch(planned(ppo(folder), pool := random_pool(1)), per_token=False)
    prompts = [t.prompt_ids for t in pool.transitions]
    assert batch.tokens.tolist() == np.concatenate(prompts).tolist()
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([len(ids) for ids in prompts])]
    assert batch.position_ids.tolist() == [i for ids in prompts for i in range(len(ids))]
    assert batch.row_position.tolist() == (np.cumsum([len(ids) for ids in prompts]) - 1).tolist()
    assert batch.row_cu.tolist() == list(range(len(pool) + 1))


def test_only_what_precedes_a_value_is_run_for_a_value_per_token(folder: str) -> None:
    pool = random_pool(1, response=(0, 6))
    whole = planned(ppo(folder, **{"algorithm.ppo_advantages": "tokens"}), pool)
    batch = critic_batch(whole, per_token=True)
    needed = [np.concatenate([t.prompt_ids, t.response_ids[:-1]]) for t in pool.transitions]
    assert min(len(t.response_ids) for t in pool.transitions) == 0, "the case of an empty response must occur"
    assert batch.tokens.tolist() == np.concatenate(needed).tolist()
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([len(ids) for ids in needed])]
    actions = whole.row_kind == ACTION
    assert batch.num_rows == int(actions.sum()) < whole.num_rows
    assert torch.equal(batch.streams["value_target"], whole.streams["value_target"][actions])
    starts = batch.cu_seqlens[:-1].tolist()
    expected = [
        start + len(t.prompt_ids) - 1 + j
        for start, t in zip(starts, pool.transitions, strict=True)
        for j in range(len(t.response_ids))
    ]
    assert batch.row_position.tolist() == expected


@pytest.mark.parametrize("of", ["steps", "tokens"])
def test_the_critic_learns_returns_and_the_policy_has_no_part_in_it(folder: str, of: str) -> None:
    pool = random_pool(2, groups=2, members=3)
    policy = ppo(
        folder, **{"algorithm.ppo_advantages": of, "algorithm.value_clip": 100.0, "optimizer.critic_lr": 2e-2}
    )
    batch = planned(policy, pool)
    batch.streams["weight"].zero_()
    start = [p.detach().clone() for p in policy.model.parameters() if p.ndim < 2]
    losses = [policy.update(batch, update)["value_loss"] for update in range(30)]
    assert losses[-1] < 0.2 * losses[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(start, (p for p in policy.model.parameters() if p.ndim < 2), strict=True)
    )


@pytest.mark.parametrize("of", ["steps", "tokens"])
def test_value_steps_do_not_depend_on_micro_batches_or_order(folder: str, of: str) -> None:
    found, pool = [], random_pool(4)
    for max_tokens in (100_000, 40):
        options = {"optimizer.max_tokens_per_micro_batch": max_tokens, "optimizer.eps": 1e-2}
        policy = ppo(folder, **options, **{"algorithm.ppo_advantages": of})
        batch = planned(policy, pool)
        if max_tokens == 40:
            batch = batch.take(torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)))
        policy.update(batch, 0)
        assert policy.critic is not None
        found.append(torch.cat([p.detach().flatten() for p in policy.critic.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_a_critic_step_that_is_not_finite_is_skipped_alone(folder: str) -> None:
    policy, pool = ppo(folder), random_pool(4)
    batch = planned(policy, pool)
    batch.sample_streams["value_target"][0] = float("nan")
    assert policy.critic is not None
    before = [p.detach().clone() for p in policy.critic.parameters()]
    metrics = policy.update(batch, 0)
    assert metrics["skipped_steps"] == 1 and metrics["steps"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, policy.critic.parameters(), strict=True))


def test_its_head_is_drawn_from_the_seed(folder: str, tmp_path: Path) -> None:
    heads = [ppo(folder, seed=seed).critic.head.weight for seed in (0, 0, 1)]  # type: ignore[union-attr]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
