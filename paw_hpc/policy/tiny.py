"""A small Qwen2-architecture policy from scratch, for machines without pretrained weights."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from paw_hpc.recipe import TinyModel
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.seeding import derive_seed

CONTEXT_TOKENS = 32768
"""Rotary positions cost nothing, so the context is that of Qwen2."""


def build_tiny(tiny: TinyModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A float32 model on the CPU with exactly the tokenizer's vocabulary; its weights are a function of
    `tiny`, the vocabulary size and `seed` alone.

    Raises:
        RecipeError: the tokenizer has no end-of-sequence token, so a policy could never end a turn.
    """
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            "model.tokenizer: it has no eos_token, so a model from scratch could not learn to end its "
            "turn; set one"
        )
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=tiny.hidden_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        intermediate_size=tiny.intermediate_size,
        tie_word_embeddings=tiny.tie_embeddings,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return Qwen2ForCausalLM(config)
