"""The prompts of an episode as ids: rendered anew at every step from what the agent may still see (`Window`),
or one conversation that goes on."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from paw_hpc.envs.base import AgentView
from paw_hpc.experience import Ids
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.system.errors import RecipeError


class Overlong(Exception):
    """A prompt that does not fit, whatever is left out of it."""


class Prompter(Protocol):
    """Of one episode."""

    def prompt(self, task_id: str, step: int) -> tuple[Ids, bool]:
        """(int32[P], whether something was left out so that it fits). Raises Overlong, which says of which
        task and step (from 1)."""
        ...

    def go_on(self, response: Ids, observation: str) -> None:
        """The response (int32[A], as sampled) was given and the view has seen what came of it: `observation`,
        and the episode is not over."""
        ...


class Window:
    """The view's own message, with as much history as it has and as fits.

    Args:
        limit: tokens of a prompt.
    """

    def __init__(self, view: AgentView, chat: ChatFormat, limit: int) -> None:
        self._view, self._chat, self._limit = view, chat, limit

    def prompt(self, task_id: str, step: int) -> tuple[Ids, bool]:
        """Where it does not fit, the environment's own rule drops the oldest history first."""
        shortened, prompt = False, self._chat.prompt(self._view.messages())
        while len(prompt) > self._limit:
            if not self._view.shorten():
                raise Overlong(_too_long(task_id, step, len(prompt), "without history", self._limit))
            shortened, prompt = True, self._chat.prompt(self._view.messages())
        return prompt, shortened

    def go_on(self, response: Ids, observation: str) -> None:
        """The view remembers by itself."""


class Conversation:
    """The view's first message, and then alternately the responses as they were sampled and turns that begin
    with what was observed.

    Ids are put one behind the other and never rendered or tokenized again, so every prompt begins with the
    whole of the one before and its response, whatever the chat template would make of the text. Where the
    limit is reached, the oldest turns behind the first message are left out, down to half the limit, so that
    the prompts after it go on from one another again.

    Args:
        limit: tokens of a prompt.

    Raises:
        RecipeError: a benchmark whose view has no turns.
    """

    def __init__(self, view: AgentView, chat: ChatFormat, limit: int) -> None:
        if not callable(getattr(view, "next_turn", None)):
            raise RecipeError(
                f"env.prompt: conversation, but this benchmark's {type(view).__name__} has no next_turn; "
                "use another prompt"
            )
        self._view, self._chat, self._limit = view, chat, limit
        self._opening: Ids | None = None
        self._turns: list[Ids] = []

    def prompt(self, task_id: str, step: int) -> tuple[Ids, bool]:
        """The conversation so far."""
        if self._opening is None:
            self._opening = self._chat.prompt(self._view.messages())
        shortened = self._length() > self._limit
        while shortened and len(self._turns) > 1 and self._length() > self._limit // 2:
            del self._turns[0]
        if self._length() > self._limit:
            raise Overlong(
                _too_long(task_id, step, self._length(), "with its first and last turn alone", self._limit)
            )
        return np.concatenate([self._opening, *self._turns]), shortened

    def go_on(self, response: Ids, observation: str) -> None:
        """Adds the response and the next user turn."""
        bridge = self._chat.bridge(self._chat.ends_turn(response))
        following = self._chat.turn(observation, "\n" + self._view.next_turn())  # type: ignore[attr-defined]
        self._turns.append(np.concatenate([response, bridge, following]))

    def _length(self) -> int:
        assert self._opening is not None
        return len(self._opening) + sum(map(len, self._turns))


def _too_long(task_id: str, step: int, length: int, even: str, limit: int) -> str:
    return (
        f"{task_id} needs a prompt of {length} tokens at step {step} even {even}, and "
        f"rollout.max_prompt_tokens is {limit}"
    )
