"""Which parts of which Hugging Face tensors a rank's Megatron parameters are made of.

One table serves both directions. The layouts differ in three places: Megatron interleaves the rows of query,
key and value per query group (queries of the group, its key, its value); gate and up projection are stacked
*per tensor-parallel rank*; the vocabulary is padded until the ranks have equal parts. Transformer Engine
fuses a norm into the linear layer that follows, which only changes its name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.system.errors import CheckpointError

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
"""Megatron leaf (local spec, then Transformer Engine's) -> Hugging Face leaf."""
_HEAD_NORMS = {
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Slices start:stop, along the share's dimension, of one Hugging Face tensor."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank holds of a Megatron parameter: the pieces one after another along `dim`, then zeros up to
    `length`."""

    dim: int
    pieces: tuple[Piece, ...]
    length: int
    replicated: bool = False
    """Every tensor-parallel rank holds the same."""


def share(architecture: Architecture, parameter: str, rank: int, tp: int, padded_vocabulary: int) -> Share:
    """Of a Megatron parameter, named as in a whole model (layers counted over all pipeline stages).

    Args:
        rank, tp: tensor-parallel rank and size.
        padded_vocabulary: rows of the embedding over all ranks, a multiple of `tp`.

    Raises:
        CheckpointError: a parameter that the architecture does not have, or a size that `tp` does not divide.
    """
    a = architecture
    if parameter in (EMBEDDING, OUTPUT):
        name = "lm_head.weight" if parameter == OUTPUT and not a.tied else "model.embed_tokens.weight"
        rows = padded_vocabulary // tp
        start, stop = min(rank * rows, a.vocabulary), min((rank + 1) * rows, a.vocabulary)
        return Share(0, (Piece(name, start, stop),) if stop > start else (), rows)
    if parameter == "decoder.final_layernorm.weight":
        return _replicated("model.norm.weight", a.hidden)
    match = _LAYER.fullmatch(parameter)
    if match is None or int(match[1]) >= a.layers:
        raise _unknown(a, parameter)
    layer, leaf = f"model.layers.{match[1]}.", match[2]
    if leaf in _NORMS:
        return _replicated(layer + _NORMS[leaf], a.hidden)
    if leaf in _HEAD_NORMS and a.qk_norm:
        return _replicated(layer + _HEAD_NORMS[leaf], a.head_dim)
    if leaf == "self_attention.linear_qkv.weight" or (
        leaf == "self_attention.linear_qkv.bias" and a.qkv_bias
    ):
        return _split(0, interleaved_qkv(a, layer, leaf.rpartition(".")[2]), rank, tp)
    if leaf == "self_attention.linear_proj.weight":
        return _split(1, [Piece(f"{layer}self_attn.o_proj.weight", 0, a.heads * a.head_dim)], rank, tp)
    if leaf == "mlp.linear_fc1.weight":
        gate, up = (_split(0, [Piece(name, 0, a.ffn_hidden)], rank, tp) for name in gate_and_up(layer))
        return Share(0, gate.pieces + up.pieces, gate.length + up.length)
    if leaf == "mlp.linear_fc2.weight":
        return _split(1, [Piece(f"{layer}mlp.down_proj.weight", 0, a.ffn_hidden)], rank, tp)
    raise _unknown(a, parameter)


def interleaved_qkv(architecture: Architecture, layer: str, kind: str) -> list[Piece]:
    """The rows of Megatron's fused projection in order (`kind`: weight or bias): per query group its queries,
    its key, its value."""
    a, pieces = architecture, []
    q = a.heads // a.kv_heads * a.head_dim
    for group in range(a.kv_heads):
        for name, rows in (("q_proj", q), ("k_proj", a.head_dim), ("v_proj", a.head_dim)):
            pieces.append(Piece(f"{layer}self_attn.{name}.{kind}", group * rows, (group + 1) * rows))
    return pieces


def gate_and_up(layer: str) -> tuple[str, str]:
    """In the order in which a rank stacks them."""
    return f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"


def parameters(
    architecture: Architecture, layers: Sequence[int], *, first: bool, last: bool, output: bool = True
) -> set[str]:
    """Names, in the local spec, of a rank's model part.

    Args:
        layers: those that it has, from 0.
        first, last: the ends of the pipeline that it has.
        output: it is a language model, not a critic's backbone.
    """
    leaves = [
        *list(_NORMS)[::2],
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "mlp.linear_fc1.weight",
    ]
    leaves += [
        "mlp.linear_fc2.weight",
        *(["self_attention.linear_qkv.bias"] if architecture.qkv_bias else []),
    ]
    leaves += list(_HEAD_NORMS) if architecture.qk_norm else []
    names = {f"decoder.layers.{layer}.{leaf}" for layer in layers for leaf in leaves}
    names |= {EMBEDDING} if first else set()
    names |= {"decoder.final_layernorm.weight"} if last else set()
    # Tied models have an output weight of their own only where the embedding is on another stage.
    return names | ({OUTPUT} if output and last and not (architecture.tied and first) else set())


def local_name(parameter: str) -> str:
    """A Transformer Engine name as the local spec has it; others unchanged."""
    names = list(_NORMS)
    for ours, fused in zip(names[::2], names[1::2], strict=True):
        if parameter.endswith(fused):
            return parameter.removesuffix(fused) + ours
    return parameter


@functools.cache
def hf_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face layout and its shape, in the order of the layers."""
    a, h = architecture, architecture.hidden
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocabulary, h)}
    for i in range(a.layers):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (h,),
            "self_attn.q_proj.weight": (q, h),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.v_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, q),
            "post_attention_layernorm.weight": (h,),
            "mlp.gate_proj.weight": (a.ffn_hidden, h),
            "mlp.up_proj.weight": (a.ffn_hidden, h),
            "mlp.down_proj.weight": (h, a.ffn_hidden),
        }
        if a.qkv_bias:
            block |= {
                "self_attn.q_proj.bias": (q,),
                "self_attn.k_proj.bias": (kv,),
                "self_attn.v_proj.bias": (kv,),
            }
        if a.qk_norm:
            block |= {"self_attn.q_norm.weight": (a.head_dim,), "self_attn.k_norm.weight": (a.head_dim,)}
        shapes |= {f"model.layers.{i}.{leaf}": shape for leaf, shape in block.items()}
    return shapes | {"model.norm.weight": (h,)} | ({} if a.tied else {"lm_head.weight": (a.vocabulary, h)})


def _replicated(name: str, length: int) -> Share:
    return Share(0, (Piece(name, 0, length),), length, replicated=True)


def _split(dim: int, order: list[Piece], rank: int, tp: int) -> Share:
    """The rank's equal part of pieces in their order."""
    total = sum(len(p) for p in order)
    if total % tp:
        raise CheckpointError(
            f"{order[0].name}: its {total} rows cannot be split over a tensor-parallel size of {tp}"
        )
    first, last = rank * total // tp, (rank + 1) * total // tp
    mine, position = [], 0
    for piece in order:
        start, stop = max(first - position, 0), min(last - position, len(piece))
        if start < stop:
            mine.append(Piece(piece.name, piece.start + start, piece.start + stop))
        position += len(piece)
    return Share(dim, tuple(mine), last - first)


def _unknown(architecture: Architecture, parameter: str) -> CheckpointError:
    return CheckpointError(
        f"{parameter}: a {architecture.model_type} model of {architecture.layers} layers has no such "
        "parameter"
    )
