"""The table behind conversion, against the layouts written down once more, plainly; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from paw_hpc.policy.convert import names
from paw_hpc.policy.convert.architecture import Architecture, architecture_of
from paw_hpc.policy.convert.names import (
    EMBEDDING,
    OUTPUT,
    hf_shapes,
    interleaved_qkv,
    local_name,
    parameters,
    share,
)
from paw_hpc.system.errors import CheckpointError
from tests.policy.models import SIZES

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
CONFIGS = {
    "qwen2 tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2 untied": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3 tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "qwen3 untied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
    "llama tied": LlamaConfig(
        **SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 64}
    ),
    "llama untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
}


def cut(
    architecture: Architecture, parameter: str, tensors: dict[str, torch.Tensor], rank: int, tp: int
) -> torch.Tensor:
    """A rank's parameter by the table; the vocabulary of 50 is padded to a multiple of `tp`."""
    part = share(architecture, parameter, rank, tp, -(-architecture.vocabulary // tp) * tp)
    pieces = [tensors[p.name].narrow(part.dim, p.start, len(p)) for p in part.pieces]
    found = torch.cat(pieces, part.dim) if pieces else torch.empty(0, architecture.hidden)
    padding = list(found.shape)
    padding[part.dim] = part.length - found.shape[part.dim]
    return torch.cat([found, torch.zeros(padding)], part.dim)


def plainly(a: Architecture, parameter: str, t: dict[str, torch.Tensor], rank: int, tp: int) -> torch.Tensor:
    """The same from Megatron's documentation of its layouts: build the whole parameter, then chunk it."""
    if parameter in (EMBEDDING, OUTPUT):
        whole = t["model.embed_tokens.weight"] if parameter == EMBEDDING or a.tied else t["lm_head.weight"]
        rows = -(-a.vocabulary // tp)
        return torch.cat([whole, torch.zeros(rows * tp - a.vocabulary, a.hidden)])[
            rank * rows : (rank + 1) * rows
        ]
    if parameter == "decoder.final_layernorm.weight":
        return t["model.norm.weight"]
    layer, leaf = parameter.removeprefix("decoder.layers.").split(".", 1)
    layer = f"model.layers.{layer}."
    if leaf.startswith("self_attention.linear_qkv."):
        q, k, v = (t[f"{layer}self_attn.{x}_proj.{leaf.split('.')[-1]}"] for x in "qkv")
        q, k, v = (
            q.unflatten(0, (a.kv_heads, -1)),
            k.unflatten(0, (a.kv_heads, -1)),
            v.unflatten(0, (a.kv_heads, -1)),
        )
        return torch.cat([q, k, v], dim=1).flatten(0, 1).chunk(tp)[rank]
    if leaf == "mlp.linear_fc1.weight":
        return torch.cat(
            [
                t[f"{layer}mlp.gate_proj.weight"].chunk(tp)[rank],
                t[f"{layer}mlp.up_proj.weight"].chunk(tp)[rank],
            ]
        )
    if leaf == "mlp.linear_fc2.weight":
        return t[f"{layer}mlp.down_proj.weight"].chunk(tp, dim=1)[rank]
    if leaf == "self_attention.linear_proj.weight":
        return t[f"{layer}self_attn.o_proj.weight"].chunk(tp, dim=1)[rank]
    norms = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}
    norms |= {
        "self_attention.q_layernorm": "self_attn.q_norm",
        "self_attention.k_layernorm": "self_attn.k_norm",
    }
    return t[f"{layer}{norms[leaf.removesuffix('.weight')]}.weight"]


def numbered(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Tensors in which every element is a number of its own."""
    count, tensors = 0, {}
    for name, shape in hf_shapes(architecture).items():
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(count, count + size, dtype=torch.float64).view(shape).float()
        count += size
    assert count < 2**24
    return tensors


def all_equal(architecture: Architecture) -> bool:
    tensors = numbered(architecture)
    everything = parameters(architecture, range(architecture.layers), first=True, last=True) | {OUTPUT}
    return all(
        torch.equal(
            cut(architecture, name, tensors, rank, tp), plainly(architecture, name, tensors, rank, tp)
        )
        for name in everything
        for tp in (1, 2, 4)
        for rank in range(tp)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_shares_are_those_of_the_plain_layouts(name: str) -> None:
    # With tp = 4 two ranks share a query group, which cuts through the interleaved rows.
    assert all_equal(architecture_of(CONFIGS[name]))


def test_a_flat_qkv_or_swapped_gate_and_up_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = architecture_of(CONFIGS["qwen2 tied"])

    def flat(a: Architecture, layer: str, kind: str) -> list[names.Piece]:
        return sorted(
            interleaved_qkv(a, layer, kind),
            key=lambda piece: ("qkv".index(piece.name.split(".")[-2][0]), piece.start),
        )

    with monkeypatch.context() as m:
        m.setattr(names, "interleaved_qkv", flat)
        assert not all_equal(architecture)
    gate_and_up = names.gate_and_up
    with monkeypatch.context() as m:
        m.setattr(names, "gate_and_up", lambda layer: gate_and_up(layer)[::-1])
        assert not all_equal(architecture)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_element_is_on_exactly_one_rank(name: str, tp: int) -> None:
    architecture = architecture_of(CONFIGS[name])
    held = {tensor: torch.zeros(shape, dtype=torch.int) for tensor, shape in hf_shapes(architecture).items()}
    for parameter in parameters(architecture, range(architecture.layers), first=True, last=True):
        for rank in range(tp):
            part = share(architecture, parameter, rank, tp, -(-architecture.vocabulary // tp) * tp)
            for piece in part.pieces if rank == 0 or not part.replicated else ():
                held[piece.name].narrow(part.dim, piece.start, len(piece)).add_(1)
    assert all((counts == 1).all() for counts in held.values())


def test_transformer_engine_names_are_the_same_weights() -> None:
    architecture = architecture_of(CONFIGS["qwen3 tied"])
    for fused, plain in (
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ):
        assert local_name(f"decoder.layers.1.{fused}") == f"decoder.layers.1.{plain}"
        assert share(architecture, f"decoder.layers.1.{fused}", 0, 1, 50) == share(
            architecture, f"decoder.layers.1.{plain}", 0, 1, 50
        )


@pytest.mark.parametrize(
    ("first", "last", "tied", "untied"), [(1, 1, 0, 1), (1, 0, 0, 0), (0, 1, 1, 1), (0, 0, 0, 0)]
)
def test_a_tied_output_is_on_a_last_stage_without_the_embedding(
    first: int, last: int, tied: int, untied: int
) -> None:
    for name, expected in (("qwen2 tied", tied), ("qwen2 untied", untied)):
        architecture = architecture_of(CONFIGS[name])
        assert (OUTPUT in parameters(architecture, [0], first=bool(first), last=bool(last))) == bool(expected)
        assert OUTPUT not in parameters(architecture, [0], first=bool(first), last=bool(last), output=False)


@pytest.mark.parametrize(
    "parameter",
    ["decoder.layers.2.input_layernorm.weight", "decoder.layers.0.mlp.router.weight", "output_layer.bias"],
)
def test_parameters_of_other_models_are_refused(parameter: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"{parameter}: a qwen2 model of 2 layers has no such parameter"
    ):
        share(architecture_of(CONFIGS["qwen2 tied"]), parameter, 0, 1, 50)


def test_biases_and_head_norms_belong_to_their_families() -> None:
    for name, leaf in (("llama tied", "linear_qkv.bias"), ("qwen2 tied", "q_layernorm.weight")):
        with pytest.raises(CheckpointError, match="no such parameter"):
            share(architecture_of(CONFIGS[name]), f"decoder.layers.0.self_attention.{leaf}", 0, 1, 50)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"model.layers.0.mlp.down_proj.weight: its 64 rows cannot be split over a tensor-parallel "
        r"size of 3",
    ):
        share(architecture_of(CONFIGS["qwen2 tied"]), "decoder.layers.0.mlp.linear_fc2.weight", 0, 3, 51)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_sliding_window": True}, "use_sliding_window: True of a qwen2 model is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic' is not supported",
        ),
    ],
)
def test_what_would_change_the_mathematics_unnoticed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        architecture_of(Qwen2Config(**(SIZES | change)))


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"model_type 'mixtral' cannot be trained with Megatron; known: qwen2, qwen3, llama",
    ):
        architecture_of(type("Other", (), {"model_type": "mixtral"})())
    with pytest.raises(CheckpointError, match=r"attention_bias: True of a llama model"):
        architecture_of(LlamaConfig(**SIZES, attention_bias=True))
