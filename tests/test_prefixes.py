"""`policy.share_prefixes`: what sequences of a pass begin with alike is computed once, and nothing changes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paw_hpc.experience import Batch, Pool
from paw_hpc.objective.batching import micro_batches
from paw_hpc.objective.packing import pack
from paw_hpc.objective.plan import plan
from paw_hpc.objective.prefixes import Prefixes, by_prefix
from paw_hpc.policy import packed
from paw_hpc.policy.trainer import NO_IDS
from tests.factories import as_conversations, random_groups
from tests.policy.models import model_folder, policy_from
from tests.test_chains import ARMS, SMOOTH, same_scores


def families(seed: int = 3, *, conversations: bool = True, **options: Any) -> Pool:
    """Members of a group have a long first prompt in common, and two of them the first response, too."""
    groups = random_groups(seed, **options)
    rng = np.random.default_rng(seed)
    for group in groups:
        first = rng.integers(0, 50, 20).astype(np.int32)
        response = group.episodes[0].transitions[0].response_ids
        for member, episode in enumerate(group.episodes):
            opening = episode.transitions[0]
            opening.prompt_ids = first.copy()
            if member == 1:
                opening.response_ids = response.copy()
                opening.response_logprobs = group.episodes[0].transitions[0].response_logprobs.copy()
    if conversations:
        as_conversations(groups, seed, breaks=0.2)
    return Pool.from_groups(groups)


def batch_of(*sequences: list[int]) -> Batch:
    """Without rows."""
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    none = torch.empty(0, dtype=torch.long)
    return Batch(
        tokens=torch.tensor([t for s in sequences for t in s], dtype=torch.long),
        position_ids=torch.tensor([i for s in sequences for i in range(len(s))], dtype=torch.long),
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int(),
        row_position=none,
        row_target=none,
        row_kind=none.to(torch.uint8),
        row_cu=torch.zeros(len(sequences) + 1, dtype=torch.long),
        streams={},
        transition=torch.arange(len(sequences)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


def test_what_is_computed_once() -> None:
    batch = batch_of([5, 6, 7], [9], [5, 6, 8, 8], [5, 6], [300, 1])
    order, shared = by_prefix(batch)
    assert order.tolist() == [3, 0, 2, 1, 4] and shared.tolist() == [0, 2, 2, 0, 0]  # by number, not by byte
    found = Prefixes.of(batch)
    assert batch.tokens[found.computed].tolist() == [5, 6, 7, 8, 8, 9, 300, 1]
    assert found.place.tolist() == [0, 1, 2, 5, 0, 1, 3, 4, 0, 1, 6, 7]
    assert found.cu_seqlens.tolist() == [0, 3, 7, 8, 10]  # [5, 6] is a beginning of another
    assert found.attended.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert found.attended[found.answer].tolist() == list(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_every_token_stands_behind_the_same_ones(seed: int) -> None:
    """And no two computed tokens could have been one."""
    rng = np.random.default_rng(seed)
    batch = batch_of(*(rng.integers(0, 2, rng.integers(1, 9)).tolist() for _ in range(30)))
    found, cu = Prefixes.of(batch), batch.cu_seqlens.tolist()

    def behind(token: int) -> tuple[int, ...]:
        start = max(c for c in cu if c <= token)
        return tuple(batch.tokens[start : token + 1].tolist())

    for token, place in enumerate(found.place.tolist()):
        assert behind(token) == behind(int(found.computed[place]))
    assert len({behind(int(token)) for token in found.computed}) == len(found.computed) < batch.num_tokens
    leaves = found.cu_seqlens.tolist()
    for a, b in itertools.pairwise(leaves):
        whole = tuple(batch.tokens[found.computed[found.attended[a:b]]].tolist())
        assert behind(int(found.computed[found.attended[b - 1]])) == whole


def test_micro_batches_keep_together_what_shares_and_count_it_once() -> None:
    pool = families()
    batch = pack(pool, [NO_IDS] * len(pool))
    limit = 150
    parts = micro_batches(batch, limit, share_prefixes=True)
    assert 1 < len(parts) < len(micro_batches(batch, limit))
    assert sorted(torch.cat([p.transition for p in parts]).tolist()) == list(range(len(pool)))
    assert all(len(Prefixes.of(p).computed) <= limit or p.num_sequences == 1 for p in parts)


def test_nothing_in_common() -> None:
    batch = batch_of([1, 2, 3], [2], [3, 1])
    found = Prefixes.of(batch)
    assert torch.equal(found.place, torch.arange(6)) and torch.equal(found.cu_seqlens, batch.cu_seqlens)


@pytest.mark.parametrize("conversations", [True, False], ids=["conversations", "windows"])
@pytest.mark.parametrize("arm", ARMS)
def test_scores_and_updates_are_those_of_whole_sequences(arm: str, conversations: bool, folder: str) -> None:
    pool = families(conversations=conversations)
    found = []
    for share in (True, False):
        options = {"policy.share_prefixes": share, "optimizer.max_tokens_per_micro_batch": 300}
        policy = policy_from(folder, **SMOOTH, **ARMS[arm], **options)
        rounds = []
        for update in range(3):
            scores = policy.score(pool)
            planned = plan(pool, scores, policy.recipe, update)
            rows = torch.empty(planned.batch.num_rows)
            metrics = policy.update(planned.batch, update, rows)
            rounds.append((scores, metrics, policy.observation_logp(pool), rows))
        found.append((rounds, torch.cat([p.detach().flatten() for p in policy.model.parameters()])))
    (shared, weights), (whole, expected) = found
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0.0)
    for (scores, metrics, logp, rows), (theirs, their_metrics, their_logp, their_rows) in zip(
        shared, whole, strict=True
    ):
        same_scores(scores, theirs)
        torch.testing.assert_close(logp, their_logp, atol=3e-6, rtol=1e-6)
        torch.testing.assert_close(rows, their_rows, atol=3e-6, rtol=1e-6)
        for name in {"policy_loss", "wm_loss", "grad_norm", "value_loss"} & their_metrics.keys():
            assert metrics[name] == pytest.approx(their_metrics[name], abs=2e-6, rel=1e-5), name
        assert 0.05 < metrics["shared_prefix_share"] < 0.9 and "shared_prefix_share" not in their_metrics
        assert metrics["tokens"] == their_metrics["tokens"]
        assert metrics["system/model_flops_per_s"] * metrics["seconds"] < (
            their_metrics["system/model_flops_per_s"] * their_metrics["seconds"]
        )


def test_a_wrong_place_is_seen(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one token of a shared beginning is read where another stands."""
    pool = families()
    policy = policy_from(folder, **{"policy.share_prefixes": True})
    before = policy.score(pool).old_logp
    right = Prefixes.of

    def wrong(batch: Batch) -> Prefixes:
        found = right(batch)
        found.attended[0] = found.attended[-1]
        return found

    monkeypatch.setattr(Prefixes, "of", wrong)
    assert float((policy.score(pool).old_logp - before).abs().max()) > 1e-4


