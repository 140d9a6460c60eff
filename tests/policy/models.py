"""Tiny models and tokenizers for tests: random weights, a vocabulary of words w0, w1, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from paw_hpc.policy.huggingface import HuggingFacePolicy
from tests.factories import tiny_recipe

VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
MODELS = {
    "qwen2 tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen2 untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    sharpen(model)
    return model


@torch.no_grad()
def sharpen(model: PreTrainedModel) -> None:
    """Weights four times as large as an initialization's, so that neither attention nor the next token is
    near uniform."""
    for parameter in model.parameters():
        parameter.mul_(4.0) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))


def word_tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """w0 is unknown, w1 ends a turn."""
    core = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="w1")


def tokenizer_folder(folder: Path) -> str:
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def model_folder(folder: Path, name: str = "qwen2 tied", seed: int = 0) -> str:
    """A random model and its tokenizer as a Hugging Face folder."""
    random_model(name, seed).save_pretrained(folder)
    return tokenizer_folder(folder)


def policy_from(folder: str, **dotted: Any) -> HuggingFacePolicy:
    """The policy in a folder, on the CPU; recipe keys as in `tiny_recipe`."""
    options = {
        "model.tiny": None,
        "model.tokenizer": None,
        "model.path": folder,
        "model.device": "cpu",
        "optimizer.lr": 1e-3,
    }
    return HuggingFacePolicy(tiny_recipe(**(options | dotted)))
