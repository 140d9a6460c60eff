"""The critic of PPO: the policy's backbone with a scalar head, read at the last prompt token of each
transition, or before every response token."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from paw_hpc.experience import ACTION, Batch, offsets_of
from paw_hpc.policy.packed import Packing, hidden_states
from paw_hpc.system.seeding import derive_seed

HEAD_STD = 0.02


class Critic(nn.Module):
    """Starts from the policy's weights; the head is drawn from the seed with a small deviation, so first
    values are near 0."""

    def __init__(self, policy: PreTrainedModel, seed: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(getattr(policy, policy.base_model_prefix))
        self.head = draw_head(policy.config.hidden_size, seed).to(policy.device)

    def forward(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, packing: Packing, row_position: torch.Tensor
    ) -> torch.Tensor:
        """float32[R]: the values at `row_position` (int64[R]) of packed samples (tokens int64[T])."""
        hidden = hidden_states(self.body, tokens, position_ids, packing)
        return self.head(hidden.index_select(0, row_position).float())[:, 0]


def draw_head(hidden_size: int, seed: int) -> nn.Linear:
    """The initial scalar head, float32 on the CPU: a function of the seed, whatever the backend."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32)
    weight = torch.randn(
        head.weight.shape, generator=torch.Generator().manual_seed(derive_seed(seed, "critic"))
    )
    with torch.no_grad():
        head.weight.copy_(HEAD_STD * weight)
        head.bias.zero_()
    return head


def critic_batch(batch: Batch, per_token: bool) -> Batch:
    """What the critic reads of a batch with `value_position`: one row per value, its streams among `streams`,
    and no token behind the last value.

    Args:
        per_token: a value before each token of a response (rows are the batch's action rows) instead of one
            at each last prompt token.
    """
    assert batch.value_position is not None
    cu, responses = batch.cu_seqlens[:-1].long(), _action_rows(batch)
    # behind the last token that is needed
    end = batch.value_position + (responses.clamp(min=1) if per_token else 1)
    end = end[batch.sample_cu[1:] - 1]  # by the last sample of a chain
    lengths = end - cu
    keep = torch.arange(batch.num_tokens, device=cu.device) < torch.repeat_interleave(end, batch.lengths)
    new_cu = offsets_of(lengths)
    shift = (new_cu[:-1] - cu)[batch.sequence]
    value_position = batch.value_position + shift
    if per_token:
        rows = batch.row_kind == ACTION
        row_position = batch.row_position[rows] + torch.repeat_interleave(shift, responses)
        row_cu, streams = (
            offsets_of(responses),
            {name: stream[rows] for name, stream in batch.streams.items()},
        )
    else:
        row_position, row_cu, streams = (
            value_position,
            torch.arange(len(batch) + 1, device=cu.device),
            batch.sample_streams,
        )
    return Batch(
        tokens=batch.tokens[keep],
        position_ids=batch.position_ids[keep],
        cu_seqlens=new_cu.int(),
        row_position=row_position,
        row_target=torch.zeros_like(row_position),
        row_kind=torch.full_like(row_position, ACTION, dtype=torch.uint8),
        row_cu=row_cu,
        streams=dict(streams),
        transition=batch.transition,
        value_position=value_position,
        sample_cu=batch.sample_cu,
    )


def _action_rows(batch: Batch) -> torch.Tensor:
    """int64[N]: how many action rows each sample has."""
    sample = torch.repeat_interleave(torch.arange(len(batch)), batch.row_cu[1:] - batch.row_cu[:-1])
    return torch.bincount(sample[batch.row_kind == ACTION], minlength=len(batch))
