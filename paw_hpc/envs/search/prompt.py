"""The agent's view of a question: what it is shown and how its answer is read.

Two styles. The words of `paper` are a template (see `paw_hpc.envs.templates`). `paper` follows the paper's
protocol: the question, every search so far with its results inside <information>, and the order to think
inside <think> and then write one <search> or one <answer>. `compact` shows the same in few words for tiny
models from scratch; the answer is a bare line, `search QUERY` or `answer ANSWER`. `conversation` begins as
`paper` does, `compact-conversation` as `compact`; each later turn is the observation, and `next_turn` behind
it.
"""

from __future__ import annotations

import re

from paw_hpc.envs.answers import OPEN_THOUGHT, after_thought, is_written, search_or_answer
from paw_hpc.envs.base import EnvironmentState, Message
from paw_hpc.envs.search.protocol import Action, exact_action, read_action, thinks_first
from paw_hpc.envs.templates import PromptTemplate, shipped_template
from paw_hpc.recipe.env import COMPACT

_COMPACT = re.compile(r"(search|answer)\s+(\S.*)", re.DOTALL)
_DOCUMENT = re.compile(r"^Doc \d+ \(Title: (.*?)\) ", re.MULTILINE)


class SearchView:
    """Implements `paw_hpc.envs.base.AgentView`.

    Args:
        style: one of `paw_hpc.recipe.env.PROMPT_STYLES`.
        history: earlier turns that the prompt shows; the paper's protocol shows all of them.
        max_steps: turns of an episode; the prompt says how many are left.
        validity: "admissible" or "format" (see `paw_hpc.envs.answers`).
        template: of the paper's style; default: the shipped one.
    """

    def __init__(
        self,
        question: str,
        *,
        style: str,
        history: int,
        max_steps: int,
        validity: str = "admissible",
        template: PromptTemplate | None = None,
    ):
        self._template = template or shipped_template("search")
        self.question = question
        self._in_few_words, self._history, self._max_steps, self._by_format = (
            style in COMPACT,
            history,
            max_steps,
            validity == "format",
        )
        self._past: list[tuple[str, str]] = []
        """(action, what came back), oldest first."""
        self._shown = history

    def start(self, state: EnvironmentState) -> None:
        pass  # the first observation is the question itself

    def observe(self, action: str, state: EnvironmentState) -> None:
        self._past.append((action, state.observation))
        self._shown = self._history

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self._compact() if self._in_few_words else self._paper()}]

    def next_turn(self) -> str:
        if self._in_few_words:
            return self._step()
        return shipped_template("search", "turn").render(
            task=self.question,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[],
        )

    def parse(self, response: str, opened: bool = False) -> tuple[str, bool]:
        """(canonical action, valid). By our own rule an action without a thought before it is carried out,
        and is not valid."""
        if self._in_few_words:
            said, outside = after_thought(response, opened)
            found = _COMPACT.fullmatch(said.strip())
            action = str(Action(found[1], " ".join(found[2].split()))) if found else ""  # type: ignore[arg-type]
            return action, outside and (is_written(said, response) if self._by_format else bool(found))
        if self._by_format:
            return search_or_answer(response)  # thoughts do not matter to it
        if opened:
            response = OPEN_THOUGHT + response
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
        recent = self._recent()
        first = len(self._past) - len(recent) + 1
        return self._template.render(
            task=self.question,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[
                {"step": first + i, "observation": returned, "action": action}
                for i, (action, returned) in enumerate(recent)
            ],
        )

    def _compact(self) -> str:
        lines = [f"question: {self.question}"]
        for action, returned in self._recent():
            found = exact_action(action)
            if found is None:
                lines.append("invalid")
            else:
                lines += [f"{found.kind}: {found.text}", "found: " + _DOCUMENT.sub("", returned)]
        return "\n".join([*lines, self._step()])

    def _step(self) -> str:
        return f"step {len(self._past) + 1}"
