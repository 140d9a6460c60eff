"""The protocol's tags: reading the agent's answer, and writing passages so that nothing in them can pass for
the agent's own words.

An agent thinks inside <think>, then writes exactly one <search> or <answer>. Passages arrive inside
<information>. What a passage says is data: its tags are broken when it is shown, and whatever an agent writes
inside <information> (its own invention, or a quotation) is never read as an action.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paw_hpc.envs.answers import blocks
from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.search.corpus import Passage

INVALID = (
    "Invalid action: nothing was searched. Write exactly one <search> query </search> or one "
    "<answer> answer </answer>."
)
NO_RESULTS = "No results."
_TAGS = "think|search|answer|information"
_THINK, _THINK_END = re.compile(r"<think>.*?</think>", re.DOTALL), "</think>"
_INFORMATION = re.compile(r"<information>.*?(?:</information>|\Z)", re.DOTALL)
_WHOLE = re.compile(r"<(search|answer)>((?:(?!</\1>).)*)</\1>", re.DOTALL)
_ANY_TAG = re.compile(rf"<(\s*(?:/\s*)?(?:{_TAGS})\s*(?:/\s*)?)>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Action:
    """What the agent asks of the environment; `text` is the query or the answer, on one line."""

    kind: Literal["search", "answer"]
    text: str

    def __str__(self) -> str:
        return f"<{self.kind}>{self.text}</{self.kind}>"


def read_action(text: str) -> Action | None:
    """The only action of a text; None where there is none, an empty one, or more than one. Thoughts and
    information blocks are not looked into."""
    text = _INFORMATION.sub(" ", text)
    # behind it no thought is closed, and none is looked for
    end = text.rfind(_THINK_END) + len(_THINK_END) if _THINK_END in text else 0
    found = list(blocks(_THINK.sub(" ", text[:end]) + text[end:], "search", "answer"))
    if len(found) != 1:
        return None
    kind, content = found[0]
    content = " ".join(content.split())
    return Action(kind, content) if content else None  # type: ignore[arg-type]


def exact_action(text: str) -> Action | None:
    """The action that is all of a text, as views hand it to sessions; it may be empty (only the format rule
    makes such), and nothing in it is looked into. None where the text is no action."""
    found = _WHOLE.fullmatch(text)
    return Action(found[1], " ".join(found[2].split())) if found else None  # type: ignore[arg-type]


def admits(action: str, state: EnvironmentState) -> bool:
    """Whether it is a search or an answer and nothing else; both can be had in every state."""
    return exact_action(action) is not None


def thinks_first(text: str) -> bool:
    """Whether a closed <think> block stands before the action and nothing but space before that."""
    return re.match(r"\s*<think>.*?</think>", text, re.DOTALL) is not None


def harmless(text: str) -> str:
    """A passage's text with the protocol's tags broken: `<answer>` becomes `(answer)`."""
    return _ANY_TAG.sub(lambda match: f"({match[1].strip()})", text)


def passages_text(passages: Sequence[Passage], words: int | None = None) -> str:
    """What a search returns, one line a passage: `Doc 1 (Title: ...) text`.

    Args:
        words: keep only this many words of each passage's text; none: all of it.
    """
    if not passages:
        return NO_RESULTS
    return "\n".join(
        f"Doc {i} (Title: {harmless(p.title)}) {harmless(_first(p.text, words))}"
        for i, p in enumerate(passages, 1)
    )


def _first(text: str, words: int | None) -> str:
    return " ".join(text.split()[:words])
