"""A word-level tokenizer for tiny models: every word of ALFWorld's domain and grammar, chat markers, numbers.

`alfworld_texts` gives the installed package's own vocabulary (names, grammar, goal sentences): no game of any
split, played or not, holds a word that is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paw_hpc.envs.alfworld.official import installed_logic
from paw_hpc.recipe import TASK_TYPES

SPECIAL = ("<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_NUMBER = 40
"""Highest number of a receptacle or object that is a word of its own (the official games go to 30)."""


def alfworld_texts() -> Iterator[str]:
    """Every word that ALFWorld can say in its text games: sentences of the grammar, command templates, goals,
    names of objects and receptacles."""
    from alfworld.gen import constants, goal_library

    _, grammar = installed_logic()
    for sentence in re.findall(r'"rhs": "(.*)"|template :: "(.*)"', grammar):
        # What stands in braces and hashes is code; a list in brackets is code, too.
        yield re.sub(r"\\n|\{[^}]*\}|#[^#]*#|\[[^\]]*\]", " ", "".join(sentence))
    for task_type in TASK_TYPES:
        for template in goal_library.gdict[task_type]["templates"]:
            yield template.format(obj="", recep="", toggle="desklamp")
    yield " ".join([*constants.OBJECTS, *constants.RECEPTACLES])


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the lower-cased words of `texts`, punctuation and the numbers up to
    MAX_NUMBER."""
    words = {w for text in texts for w in re.findall(r"[a-z]+|[^\sa-z0-9]", text.lower())}
    vocabulary = [*SPECIAL, *(str(n) for n in range(MAX_NUMBER + 1)), *sorted(words - set(SPECIAL))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(texts: Iterable[str], folder: Path) -> Path:
    build_tokenizer(texts).save_pretrained(folder)
    return folder
