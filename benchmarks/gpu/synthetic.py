"""A policy of a given shape with random weights, and experience with the paper's lengths: throughput does not
need more."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.common import device
from benchmarks.policy import transitions
from paw_hpc.experience import Pool

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a transition, each drawn within a quarter of it."""

    prompt: int
    response: int
    observation: int


LENGTHS = {"alfworld": Lengths(392, 150, 36), "webshop": Lengths(590, 150, 142)}
"""Prompts and observations: means over the scripted experts' states under the paper's prompt (180 states of
20 official games; 981 of a generated catalogue), in tokens of Qwen's vocabulary, and 20 tokens of chat
template. Responses: an assumption, a short chain of thought; the limit is 512."""
TOY_LENGTHS = Lengths(40, 8, 10)

QWEN_1_5B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
}
"""The published shape of Qwen2.5-1.5B."""
TOY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
}


def model_folder(folder: Path, toy: bool) -> Path:
    """A Hugging Face folder: Qwen2 architecture, tied embeddings, random bfloat16 weights (float32 at toy
    size), a tokenizer of a few words.

    Made where it is not there yet; drawn on the GPU, where that takes a second.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    config = Qwen2Config(
        **(TOY if toy else QWEN_1_5B),
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    with device():
        model = Qwen2ForCausalLM(config)
    if not toy:
        model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    vocabulary = {"<|im_end|>": 0, "<|im_start|>": 1, "[UNK]": 2} | {f"word{i}": i for i in range(3, 256)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", unk_token="[UNK]", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return folder


def pool(lengths: Lengths, samples: int, vocabulary: int) -> Pool:
    """Random ids in groups of four episodes of four steps; half of the episodes succeed."""
    options = argparse.Namespace(
        samples=samples, prompt=lengths.prompt, response=lengths.response, observation=lengths.observation
    )
    return transitions(options, vocabulary)
