"""Pools flatten what was played and drop what broke; batches can be cut and reordered without a change to any
sample."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch, Group, Pool, Transition
from tests.factories import random_groups, random_pool


def random_batch(seed: int, samples: int = 7, counted: bool = False) -> Batch:
    """Samples of 2 to 9 tokens with 0 to 4 rows each; `counted`: as one rank of several has it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, samples)
    cu = np.concatenate([[0], lengths.cumsum()])
    rows = [
        np.sort(rng.choice(int(n) - 1, min(int(n) - 1, int(rng.integers(0, 5))), replace=False))
        for n in lengths
    ]
    position = np.concatenate([cu[i] + r for i, r in enumerate(rows)]).astype(np.int64)
    tokens = torch.from_numpy(rng.integers(0, 50, int(cu[-1])))
    return Batch(
        tokens=tokens,
        position_ids=torch.cat([torch.arange(int(n)) for n in lengths]),
        cu_seqlens=torch.from_numpy(cu).int(),
        row_position=torch.from_numpy(position),
        row_target=tokens[torch.from_numpy(position) + 1],
        row_kind=torch.from_numpy(rng.integers(0, 2, len(position)).astype(np.uint8)),
        row_cu=torch.tensor([0, *np.cumsum([len(r) for r in rows])]),
        streams={
            name: torch.from_numpy(rng.random(len(position)).astype(np.float32))
            for name in ("weight", "advantage")
        },
        transition=torch.from_numpy(rng.permutation(samples)),
        sample_streams={"value_target": torch.from_numpy(rng.random(samples).astype(np.float32))},
        value_position=torch.from_numpy(cu[:-1] + rng.integers(0, lengths)),
        rows_of_kind=torch.from_numpy(rng.integers(1, 9, len(position))) if counted else None,
    )


