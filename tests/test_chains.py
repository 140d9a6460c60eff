"""Samples whose prompts go on from one another, packed as one sequence: the same rows with the same contexts,
scores, losses and updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc.experience import Batch, Ids, Pool, Scores
from paw_hpc.objective.packing import pack
from paw_hpc.objective.plan import mini_batches, plan
from paw_hpc.policy.critic import critic_batch
from paw_hpc.policy.trainer import NO_IDS
from paw_hpc.recipe import parse_recipe
from tests.factories import as_conversations, random_groups, random_pool, random_scores, tiny_recipe
from tests.policy.models import model_folder, policy_from

ARMS: dict[str, dict[str, Any]] = {
    "paw": {},
    "vanilla": {"wm.enabled": False},
    "everything": {"wm.alpha": 1.0, "algorithm.kl_coefficient": 0.1, "algorithm.entropy_bonus": 0.01},
    "gigpo": {"algorithm.name": "gigpo"},
    "ppo": {"algorithm.name": "ppo"},
    "ppo, values of tokens": {"algorithm.name": "ppo", "algorithm.ppo_advantages": "tokens"},
    "shuffled": {"wm.target": "shuffled", "wm.alpha": 0.7},
    "echo": {"wm.aggregation": "token", "wm.alpha": 1.0, "wm.loss": "cross_entropy"},
}
SMOOTH = {"optimizer.eps": 1e-2, "optimizer.lr": 1e-2}
"""An eps of a gradient's size: rounding alone makes no step of full length."""


def conversations(seed: int = 3, *, breaks: float = 0.3, **options: Any) -> Pool:
    return Pool.from_groups(as_conversations(random_groups(seed, **options), seed, breaks=breaks))


def observations(pool: Pool) -> list[Ids]:
    return [t.observation_ids for t in pool.transitions]


def contexts(batch: Batch) -> list[tuple[int, ...]]:
    """Of every row, all that its prediction depends on, and its target."""
    found = []
    for row in range(batch.num_rows):
        position = int(batch.row_position[row])
        start = int(batch.cu_seqlens[torch.searchsorted(batch.cu_seqlens, position, right=True) - 1])
        assert batch.position_ids[start : position + 1].tolist() == list(range(position + 1 - start))
        found.append((*batch.tokens[start : position + 1].tolist(), int(batch.row_target[row])))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


