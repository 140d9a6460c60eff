"""The agent's view of a question: what it is shown and how its answer is read.

Two styles. `paper` follows the paper's protocol: the question, every search so far with its results inside <information>, and the order to think
inside <think> and then write one <search> or one <answer>. `compact` shows the same in few words for tiny models from scratch; the answer is a bare
line, `search QUERY` or `answer ANSWER`.
"""

from __future__ import annotations

import re

from paw_hpc.envs.answers import is_written, search_or_answer
from paw_hpc.envs.base import EnvironmentState, Message
from paw_hpc.envs.search.protocol import Action, exact_action, read_action, thinks_first

_COMPACT = re.compile(r"\s*(search|answer)\s+(\S.*?)\s*", re.DOTALL)
_DOCUMENT = re.compile(r"^Doc \d+ \(Title: (.*?)\) ", re.MULTILINE)


class SearchView:
    """Implements `paw_hpc.envs.base.AgentView`.

    Args:
        style: "paper" or "compact".
        history: earlier turns that the prompt shows; the paper's protocol shows all of them.
        max_steps: turns of an episode; the prompt says how many are left.
        validity: "admissible" or "format" (see `paw_hpc.envs.answers`).
    """

    def __init__(self, question: str, *, style: str, history: int, max_steps: int, validity: str = "admissible"):
        self.question = question
        self._style, self._history, self._max_steps, self._by_format = style, history, max_steps, validity == "format"
        self._past: list[tuple[str, str]] = []
        """(action, what came back), oldest first."""
        self._shown = history

    def start(self, state: EnvironmentState) -> None:
        pass  # the first observation is the question itself

    def observe(self, action: str, state: EnvironmentState) -> None:
        self._past.append((action, state.observation))
        self._shown = self._history

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self._paper() if self._style == "paper" else self._compact()}]

    def parse(self, response: str) -> tuple[str, bool]:
        """(canonical action, valid). By our own rule an action without a thought before it is carried out, and is not valid."""
        if self._style == "compact":
            found = _COMPACT.fullmatch(response)
            action = str(Action(found[1], " ".join(found[2].split()))) if found else ""  # type: ignore[arg-type]
            return action, is_written(response) if self._by_format else bool(found)
        if self._by_format:
            return search_or_answer(response)
        read = read_action(response)
        return ("", False) if read is None else (str(read), thinks_first(response))

    def anchor(self) -> str:
        """What GiGPO may call the same state: what the agent has just read (the question, at first)."""
        return self._past[-1][1] if self._past else self.question

    def shorten(self) -> bool:
        shown = min(self._shown, len(self._past))
        self._shown = max(0, shown - 1)
        return shown > 0

    def _recent(self) -> list[tuple[str, str]]:
        return self._past[len(self._past) - min(self._shown, len(self._past)) :]

    def _paper(self) -> str:
        lines = [
            "You answer questions step by step, with the help of a search engine.",
            f"Question: {self.question}",
        ]
        if recent := self._recent():
            lines.append(f"You have taken {len(self._past)} step(s) so far. Your actions, and what the search engine returned:")
            for action, returned in recent:
                lines += [action or "(no valid action)", f"<information>{returned}</information>"]
        lines.append(f"You are now at step {len(self._past) + 1} of at most {self._max_steps}.")
        lines.append(
            "First reason inside <think> </think> tags about what you know and what is missing. Then do exactly one of two things: "
            "write a query inside <search> </search> tags if knowledge is missing, "
            "or write the final answer, as short as possible, inside <answer> </answer> tags."
        )
        return "\n".join(lines)

    def _compact(self) -> str:
        lines = [f"question: {self.question}"]
        for action, returned in self._recent():
            found = exact_action(action)
            if found is None:
                lines.append("invalid")
            else:
                lines += [f"{found.kind}: {found.text}", "found: " + _DOCUMENT.sub("", returned)]
        lines.append(f"step {len(self._past) + 1}")
        return "\n".join(lines)
