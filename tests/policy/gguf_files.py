"""Tiny models as GGUF files, and every way in which such a file can be unfit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

END = "<|im_end|>"
TOKENS = [*sorted(ByteLevel.alphabet()), "ab", END]
H, FEED_FORWARD, KEYS = 32, 64, 16
SHAPES: Mapping[str, tuple[int, ...]] = {
    "token_embd.weight": (len(TOKENS), H),
    "output_norm.weight": (H,),
    "blk.0.attn_norm.weight": (H,),
    "blk.0.attn_q.weight": (H, H),
    "blk.0.attn_k.weight": (KEYS, H),
    "blk.0.attn_v.weight": (KEYS, H),
    "blk.0.attn_output.weight": (H, H),
    "blk.0.ffn_norm.weight": (H,),
    "blk.0.ffn_gate.weight": (FEED_FORWARD, H),
    "blk.0.ffn_up.weight": (FEED_FORWARD, H),
    "blk.0.ffn_down.weight": (H, FEED_FORWARD),
}
"""One layer of Llama with tied embeddings."""


@dataclass(frozen=True)
class Made:
    """What is written; the defaults make a file that can be converted.

    Attributes:
        without: tensors that are left out.
        also: tensors that no Llama has, and their shapes.
        quantization: gguf's name of how matrices are stored.
    """

    architecture: str = "llama"
    tokenizer: bool = True
    words: str = "smollm"
    chat_template: str | None = "{% for message in messages %}{{ message['content'] }}" + END + "{% endfor %}"
    ends: bool = True
    rotary_scaling: str | None = None
    parts: int = 1
    without: tuple[str, ...] = ()
    also: tuple[tuple[str, tuple[int, ...]], ...] = ()
    quantization: str = "F32"


def tensors(made: Made) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Random numbers, the same for the same tensors."""
    draws = np.random.default_rng(0)
    shapes = {name: shape for name, shape in SHAPES.items() if name not in made.without} | dict(made.also)
    return {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(file: Path, made: Made = Made()) -> Path:
    import gguf

    writer = gguf.GGUFWriter(file, made.architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(H)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    if made.rotary_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(made.rotary_scaling))
    if made.parts > 1:
        writer.add_uint16("split.count", made.parts)
    if made.tokenizer:
        _write_tokenizer(writer, made)
    kind = gguf.GGMLQuantizationType[made.quantization]
    for name, values in tensors(made).items():
        if values.ndim == 1 or made.quantization == "F32":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, _stored(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: Any, made: Made) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(made.words)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["a b"])
    if made.ends:
        writer.add_eos_token_id(TOKENS.index(END))
    if made.chat_template is not None:
        writer.add_chat_template(made.chat_template)


def _stored(values: np.ndarray[Any, Any], kind: Any) -> Any:
    """Blocks of the quantization; zeros of the right size where gguf cannot make them."""
    import gguf

    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return np.zeros((values.shape[0], values.shape[1] // block * size), np.uint8)
