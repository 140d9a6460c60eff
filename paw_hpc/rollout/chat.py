"""Prompts and observations as token ids, through the model's own chat template."""

from __future__ import annotations

import re

import numpy as np
from transformers import PreTrainedTokenizerBase

from paw_hpc.envs.base import Message
from paw_hpc.errors import DataError
from paw_hpc.experience import Ids

_FIRST, _ANSWER, _NEXT = "aaaa", "bbbb", "cccc"
_DATE = "26 Jul 2024"
"""Llama 3's template writes today's date into every prompt unless it is given one (this is its own default); a run must not change overnight."""


class ChatFormat:
    """What stands between the parts of a transition.

    A transition is serialized once as prompt, response, bridge, observation: the observation is the next user turn of the chat template, so the
    bridge is what the template puts between the end of an answer and the next user message. It is found by rendering a three-message conversation.

    Only the template may end or begin turns: where the text of a message or an observation (a web page, a passage) spells a special token, it is
    encoded as the plain characters that it is.

    Raises:
        DataError: the tokenizer has no chat template, or one that rewrites earlier turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise DataError(f"model.path: the tokenizer in {tokenizer.name_or_path!r} has no chat template; use an instruct model or add one")
        self._tokenizer = tokenizer
        special = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._end = self._turn_end()
        between = self._between()
        closed = between.removeprefix(self._end)
        self._after_end = self._encode(closed)
        self._after_cut = self._encode(between)

    def prompt(self, messages: list[Message]) -> Ids:
        """int32[P]: the conversation up to where the assistant begins to answer."""
        messages, spelled = self._set_aside(messages)
        text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=_DATE))
        if not spelled:
            return self._encode(text)
        parts = re.split("|".join(map(re.escape, spelled)), text)
        marks = re.findall("|".join(map(re.escape, spelled)), text)
        pieces = [self._encode(parts[0])]
        for mark, part in zip(marks, parts[1:], strict=True):
            pieces += [self._encode(spelled[mark], plain=True), self._encode(part)]
        return np.concatenate(pieces)

    def answer(self, text: str) -> Ids:
        """int32[A]: a whole assistant turn with its end-of-turn token (for cloning; a played turn keeps the ids that were sampled)."""
        return self._encode(text + self._end)

    def ends_turn(self, response: Ids) -> bool:
        """Whether a response closes its turn itself (one cut at its length, or ended by a stop string, does not)."""
        return len(response) > 0 and int(response[-1]) == self._tokenizer.eos_token_id

    def bridge(self, finished: bool) -> Ids:
        """int32[B]: the template's tokens between response and next observation, the end of the turn first where the response lacks it."""
        return self._after_end if finished else self._after_cut

    def observation(self, text: str, limit: int) -> tuple[Ids, bool]:
        """(int32[O] ids, was it cut): the observation's own tokens, at most `limit`."""
        ids = self._encode(text, plain=True)
        return ids[:limit], len(ids) > limit

    def offsets(self, text: str, ids: Ids) -> list[tuple[int, int]] | None:
        """Each token's span in the text, in characters; None where the text would be tokenized in another way."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return encoded["offset_mapping"] if encoded["input_ids"] == ids.tolist() else None

    def decode(self, ids: Ids) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def _encode(self, text: str, plain: bool = False) -> Ids:
        """int32[T]; `plain`: special tokens that the text spells are characters like any others."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain), dtype=np.int32)

    def _set_aside(self, messages: list[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with a mark in place of every special token that they spell, and what each mark stands for."""
        contents = [message["content"] for message in messages]
        if not any(map(self._special.search, contents)):
            return messages, {}
        fence = next(c for c in map(chr, range(0xE000, 0xF900)) if not any(c in content for content in contents))
        tokens = sorted({token for content in contents for token in self._special.findall(content)})
        mark_of = {token: f"{fence}{number}{fence}" for number, token in enumerate(tokens)}
        marked = [{**m, "content": self._special.sub(lambda match: mark_of[match[0]], m["content"])} for m in messages]
        return marked, {mark: token for token, mark in mark_of.items()}

    def _turn_end(self) -> str:
        """The text of the token that ends a turn (what the engine stops at)."""
        return str(self._tokenizer.eos_token)

    def _between(self) -> str:
        conversation = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        text = str(self._tokenizer.apply_chat_template(conversation, tokenize=False, date_string=_DATE))
        if text.count(_ANSWER) != 1 or text.count(_NEXT) != 1:
            raise DataError("the chat template does not keep an assistant turn followed by a user turn; the world-model target cannot be placed")
        between = text[text.index(_ANSWER) + len(_ANSWER) : text.index(_NEXT)]
        if not between.startswith(self._end):
            raise DataError(
                f"the chat template does not end a turn with the tokenizer's eos token {self._end!r}; set tokenizer.eos_token to the turn's end"
            )
        return between
