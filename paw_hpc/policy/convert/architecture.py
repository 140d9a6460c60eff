"""What a Hugging Face configuration says of a model that Megatron can train, or why it cannot.

Known: the dense decoder-only families below, which share one block (RMSNorm, rotary grouped-query attention,
gated SiLU feed-forward) and differ in biases of the attention inputs, norms of query and key, tied embeddings
and the scaling of rotary frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paw_hpc.system.errors import CheckpointError
from paw_hpc.system.outside import read_json

if TYPE_CHECKING:  # it imports torch, which `paw launch` can do without
    from transformers import PreTrainedConfig

KNOWN = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""`model_type` of a configuration -> its causal language model in `transformers`. Qwen2.5 is qwen2; Llama 3.x
is llama."""
_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary frequencies that are fixed before a sequence is seen."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's shape, family differences included. Sizes are of the whole model, not of a rank's share."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocabulary: int
    """Rows of the embedding in the Hugging Face layout (no padding for tensor parallelism)."""
    tied: bool
    """The output layer is the embedding."""
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    max_positions: int

    def transformer_fields(self) -> dict[str, Any]:
        """Fields of `megatron.core.transformer.TransformerConfig` that the checkpoint decides (layout,
        precision and fusions are the caller's)."""
        return {
            "num_layers": self.layers,
            "hidden_size": self.hidden,
            "ffn_hidden_size": self.ffn_hidden,
            "num_attention_heads": self.heads,
            "num_query_groups": self.kv_heads,
            "kv_channels": self.head_dim,
            "add_bias_linear": False,
            "add_qkv_bias": self.qkv_bias,
            "qk_layernorm": self.qk_norm,
            "normalization": "RMSNorm",
            "layernorm_epsilon": self.norm_eps,
            "gated_linear_unit": True,
        }


def parameter_count(count: int) -> str:
    """For people: 0.82M, 1.54B."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def read_architecture(folder: Path) -> tuple[Architecture, PreTrainedConfig]:
    """Of a Hugging Face folder. Raises CheckpointError for anything else, naming a model that is not known
    and those that are."""
    try:
        model_type = read_json((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: not a Hugging Face folder: its config.json cannot be read ({error})"
        ) from None
    if model_type not in KNOWN:
        raise CheckpointError(
            f"{folder}/config.json: model_type '{model_type}' cannot be trained with Megatron; known: "
            f"{', '.join(KNOWN)}"
        )
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    try:
        return architecture_of(config), config
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from None


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Of a configuration of `transformers`. Raises CheckpointError, naming the field, for anything that would
    change the mathematics unnoticed."""
    model_type = config.model_type
    if model_type not in KNOWN:
        raise CheckpointError(
            f"model_type '{model_type}' cannot be trained with Megatron; known: {', '.join(KNOWN)}"
        )
    for field, plain in (
        ("attention_bias", False),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("hidden_act", "silu"),
    ):
        if getattr(config, field, plain) != plain:
            raise CheckpointError(
                f"{field}: {getattr(config, field)!r} of a {model_type} model is not supported with "
                f"Megatron, only {plain!r}"
            )
    heads = config.num_attention_heads
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    if rotary not in _ROTARY:
        raise CheckpointError(
            f"rope_parameters: rope_type '{rotary}' is not supported with Megatron; known: "
            f"{', '.join(_ROTARY)}"
        )
    return Architecture(
        model_type=model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn_hidden=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
    )
