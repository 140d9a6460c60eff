"""Scripted players: an engine whose answers are a function of the prompt's text, and a tokenizer that can say
anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS = PlaySettings(
    run_seed=7,
    purpose="train",
    temperature=1.0,
    max_prompt_tokens=20_000,
    max_response_tokens=500,
    max_observation_tokens=200,
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the chat's markers."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(alphabet))}, []))
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = CHATML
    return made


CHAT = ChatFormat(byte_tokenizer())


class Scripted:
    """Implements the engine's protocol; `say` gives the response to a prompt's text."""

    def __init__(self, say: Callable[[str], str]):
        self._say = say

    def join(self, episode: int) -> None: ...

    def leave(self, episode: int) -> None: ...

    async def generate(self, request: GenerationRequest) -> Completion:
        ids = CHAT.answer(self._say(CHAT.decode(request.prompt_ids)))
        return Completion(ids, np.zeros(len(ids), dtype=np.float32), None, weight_version=0, finished=True)
