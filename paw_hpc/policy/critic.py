"""The critic of PPO: the policy's backbone with a scalar head, read at the last prompt token of each transition."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from paw_hpc.experience import Batch
from paw_hpc.policy.packed import Packing, hidden_states
from paw_hpc.seeding import derive_seed

HEAD_STD = 0.02


class Critic(nn.Module):
    """Starts from the policy's weights; the head is drawn from the seed with a small deviation, so first values are near 0."""

    def __init__(self, policy: PreTrainedModel, seed: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(getattr(policy, policy.base_model_prefix))
        self.head = draw_head(policy.config.hidden_size, seed).to(policy.device)

    def forward(self, tokens: torch.Tensor, position_ids: torch.Tensor, packing: Packing) -> torch.Tensor:
        """float32[N]: the value at the last token of each of N packed prompts (tokens int64[T])."""
        hidden = hidden_states(self.body, tokens, position_ids, packing)
        return self.head(hidden[packing.cu_seqlens[1:].long() - 1].float())[:, 0]


def draw_head(hidden_size: int, seed: int) -> nn.Linear:
    """The initial scalar head, float32 on the CPU: a function of the seed, whatever the backend."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32)
    weight = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(derive_seed(seed, "critic")))
    with torch.no_grad():
        head.weight.copy_(HEAD_STD * weight)
        head.bias.zero_()
    return head


def prompts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens[P], position_ids[P], cu_seqlens[N+1]) of the prompts alone: what follows the last prompt token cannot change its value."""
    assert batch.value_position is not None
    cu = batch.cu_seqlens.long()
    lengths = batch.value_position - cu[:-1] + 1
    keep = torch.repeat_interleave(batch.value_position, batch.lengths) >= torch.arange(batch.num_tokens)
    return batch.tokens[keep], batch.position_ids[keep], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