class TestPacking:
    @pytest.mark.parametrize("breaks", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("trained", [True, False])
    def test_rows_have_the_same_contexts_in_the_same_order(self, breaks: float, trained: bool) -> None:
        pool = conversations(breaks=breaks)
        chosen = observations(pool) if trained else [NO_IDS] * len(pool)
        chains, samples = pack(pool, chosen), pack(pool, chosen, merge=False)
        assert contexts(chains) == contexts(samples)
        for name in ("row_target", "row_kind", "row_cu", "transition"):
            assert torch.equal(getattr(chains, name), getattr(samples, name)), name
        assert samples.num_sequences == len(samples) == len(chains) == len(pool)
        assert (
            (chains.num_sequences < len(pool)) == (chains.num_tokens < samples.num_tokens) == (breaks < 1.0)
        )

    def test_without_a_break_an_episode_is_one_sequence_with_every_token_once(self) -> None:
        pool = conversations(breaks=0.0)
        batch = pack(pool, observations(pool))
        assert batch.num_sequences == len(pool.episodes)
        last = [e.transitions[-1] for e in pool.episodes]
        ends = [len(t.bridge_ids) + len(t.observation_ids) if len(t.observation_ids) else 0 for t in last]
        expected = [len(t.prompt_ids) + len(t.response_ids) + end for t, end in zip(last, ends, strict=True)]
        assert batch.lengths.tolist() == expected

    def test_world_model_rows_cost_no_token_but_behind_the_last_response(self) -> None:
        pool = conversations(breaks=0.0, no_observation=1.0)
        with_rows, without = pack(pool, observations(pool)), pack(pool, [NO_IDS] * len(pool))
        assert with_rows.num_rows > without.num_rows and torch.equal(with_rows.tokens, without.tokens)
        apart = [
            pack(pool, chosen, merge=False).num_tokens
            for chosen in (observations(pool), [NO_IDS] * len(pool))
        ]
        assert apart[0] > apart[1]

    def test_prompts_of_a_window_make_no_chain(self) -> None:
        pool = random_pool(3)
        one, other = pack(pool, observations(pool)), pack(pool, observations(pool), merge=False)
        for name in (
            "tokens",
            "position_ids",
            "cu_seqlens",
            "row_position",
            "row_target",
            "row_kind",
            "row_cu",
            "sample_cu",
        ):
            assert torch.equal(getattr(one, name), getattr(other, name)), name

    def test_episodes_never_join(self) -> None:
        """Though the second one's prompt goes on from the first one's."""
        pool = conversations(breaks=0.0, groups=1, members=2, max_steps=1)
        first, second = pool.transitions
        second.prompt_ids = np.concatenate(
            [first.prompt_ids, first.response_ids, first.bridge_ids, first.observation_ids]
        )
        assert pack(pool, observations(pool)).num_sequences == 2

    @pytest.mark.parametrize("part", ["prompt_ids", "response_ids", "bridge_ids", "observation_ids"])
    def test_one_other_token_breaks_a_chain(self, part: str) -> None:
        pool = conversations(breaks=0.0, groups=1, members=1, max_steps=2, seed=0)
        first, second = pool.transitions
        assert pack(pool, observations(pool)).num_sequences == 1
        setattr(first, part, (getattr(first, part) + 1) % 50)
        assert pack(pool, observations(pool)).num_sequences == 2
        if part in ("bridge_ids", "observation_ids"):  # nobody predicts them
            assert pack(pool, [NO_IDS, second.observation_ids]).num_sequences == 1

    @pytest.mark.parametrize("per_token", [True, False])
    def test_the_critic_reads_the_same(self, per_token: bool) -> None:
        pool = conversations()
        scores = random_scores(pool, per_token_values=per_token)
        found = []
        for merge in (True, False):
            recipe = tiny_recipe(
                **ARMS["ppo, values of tokens" if per_token else "ppo"], **{"policy.merge_turns": merge}
            )
            batch = critic_batch(plan(pool, scores, recipe, 0).batch, per_token)
            found.append((batch, contexts(batch)))
        (chains, theirs), (samples, expected) = found
        assert [c[:-1] for c in theirs] == [c[:-1] for c in expected]  # targets mean nothing here
        assert chains.num_tokens < samples.num_tokens
        assert all(torch.equal(chains.streams[name], samples.streams[name]) for name in samples.streams)


class TestMiniBatches:
    def test_chains_stay_whole_and_the_objective_is_kept(self) -> None:
        pool = conversations()
        batch = plan(pool, random_scores(pool), tiny_recipe(), 0).batch
        total = float(batch.streams["weight"].double().sum())
        for size in (1, 5, len(batch) - 1):
            parts = mini_batches(batch, size, seed=1)
            assert len(parts) == min(-(-len(batch) // size), batch.num_sequences)
            assert sorted(torch.cat([p.transition for p in parts]).tolist()) == list(range(len(batch)))
            shares = [
                p.num_sequences / batch.num_sequences * float(p.streams["weight"].double().sum())
                for p in parts
            ]
            assert sum(shares) == pytest.approx(total, rel=1e-5)
            assert sum(p.num_tokens for p in parts) == batch.num_tokens

    def test_taken_sequences_are_those_of_the_batch(self) -> None:
        pool = conversations()
        batch = pack(pool, observations(pool))
        chosen = torch.tensor([3, 0, 5])
        part, all_contexts = batch.take(chosen), contexts(batch)
        assert contexts(part) == [
            all_contexts[row] for row in batch.rows_of(batch.samples_of(chosen)).tolist()
        ]


@pytest.mark.parametrize("arm", ARMS)
def test_a_plan_of_chains_is_the_plan_of_samples(arm: str) -> None:
    pool = conversations()
    scores = random_scores(pool, per_token_values=arm.endswith("tokens"))
    chains, samples = (
        plan(pool, scores, tiny_recipe(**ARMS[arm], **{"policy.merge_turns": merge}), 0)
        for merge in (True, False)
    )
    assert chains.batch.num_sequences < samples.batch.num_sequences
    assert {**chains.metrics, "tokens": 0, "sequences": 0} == {**samples.metrics, "tokens": 0, "sequences": 0}
    for name, stream in samples.batch.streams.items():
        assert torch.equal(chains.batch.streams[name], stream), name
    assert contexts(chains.batch) == contexts(samples.batch)


def same_scores(found: Scores, expected: Scores) -> None:
    """Up to rounding."""
    for name in ("old_logp", "entropy", "ref_logp", "values"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_scores_and_updates_are_those_of_samples(arm: str, folder: str) -> None:
    pool = conversations()
    found = []
    for merge in (True, False):
        policy = policy_from(
            folder,
            **SMOOTH,
            **ARMS[arm],
            **{"policy.merge_turns": merge, "optimizer.max_tokens_per_micro_batch": 90},
        )
        rounds = []
        for update in range(3):
            scores = policy.score(pool)
            planned = plan(pool, scores, policy.recipe, update)
            metrics = policy.update(planned.batch, update)
            rounds.append((scores, metrics, policy.observation_logp(pool)))
        found.append(
            (
                rounds,
                torch.cat([p.detach().flatten() for p in policy.model.parameters()]),
                planned.batch.num_tokens,
            )
        )
    (chains, weights, tokens), (samples, expected, more) = found
    assert tokens < more
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0.0)
    for (scores, metrics, logp), (theirs, their_metrics, their_logp) in zip(chains, samples, strict=True):
        same_scores(scores, theirs)
        torch.testing.assert_close(logp, their_logp, atol=3e-6, rtol=1e-6)
        for name in {"policy_loss", "wm_loss", "grad_norm", "value_loss"} & their_metrics.keys():
            assert metrics[name] == pytest.approx(their_metrics[name], abs=2e-6, rel=1e-5), name


def test_an_early_token_changes_later_rows(folder: str) -> None:
    """The control: a chain's rows see all that came before."""
    pool = conversations(breaks=0.0, groups=1, members=1, max_steps=5, seed=0)
    policy = policy_from(folder)
    assert len(pool) > 2 and pack(pool, [NO_IDS] * len(pool)).num_sequences == 1
    before = policy.score(pool).old_logp
    for t in pool.transitions:
        t.prompt_ids = t.prompt_ids.copy()
        t.prompt_ids[0] = (t.prompt_ids[0] + 1) % 50
    changed = (policy.score(pool).old_logp - before).abs() > 1e-6
    assert bool(changed[pool.action_sample == len(pool) - 1].any())


def test_the_recipe_says_what_goes_together(tmp_path: Path) -> None:
    made = parse_recipe({"env": {"prompt": "conversation", "history": "all"}, "model": {"path": "x"}})
    assert made.policy.merge_turns and made.env.shown_history == 50