def test_the_kernel_for_any_lengths_is_given_copies_too(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's, which packs samples itself: here one that attends to each sample in turn."""

    def one_by_one(q: Any, k: Any, v: Any, cu: Any, *_: Any, scale: float | None, **__: Any) -> torch.Tensor:
        found = []
        seen.append(len(q))
        for a, b in itertools.pairwise(cu.tolist()):
            parts = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(*parts, is_causal=True, scale=scale, enable_gqa=True)
            found.append(out[0].transpose(0, 1))
        return torch.cat(found)

    pool, seen = families(), list[int]()
    policies = [policy_from(folder, **{"policy.share_prefixes": share}) for share in (True, False)]
    expected = policies[1].score(pool).old_logp
    monkeypatch.setattr(packed, "use_varlen", lambda query: True)
    monkeypatch.setattr(packed, "varlen", SimpleNamespace(varlen_attn=one_by_one))
    for policy in policies:
        torch.testing.assert_close(policy.score(pool).old_logp, expected, atol=3e-6, rtol=1e-6)
    assert seen


def test_a_token_of_the_common_prompt_changes_the_rows_of_all_members(folder: str) -> None:
    pool = families(groups=1, conversations=False, max_steps=1)
    policy = policy_from(folder, **{"policy.share_prefixes": True})
    before = policy.score(pool).old_logp
    for t in pool.transitions:
        t.prompt_ids = t.prompt_ids.copy()
        t.prompt_ids[0] = (t.prompt_ids[0] + 1) % 50
    changed = (policy.score(pool).old_logp - before).abs() > 1e-6
    assert set(pool.action_sample[changed].tolist()) == set(pool.action_sample.tolist())
