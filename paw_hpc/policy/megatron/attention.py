"""What Megatron-core's local layers lack: attention on packed samples with rotary positions and context
parallelism, and RMSNorm under sequence parallelism.

Positions are applied right before attention, by each token's own position id. So the frequencies are those of
`transformers` (every scaling that it knows), and nothing depends on how samples are packed or split over
ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paw_hpc.policy.packed import Packing


@dataclass
class PackedSamples(PackedSeqParams):
    """What travels through the layers with the tokens of a micro-batch."""

    packing: Packing | None = None
    """Who sees whom (unused with Transformer Engine, which reads cu_seqlens)."""
    cos: torch.Tensor | None = None  # [T, 1, head_dim], in the model's dtype
    sin: torch.Tensor | None = None


class Rotary(nn.Module):
    """Cosine and sine of each token's position, as the model's own code in `transformers` computes them. No
    parameters."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        kind = (config.rope_parameters or {}).get("rope_type", "default")
        self.scaling = 1.0
        if kind == "default":
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            steps = torch.arange(0, width, 2, dtype=torch.int64).float() / width
            self.frequencies = 1.0 / (config.rope_parameters["rope_theta"] ** steps)
        else:
            self.frequencies, self.scaling = ROPE_INIT_FUNCTIONS[kind](config, "cpu")

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids int64[T] -> (cos, sin), each [T, 1, head_dim]."""
        self.frequencies = self.frequencies.to(position_ids.device)
        angles = torch.outer(position_ids.float(), self.frequencies).repeat(1, 2)[:, None]
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, head_dim] at its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class PackedAttention(MegatronModule):
    """Core attention of the local layers: causal within each sample, PyTorch's kernels, on CPU and GPU
    alike."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSamples | None = None,
    ) -> torch.Tensor:
        """query [T, heads, d], key and value [T, kv_heads, d] (of this rank's tokens and heads) -> [T, heads
        * d]."""
        assert (
            packed_seq_params is not None
            and packed_seq_params.packing is not None
            and attention_mask is None
            and attention_bias is None
        )
        cos, sin = packed_seq_params.cos, packed_seq_params.sin
        assert cos is not None and sin is not None
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.config.context_parallel_size > 1:
            return self._exchanged(query, key, value, packed_seq_params.packing).flatten(1)
        return packed_seq_params.packing.attend(self, query, key, value, self.scale).flatten(1)

    def _exchanged(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing
    ) -> torch.Tensor:
        """With context parallelism: every rank gets some heads of all tokens, attends, and gives back all
        heads of its own tokens (the exchange of DeepSpeed-Ulysses, Jacobs et al. 2023). Key heads that are
        too few are repeated, so that each rank has those that its query heads see."""
        from megatron.core import parallel_state

        group, ranks = parallel_state.get_context_parallel_group(), self.config.context_parallel_size
        repeats = key_head_repeats(key.shape[1], ranks)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        query, key, value = (heads_for_tokens(x, group) for x in (query, key, value))
        return tokens_for_heads(packing.attend(self, query, key, value, self.scale), group)


def key_head_repeats(key_heads: int, ranks: int) -> int:
    """How often each key head must be there for the ranks of a context-parallel group to have equally
    many."""
    return ranks // math.gcd(key_heads, ranks)


def heads_for_tokens(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[T / ranks, heads, d], this rank's tokens -> [T, heads / ranks, d], this rank's heads. Differentiable;
    a collective of the group."""
    ranks, (tokens, heads, width) = group.size(), x.shape
    sent = x.view(tokens, ranks, heads // ranks, width).transpose(0, 1).contiguous()
    return _AllToAll.apply(sent, group).view(ranks * tokens, heads // ranks, width)


def tokens_for_heads(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The inverse: [T, heads / ranks, d] -> [T / ranks, heads, d]."""
    ranks, (tokens, heads, width) = group.size(), x.shape
    received = _AllToAll.apply(x.view(ranks, tokens // ranks, heads, width).contiguous(), group)
    return received.transpose(0, 1).reshape(tokens // ranks, ranks * heads, width)


class _AllToAll(torch.autograd.Function):
    """[ranks, ...]: piece i goes to rank i, and piece i of the result came from there. It is its own
    transpose."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        out = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, gradient.contiguous(), group=ctx.group)
        return out, None


class RMSNorm(nn.Module):
    """Computed as the models of `transformers` do: statistics in float32, the weight applied in the input's
    dtype."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism a rank sees a part of the tokens only: Megatron sums the gradients of
        # what is marked so.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype)