def sample(batch: Batch, n: int) -> dict[str, object]:
    """Everything that belongs to one sample, positions counted from its own start."""
    start, end = int(batch.cu_seqlens[n]), int(batch.cu_seqlens[n + 1])
    rows = slice(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
    assert batch.value_position is not None
    return {
        "tokens": batch.tokens[start:end].tolist(),
        "positions": batch.position_ids[start:end].tolist(),
        "rows": (batch.row_position[rows] - start).tolist(),
        "targets": batch.row_target[rows].tolist(),
        "kinds": batch.row_kind[rows].tolist(),
        "streams": {name: stream[rows].tolist() for name, stream in batch.streams.items()},
        "sample_streams": {name: float(stream[n]) for name, stream in batch.sample_streams.items()},
        "transition": int(batch.transition[n]),
        "value": int(batch.value_position[n]) - start,
    }


def equal(a: Batch, b: Batch) -> bool:
    def same(x: object, y: object) -> bool:
        if isinstance(x, dict) and isinstance(y, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        if x is None or y is None:
            return x is y
        return (
            isinstance(x, torch.Tensor)
            and isinstance(y, torch.Tensor)
            and x.dtype == y.dtype
            and torch.equal(x, y)
        )

    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


class TestTaking:
    @pytest.mark.parametrize("chosen", [[0], [6, 0, 3], [2, 2, 5], list(range(7))[::-1], []])
    def test_samples_changes_none_of_them(self, chosen: list[int]) -> None:
        batch = random_batch(0)
        part = batch.take(torch.tensor(chosen, dtype=torch.long))
        assert (
            len(part) == len(chosen)
            and part.num_tokens == int(part.cu_seqlens[-1])
            and part.num_rows == int(part.row_cu[-1])
        )
        assert [sample(part, i) for i in range(len(chosen))] == [sample(batch, n) for n in chosen]
        assert part.tokens[part.row_position + 1].tolist() == part.row_target.tolist()
        for item in fields(Batch):
            before, after = getattr(batch, item.name), getattr(part, item.name)
            assert isinstance(before, dict) or (
                after is None if before is None else after.dtype == before.dtype
            )

    def test_all_of_them_gives_the_batch_back_and_order_can_be_undone(self) -> None:
        batch = random_batch(1, counted=True)
        assert equal(batch.take(torch.arange(7)), batch)
        order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
        assert not equal(batch.take(order), batch)
        assert equal(batch.take(order).take(torch.argsort(order)), batch)

    def test_without_a_critic(self) -> None:
        batch = random_batch(2)
        batch.value_position, batch.sample_streams = None, {}
        part = batch.take(torch.tensor([3, 1]))
        assert part.value_position is None and part.sample_streams == {}

    def test_copies_streams(self) -> None:
        batch = random_batch(3)
        before = batch.streams["weight"].clone()
        batch.take(torch.arange(7)).streams["weight"].zero_()
        assert torch.equal(batch.streams["weight"], before)

    def test_rows_of_samples_are_those_that_taking_them_keeps(self) -> None:
        batch = random_batch(4)
        chosen = torch.tensor([5, 0, 2])
        rows = batch.rows_of(chosen)
        assert batch.row_target[rows].tolist() == batch.take(chosen).row_target.tolist()
        assert rows.tolist() == [
            r for n in chosen.tolist() for r in range(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
        ]

    def test_lengths_and_devices(self) -> None:
        batch = random_batch(5)
        assert batch.lengths.tolist() == [len(sample(batch, n)["tokens"]) for n in range(7)]  # type: ignore[arg-type]
        assert equal(batch.to("cpu"), batch)


class TestPools:
    def test_keep_group_member_and_step_in_order(self) -> None:
        groups = random_groups(0, groups=3, members=4)
        pool = Pool.from_groups(groups)
        flat = [
            (g, m, s, t)
            for g, group in enumerate(groups)
            for m, e in enumerate(group.episodes)
            for s, t in enumerate(e.transitions)
        ]
        assert pool.transitions == [t for *_, t in flat] and len(pool) == len(flat)
        assert pool.group.tolist() == [g for g, *_ in flat] and pool.episode.tolist() == [
            4 * g + m for g, m, *_ in flat
        ]
        assert (
            pool.step.tolist() == [s for _, _, s, _ in flat]
            and pool.episode_group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        )
        assert pool.rewards.tolist() == [t.reward for *_, t in flat] and pool.valid.tolist() == [
            t.valid for *_, t in flat
        ]
        assert (
            pool.returns.tolist() == [e.episode_return for g in groups for e in g.episodes]
            and pool.num_groups == 3
        )

    def test_drop_episodes_that_broke_and_groups_without_any_left(self) -> None:
        groups = random_groups(1, groups=4, members=3)
        for e in groups[1].episodes:
            e.failed_by_environment = True
        groups[2].episodes[0].failed_by_environment = True
        groups[3].episodes[2].transitions = []  # won at its reset: nothing to learn from
        pool = Pool.from_groups(groups)
        kept = [groups[0].episodes, groups[2].episodes[1:], groups[3].episodes[:2]]
        assert pool.episodes == [e for part in kept for e in part] and pool.num_groups == 3
        assert pool.episode_group.tolist() == [0, 0, 0, 1, 1, 2, 2]
        assert [pool.episode_group[int(e)] for e in pool.episode] == pool.group.tolist()
        assert pool.transitions == [t for part in kept for e in part for t in e.transitions]
        whole = Pool.from_groups([Group(9, "t", "x", episodes) for episodes in kept])
        assert torch.equal(pool.returns, whole.returns) and torch.equal(pool.group, whole.group)

    def test_may_be_empty(self) -> None:
        groups = random_groups(2, groups=1, members=2)
        for e in groups[0].episodes:
            e.failed_by_environment = True
        for nothing in (Pool.from_groups(groups), Pool.from_groups([])):
            assert len(nothing) == nothing.num_groups == len(nothing.episodes) == 0
            assert (
                nothing.group.shape
                == nothing.episode.shape
                == nothing.returns.shape
                == nothing.action_sample.shape
                == (0,)
            )

    def test_know_the_transition_of_each_action_token(self) -> None:
        pool = random_pool(3)
        expected = [n for n, t in enumerate(pool.transitions) for _ in t.response_ids]
        assert pool.action_sample.tolist() == expected

    def test_return_is_the_sum_of_the_environments_rewards_without_penalties(self) -> None:
        [group] = random_groups(4, groups=1, members=1)
        [episode] = group.episodes
        for t, reward in zip(episode.transitions, (0.5, 1.0, 2.0, 0.25, 4.0), strict=False):
            t.reward, t.valid = reward, False
        assert episode.episode_return == sum((0.5, 1.0, 2.0, 0.25, 4.0)[: len(episode.transitions)])


def test_kinds_of_rows_are_told_apart() -> None:
    assert ACTION != OBSERVATION
    assert {f.name for f in fields(Transition)} >= {
        "prompt_ids",
        "response_ids",
        "bridge_ids",
        "observation_ids",
    }
