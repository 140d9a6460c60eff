"""Transitions -> one packed batch. Samples of an episode whose prompts go on from one another become one
sequence, in which every token is once."""

from __future__ import annotations

import numpy as np
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch, Ids, Pool, Transition, offsets_of

_NONE = np.empty(0, dtype=np.int32)


def pack(pool: Pool, observations: list[Ids], merge: bool = True) -> Batch:
    """Pack prompt + response (+ bridge + observation where there is one). Streams are still empty.

    Rows, and so all that is planned for them, are in the same order with and without chains: by transition,
    its response before its observation.

    Args:
        observations: of every transition, what the world model is trained on; empty: nothing.
        merge: into chains, where prompts go on from one another (`policy.merge_turns`).
    """
    goes_on = torch.tensor([merge and _goes_on(pool, observations, n) for n in range(len(pool))])
    parts = [
        (t.prompt_ids, t.response_ids, t.bridge_ids if len(o) else _NONE, o)
        for t, o in zip(pool.transitions, observations, strict=True)
    ]
    prompt, response, bridge, observation = (lengths_of([sample[k] for sample in parts]) for k in range(4))
    # The last prompt of a chain holds all that came before it, so the chain is its last sample.
    last = (~goes_on).nonzero().flatten()
    tokens = torch.from_numpy(
        np.concatenate([part for n in last.tolist() for part in parts[n]]).astype(np.int64)
    )
    lengths = (prompt + response + bridge + observation)[last]
    cu = offsets_of(lengths)
    sample_cu = torch.cat([last.new_zeros(1), last + 1])
    start = torch.repeat_interleave(cu[:-1], sample_cu[1:] - sample_cu[:-1])
    # Row segments: (action, observation) of each sample in turn. The row of a token stands one position
    # before it.
    first_row = torch.stack([start + prompt - 1, start + prompt + response + bridge - 1], dim=1).flatten()
    rows = torch.stack([response, observation], dim=1).flatten()
    row_position = _within(rows) + torch.repeat_interleave(first_row, rows)
    kinds = torch.tensor([ACTION, OBSERVATION], dtype=torch.uint8).repeat(len(parts))
    return Batch(
        tokens=tokens,
        position_ids=_within(lengths),
        cu_seqlens=cu.int(),
        row_position=row_position,
        row_target=tokens[row_position + 1],
        row_kind=torch.repeat_interleave(kinds, rows),
        row_cu=offsets_of(response + observation),
        streams={},
        transition=torch.arange(len(parts)),
        sample_cu=sample_cu,
    )


def last_prompt_tokens(batch: Batch, pool: Pool) -> torch.Tensor:
    """int64[N]: the position of each sample's last prompt token, in a batch of the whole pool."""
    return (
        batch.cu_seqlens[:-1].long()[batch.sequence]
        + lengths_of([t.prompt_ids for t in pool.transitions])
        - 1
    )


def lengths_of(arrays: list[Ids]) -> torch.Tensor:
    """int64[n]."""
    return torch.tensor([len(a) for a in arrays], dtype=torch.long)


def _goes_on(pool: Pool, observations: list[Ids], n: int) -> bool:
    """Whether the prompt after transition `n` is its prompt, its response, its bridge and the observation
    that is trained on, and whatever more.

    Where another observation is trained on than the one that was seen (a control), that one has to stand at
    the end of a sequence.
    """
    if n + 1 == len(pool) or pool.episode[n] != pool.episode[n + 1]:
        return False
    seen, following = pool.transitions[n], pool.transitions[n + 1].prompt_ids
    before = 0
    for part in (seen.prompt_ids, seen.response_ids, *_target(seen, observations[n])):
        if not np.array_equal(following[before : before + len(part)], part):
            return False
        before += len(part)
    return True


def _target(seen: Transition, observation: Ids) -> tuple[Ids, ...]:
    return (seen.bridge_ids, observation) if len(observation) else ()


def _within(lengths: torch.Tensor) -> torch.Tensor:
    """0 .. l-1 for each length l, one after the other."""
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(offsets_of(lengths)[:-1], lengths)
