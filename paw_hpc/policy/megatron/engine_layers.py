"""Transformer Engine's layers (fused norms, FlashAttention on packed samples), for machines that have it.
Never run; without context parallelism."""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.policy.megatron.attention import PackedSamples, rotate


class RotatedAttention(TEDotProductAttention):
    """Transformer Engine's attention behind the rotary positions that travel with the samples."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *arguments: Any, **options: Any
    ) -> torch.Tensor:
        samples: PackedSamples = options["packed_seq_params"]
        assert samples.cos is not None and samples.sin is not None
        rotated = (rotate(x, samples.cos, samples.sin) for x in (query, key))
        return super().forward(*rotated, value, *arguments, **options)


def transformer_engine_layers(
    config: Any, model: Architecture, stage: int | None
) -> TransformerBlockSubmodules:
    """What a chunk's block is made of."""
    layer = cast(ModuleSpec, get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm))
    cast(Any, layer.submodules).self_attention.submodules.core_attention = RotatedAttention
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=stage), layer_norm=TENorm
    )
