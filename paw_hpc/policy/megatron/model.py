"""A Megatron-core GPT on packed tokens that ends in the hidden states of chosen rows: what the row head, or
the critic's, continues from.

Parameter names, local layers (chunk-local layer numbers; `chunk.decoder.layers[i].layer_number` counts from 1
over the whole model):

    embedding.word_embeddings.weight              [V / TP, H]; first stage
    decoder.layers.I.input_layernorm.weight   [H]   TE: self_attention.linear_qkv.layer_norm_weight
    decoder.layers.I.self_attention.linear_qkv.{weight,bias}   query groups: queries, key, value
    decoder.layers.I.self_attention.{q,k}_layernorm.weight        [head_dim]; Qwen3
    decoder.layers.I.self_attention.linear_proj.weight            [H, heads * head_dim / TP]
    decoder.layers.I.pre_mlp_layernorm.weight     [H]           TE: mlp.linear_fc1.layer_norm_weight
    decoder.layers.I.mlp.linear_fc1.weight        gate and up of this rank, one after the other
    decoder.layers.I.mlp.linear_fc2.weight        [H, F / TP]
    decoder.final_layernorm.weight                [H]; last stage
    output_layer.weight                           [V / TP, H]; last stage, unless tied on one stage
    value_head.{weight,bias}                      [1, H], [1]; last stage of a critic

V is `layout.padded_vocabulary(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from transformers import PreTrainedConfig

from paw_hpc.policy.convert.architecture import Architecture, architecture_of
from paw_hpc.policy.convert.transfer import unwrapped
from paw_hpc.policy.megatron.attention import PackedAttention, PackedSamples, RMSNorm, Rotary
from paw_hpc.policy.megatron.layout import Layout, has_transformer_engine
from paw_hpc.policy.megatron.shim import megatron
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import RecipeError

HeadKind = Literal["vocabulary", "value"]


class PackedGPT(GPTModel):
    """One pipeline chunk. On the last stage `forward` returns the hidden states of rows; elsewhere those of
    this rank's tokens."""

    def __init__(self, *, hf_config: PreTrainedConfig, head: HeadKind, **arguments: Any) -> None:
        super().__init__(position_embedding_type="none", **arguments)
        self.rotary = Rotary(hf_config)
        if head == "value" and self.post_process:
            del self.output_layer
            self.value_head = torch.nn.Linear(self.config.hidden_size, 1, dtype=torch.float32)

    @property
    def head_weight(self) -> torch.Tensor:
        """[V / TP, H] on the last stage."""
        return (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """A critic's last stage: hidden [R, H] -> float32[R]."""
        return self.value_head(hidden.float())[:, 0]

    def forward(
        self, tokens: torch.Tensor, position_ids: torch.Tensor, rows: torch.Tensor, samples: PackedSamples
    ) -> torch.Tensor:  # type: ignore[override]
        """One micro-batch.

        Args:
            tokens, position_ids: int64[T] on the device, of a number of tokens that sequence parallelism
                divides.
            rows: int64[R], tokens whose hidden states are wanted.
            samples: who sees whom; `cos` and `sin` are filled in here.

        Returns:
            [R, H] on the last stage, the same on all its tensor-parallel ranks; its gradient must be whole on
            each of them. On the others [T, 1, H] ([T / TP, 1, H] under sequence parallelism).
        """
        samples.cos, samples.sin = self.rotary(position_ids, self.config.params_dtype)
        embedded = (
            self.embedding(input_ids=tokens[None], position_ids=position_ids[None])
            if self.pre_process
            else None
        )
        hidden = self.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=samples)
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden[:, 0].index_select(0, rows)


def build_model(
    hf_config: PreTrainedConfig,
    layout: Layout,
    recipe: Recipe,
    *,
    head: HeadKind = "vocabulary",
    device: torch.device | str = "cpu",
) -> list[PackedGPT]:
    """This rank's chunks (one, or `layout.virtual`), with weights that are still to be loaded.

    Args:
        hf_config: of a known architecture, see `convert.architecture`.
        layout: open.
        head: "value" makes a critic's backbone.

    Raises:
        CheckpointError: an architecture that Megatron cannot train.
        RecipeError: the layout does not divide it.
    """
    model = architecture_of(hf_config)
    layout.check(model)
    config = transformer_config(model, layout, recipe)
    chunks = []
    with megatron():
        for stage in range(layout.chunks):
            chunks.append(
                _build_chunk(
                    hf_config, model, config, layout, recipe, head, stage if layout.virtual else None
                )
            )
    for chunk in chunks:
        _mark_shards(chunk)
    return [chunk.to(device) for chunk in chunks]


