"""Prompts and observations as token ids, through the model's own chat template."""

from __future__ import annotations

import logging
import re

import numpy as np
from transformers import PreTrainedTokenizerBase

from paw_hpc.envs.answers import CLOSE_THOUGHT, OPEN_THOUGHT
from paw_hpc.envs.base import Message
from paw_hpc.experience import Ids
from paw_hpc.rollout.chat_template import ChatTemplate
from paw_hpc.system.errors import DataError

_log = logging.getLogger(__name__)
_FIRST, _ANSWER, _NEXT = "aaaa", "bbbb", "cccc"
_THOUGHTFUL = f"{OPEN_THOUGHT}\ndddd\n{CLOSE_THOUGHT}\n\n{_ANSWER}"
_OPENED = re.compile(rf"{OPEN_THOUGHT}\s*\Z")
_FENCE = "\ue000"
_TAG = re.compile(r"</?(?:think|action|search|answer)>")


class ChatFormat:
    """What stands between the parts of a transition.

    A transition is serialized once as prompt, response, bridge, observation: the observation is the next user
    turn of the chat template, so the bridge is what the template puts between the end of an answer and the
    next user message. It is found by rendering a three-message conversation. The response stays as it was
    sampled, its thought included, also where the template would leave out the thoughts of earlier turns.

    Where the template's prompt for an answer ends in an opened thought (`<think>`), a response begins inside
    of it and carries the closing tag alone: whoever reads the response has to be told (`opens_thought`).

    Only the template may end or begin turns: where the text of a message or an observation (a web page, a
    passage) spells a special token, it is encoded as the plain characters that it is.

    Args:
        key: the recipe key that named the tokenizer, for errors.

    Raises:
        DataError: the tokenizer has no chat template, or one with an error in it, or one that rewrites
            earlier turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str = "model.path"):
        self._tokenizer, self._template = tokenizer, ChatTemplate(tokenizer, key)
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._spoken = {i for i, content in added.items() if _TAG.fullmatch(content)}
        self._unspoken = added.keys() - self._spoken
        special = sorted(set(added.values()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._end = self._turn_end()
        between, said = self._between()
        closed = between.removeprefix(self._end)
        self._after_end = self._encode(closed)
        self._after_cut = self._encode(between)
        self._to_answer = self._encode(
            self._template.render(_three_messages(said), to_answer=True).rpartition(_NEXT)[2]
        )
        self.opens_thought = (
            _OPENED.search(self._template.render([{"role": "user", "content": _FIRST}], to_answer=True))
            is not None
        )
        """Whether responses begin inside of a thought that the prompt has opened."""
        if self.opens_thought and CLOSE_THOUGHT not in self.decode(self._encode(CLOSE_THOUGHT)):
            _log.warning(
                "%s",
                self._template.error(
                    f"opens a thought, and it cannot spell {CLOSE_THOUGHT}: every action will count as "
                    "invalid"
                ),
            )

    def prompt(self, messages: list[Message]) -> Ids:
        """int32[P]: the conversation up to where the assistant begins to answer."""
        messages, spelled = self._set_aside(messages)
        text = self._template.render(messages, to_answer=True)
        if not spelled:
            return self._encode(text)
        parts = re.split("|".join(map(re.escape, spelled)), text)
        marks = re.findall("|".join(map(re.escape, spelled)), text)
        pieces = [self._encode(parts[0])]
        for mark, part in zip(marks, parts[1:], strict=True):
            pieces += [self._encode(spelled[mark], plain=True), self._encode(part)]
        return np.concatenate(pieces)

    def answer(self, text: str) -> Ids:
        """int32[A]: a whole assistant turn with its end-of-turn token (for cloning; a played turn keeps the
        ids that were sampled).

        Where the prompt has opened the thought, the text's own opening tag is left out, and a text without a
        thought closes it at once.
        """
        if self.opens_thought:
            own = text.lstrip()
            text = (
                own.removeprefix(OPEN_THOUGHT)
                if own.startswith(OPEN_THOUGHT)
                else f"\n{CLOSE_THOUGHT}\n\n{text}"
            )
        return self._encode(text + self._end)

    def ends_turn(self, response: Ids) -> bool:
        """Whether a response closes its turn itself (one cut at its length, or ended by a stop string, does
        not)."""
        return len(response) > 0 and int(response[-1]) == self._tokenizer.eos_token_id

    def bridge(self, finished: bool) -> Ids:
        """int32[B]: the template's tokens between response and next observation, the end of the turn first
        where the response lacks it."""
        return self._after_end if finished else self._after_cut

    def observation(self, text: str, limit: int) -> tuple[Ids, bool]:
        """(int32[O] ids, was it cut): the observation's own tokens, at most `limit`."""
        ids = self._encode(text, plain=True)
        return ids[:limit], len(ids) > limit

    def turn(self, observation: str, rest: str) -> Ids:
        """int32[U]: a user turn that follows a bridge, up to where the assistant begins to answer: the
        observation's own tokens, all of them, then those of the rest, then what the template puts there."""
        return np.concatenate(
            [self._encode(observation, plain=True), self._encode(rest, plain=True), self._to_answer]
        )

    def offsets(self, text: str, ids: Ids) -> list[tuple[int, int]] | None:
        """Each token's span in the text, in characters; None where the text would be tokenized in another
        way."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return encoded["offset_mapping"] if encoded["input_ids"] == ids.tolist() else None

    def decode(self, ids: Ids) -> str:
        """The text without special tokens, other than tags that an answer is made of (some tokenizers have
        `</think>` as a special token)."""
        listed = ids.tolist()
        if self._spoken.isdisjoint(listed):
            return str(self._tokenizer.decode(listed, skip_special_tokens=True))
        return str(
            self._tokenizer.decode([i for i in listed if i not in self._unspoken], skip_special_tokens=False)
        )

    def _encode(self, text: str, plain: bool = False) -> Ids:
        """int32[T]; `plain`: special tokens that the text spells are characters like any others."""
        return np.asarray(
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=plain), dtype=np.int32
        )

    def _set_aside(self, messages: list[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with a mark in place of every special token that they spell, and what each mark stands
        for."""
        contents = [message["content"] for message in messages]
        if not any(map(self._special.search, contents)):
            return messages, {}
        # One more of this character than the contents have in a row, whatever they hold.
        fence = _FENCE * (
            1 + max(len(run) for content in contents for run in re.findall(f"{_FENCE}*", content))
        )
        tokens = sorted({token for content in contents for token in self._special.findall(content)})
        mark_of = {token: f"{fence}{number}{fence}" for number, token in enumerate(tokens)}
        marked = [
            {**m, "content": self._special.sub(lambda match: mark_of[match[0]], m["content"])}
            for m in messages
        ]
        return marked, {mark: token for token, mark in mark_of.items()}

    def _turn_end(self) -> str:
        """The text of the token that ends a turn (what the engine stops at)."""
        return str(self._tokenizer.eos_token)

    def _between(self) -> tuple[str, str]:
        """What stands between an answer and the next user message, and the answer that was tried (the second
        is for templates that count on a thought)."""
        said = _ANSWER
        try:
            between = self._found_between(said)
        except DataError as error:
            said = _THOUGHTFUL
            try:
                between = self._found_between(said)
            except DataError:
                raise error from None
        if not between.startswith(self._end):
            raise self._template.error(
                f"does not end a turn with the tokenizer's eos token {self._end!r}: after an answer comes "
                f"{between[:40]!r}; set eos_token in the"
                " folder's tokenizer_config.json to the token that ends a turn"
            )
        return between, said

    def _found_between(self, said: str) -> str:
        before, found, after = self._template.render(_three_messages(said), to_answer=False).partition(
            _ANSWER
        )
        if not found or _NEXT in before or after.count(_NEXT) != 1 or _ANSWER in after:
            raise self._template.error(
                "does not keep an assistant turn followed by a user turn; the world-model target cannot be "
                "placed"
            )
        return after[: after.index(_NEXT)]


def _three_messages(said: str) -> list[Message]:
    return [
        {"role": "user", "content": _FIRST},
        {"role": "assistant", "content": said},
        {"role": "user", "content": _NEXT},
    ]