def transformer_engine_wanted(recipe: Recipe) -> bool:
    """Whose layers a recipe gets on this machine. Raises RecipeError where it forces what is not
    installed."""
    forced = recipe.megatron.layers == "transformer_engine"
    if forced and not has_transformer_engine():
        raise RecipeError("megatron.layers: Transformer Engine is not installed; use auto or local")
    # Its layers cut sequences in a way of their own, and know no copies of what was computed once.
    for key, asked in (
        ("megatron.context_parallel", recipe.megatron.context_parallel > 1),
        ("policy.share_prefixes", recipe.policy.share_prefixes),
    ):
        if asked and forced:
            raise RecipeError(
                f"megatron.layers: transformer_engine cannot do {key} here; use auto or local, or leave "
                f"{key} off"
            )
        if asked:
            return False
    return forced or (recipe.megatron.layers == "auto" and has_transformer_engine())


def transformer_config(model: Architecture, layout: Layout, recipe: Recipe) -> Any:
    """Megatron-core's configuration of a model in a layout: what the checkpoint decides, the parallel sizes,
    precision, recomputation."""
    section, dtype = recipe.megatron, getattr(torch, recipe.model.dtype)
    options: dict[str, Any] = {}
    if layout.virtual:
        # The interleaved schedule with two stages and batched communication mixes up what it receives (losses
        # off by 0.4).
        options |= {
            "virtual_pipeline_model_parallel_size": layout.virtual,
            "overlap_p2p_comm": True,
            "batch_p2p_comm": False,
        }
    stages = layout.stages(model.layers)
    if len(set(stages)) > 1:
        parts = [["decoder"] * layers for layers in stages]
        options["pipeline_model_parallel_layout"] = [
            ["embedding", *parts[0]],
            *parts[1:-1],
            [*parts[-1], "loss"],
        ]
    if section.recompute == "selective":
        options |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    elif section.recompute == "full":
        options |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": section.recompute_layers,
        }
    return TransformerConfig(
        **model.transformer_fields(),
        **options,
        activation_func=F.silu,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence,
        use_cpu_initialization=True,
        perform_initialization=False,
        # Micro-batches differ in length. Megatron accepts that only beside this dispatcher, which a dense
        # model never uses.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # Gradients are sums: every weight is already normalized over the whole update (see
        # objective/plan.py).
        calculate_per_token_loss=True,
        # The interleaved schedule gives an output's memory back while it is being sent. gloo reads from that
        # memory (gradients off by 0.3, seldom).
        deallocate_pipeline_outputs=layout.virtual is None or torch.cuda.is_available(),
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def _build_chunk(
    hf_config: PreTrainedConfig,
    model: Architecture,
    config: Any,
    layout: Layout,
    recipe: Recipe,
    head: HeadKind,
    stage: int | None,
) -> PackedGPT:
    first = layout.first_stage and stage in (None, 0)
    last = layout.last_stage and stage in (None, layout.chunks - 1)
    return PackedGPT(
        hf_config=hf_config,
        head=head,
        config=config,
        transformer_layer_spec=_layers(config, model, recipe, stage),
        vocab_size=layout.padded_vocabulary(model.vocabulary),
        max_sequence_length=model.max_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=model.tied and head == "vocabulary",
        vp_stage=stage,
    )


def _mark_shards(chunk: PackedGPT) -> None:
    """Say which weights are shards. Megatron's random initialization, which is skipped here, would have done
    it, and the norm of the gradients counts unmarked weights on the first tensor-parallel rank only."""
    for module in chunk.modules():
        dim = (
            1
            if isinstance(module, RowParallelLinear)
            else 0
            if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding))
            else None
        )
        weight = getattr(module, "weight", None)
        if dim is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=1)


def _layers(config: Any, model: Architecture, recipe: Recipe, stage: int | None) -> Any:
    """What a chunk's block is made of."""
    if transformer_engine_wanted(recipe):
        from paw_hpc.policy.megatron.engine_layers import transformer_engine_layers

        return transformer_engine_layers(config, model, stage)
    layer = cast(ModuleSpec, get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=model.qk_norm))
    parts = cast(Any, layer.submodules)
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=stage), layer_norm=RMSNorm
    )


def last_chunk(chunks: Sequence[torch.nn.Module]) -> PackedGPT:
    """The chunk that has the head, if this is the last stage."""
    return cast(PackedGPT, unwrapped(chunks[-1]))
