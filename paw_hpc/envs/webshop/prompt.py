"""The agent's view of a shopping session: what it is shown and how its answer is read.

Two styles. The words of `paper` are a template (see `paw_hpc.envs.templates`). `paper` follows the paper's
App. A.1: task, steps taken, the last `history` pages with the actions taken on them, the current page and the
available actions; the answer is `<think>...</think><action>...</action>`. `compact` is for tiny models from
scratch: products of a result page have numbers instead of ids, all is in lower case, actions are short
commands (`search ...`, `open 3`, `choose red`, `buy`), and those given so far stand in for the history.
`conversation` begins as `paper` does, `compact-conversation` as `compact`; each later turn is the
observation, and `next_turn` behind it.
"""

from __future__ import annotations

import re

from paw_hpc.envs.answers import after_thought, first_tags, is_written, only_action
from paw_hpc.envs.base import EnvironmentState, Message
from paw_hpc.envs.templates import PromptTemplate, shipped_template
from paw_hpc.envs.webshop.game import SEARCH_ENTRY, SEPARATOR
from paw_hpc.recipe.env import COMPACT

_TAIL = 20
"""Characters of a response without an action that the reference takes for one."""
_SEARCH = re.compile(r"search\[(.+)\]")
_TITLE_WORDS = 12
_COMMANDS = {
    "click[back to search]": "back",
    "click[< prev]": "prev",
    "click[next >]": "next",
    "click[description]": "description",
    "click[features]": "features",
    "click[reviews]": "reviews",
    "click[buy now]": "buy",
}


def split_instruction(observation: str) -> tuple[str, str]:
    """The first page of a session -> (instruction, the page without it)."""
    first, _, rest = observation.partition(f"{SEPARATOR}Instruction:{SEPARATOR}")
    instruction, _, last = rest.rpartition(SEPARATOR)
    return instruction, f"{first}{SEPARATOR}{last}"


class WebshopView:
    """Implements `paw_hpc.envs.base.AgentView`.

    Args:
        style: one of `paw_hpc.recipe.env.PROMPT_STYLES`.
        history: earlier (page, action) pairs that the paper's prompt shows.
        validity: "admissible" or "format" (see `paw_hpc.envs.answers`).
        template: of the paper's style; default: the shipped one.
        max_steps: of the episode, for the template.
    """

    def __init__(
        self,
        *,
        style: str,
        history: int,
        validity: str = "admissible",
        template: PromptTemplate | None = None,
        max_steps: int = 15,
    ):
        self.instruction = ""
        self._template, self._max_steps = template or shipped_template("webshop"), max_steps
        self._in_few_words, self._history, self._by_format = style in COMPACT, history, validity == "format"
        self._past: list[tuple[str, str]] = []
        self._page = ""
        self._admissible: tuple[str, ...] = ()
        self._commands: dict[str, str] = {}
        self._dropped = 0

    def start(self, state: EnvironmentState) -> None:
        self.instruction, self._page = split_instruction(state.observation)
        self._see(state)

    def observe(self, action: str, state: EnvironmentState) -> None:
        self._past.append((self._page, self._spoken(action)))
        self._page, self._dropped = state.observation.strip(), 0
        self._see(state)

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self._compact() if self._in_few_words else self._paper()}]

    def next_turn(self) -> str:
        if self._in_few_words:
            return "can: " + "; ".join(
                ["search"] * (SEARCH_ENTRY in self._admissible) + list(self._commands.values())
            )
        return shipped_template("webshop", "turn").render(
            task=self.instruction,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[],
            observation=self._page,
            actions=list(self._admissible),
            options_left_out=False,
        )

    def parse(self, response: str, opened: bool = False) -> tuple[str, bool]:
        """Search works on every page, but only where the page offers it is it an available action."""
        if self._in_few_words:
            bare, outside = after_thought(response, opened)
            action, available = self._parse_command(" ".join(bare.lower().split()))
            return action, outside and (is_written(bare, response) if self._by_format else available)
        if self._by_format:
            return first_tags(response, _TAIL, opened)
        said, thought = only_action(response, opened)
        if said is None:
            # Brackets would make it an action.
            return re.sub(r"[\[\]]", " ", " ".join(response.lower().split())[-60:]).strip(), False
        action = self._exact(said.strip().lower())
        return action, thought and self._is_available(action)

    def anchor(self) -> str:
        """What GiGPO may call the same state: the page."""
        return self._page

    def shorten(self) -> bool:
        """The paper's prompt loses its history page by page, then the option values among the actions (the
        page shows them); the compact one halves the list of earlier commands."""
        if self._in_few_words:
            shown = len(self._past) >> self._dropped
            self._dropped += 1
            return shown > 0
        self._dropped += 1
        return self._dropped <= min(self._history, len(self._past)) + 1

    def _see(self, state: EnvironmentState) -> None:
        self._admissible = state.admissible
        products = (
            [command for command in state.admissible if command not in _COMMANDS]
            if self._on_results()
            else []
        )
        numbered = {command: f"open {number}" for number, command in enumerate(products, 1)}
        self._commands = {
            command: _COMMANDS.get(command)
            or numbered.get(command)
            or f"choose {' '.join(command[len('click[') : -1].split())}"
            for command in state.admissible
            if command != SEARCH_ENTRY
        }

    def _on_results(self) -> bool:
        return f"{SEPARATOR}Page " in self._page and "(Total results: " in self._page

    def _is_available(self, action: str) -> bool:
        if _SEARCH.fullmatch(action):
            return SEARCH_ENTRY in self._admissible and action != SEARCH_ENTRY
        return action in self._admissible

    def _exact(self, action: str) -> str:
        """The available action that differs in white space only, else the action itself: a few option values
        have blanks at their ends."""
        loose = " ".join(action.split())
        return next(
            (
                known
                for known in self._admissible
                if action == known or loose == " ".join(known.split()).replace(" ]", "]")
            ),
            action,
        )

    def _paper(self) -> str:
        keep = max(0, min(self._history, len(self._past)) - self._dropped)
        recent = self._past[len(self._past) - keep :]
        first = len(self._past) - len(recent) + 1
        actions, left_out = self._listed()
        return self._template.render(
            task=self.instruction,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[
                {"step": first + i, "observation": page, "action": action}
                for i, (page, action) in enumerate(recent)
            ],
            observation=self._page,
            actions=actions,
            options_left_out=left_out,
        )

    def _listed(self) -> tuple[list[str], bool]:
        """(the available actions that are shown, whether option values were left out of them)."""
        if self._dropped <= min(self._history, len(self._past)) or self._on_results():
            return list(self._admissible), False
        return [action for action in self._admissible if action in _COMMANDS or action == SEARCH_ENTRY], True

    def _compact(self) -> str:
        keep = len(self._past) >> self._dropped
        parts = [f"task: {self.instruction}"]
        if keep:
            parts.append("did: " + "; ".join(action for _, action in self._past[-keep:]))
        parts.append(f"now: {self._brief()}")
        return "\n".join(parts).lower()

    def _brief(self) -> str:
        """The page in few words: results as `1 TITLE PRICE`, everything else without its buttons."""
        entries = self._page.split(SEPARATOR)
        if SEARCH_ENTRY in self._admissible:
            return "search page"
        if not self._on_results():
            buttons = {
                "back to search",
                "< prev",
                "rating: n.a.",
                "description",
                "features",
                "reviews",
                "buy now",
            }
            return "; ".join(_cut(entry) for entry in entries if entry.lower() not in buttons)
        lines = [entries[1].split(" (")[0].lower()]
        for entry in entries[2:]:
            number = self._commands.get(f"click[{entry.lower()}]", "")
            if number.startswith("open "):
                lines.append(number.removeprefix("open "))
            elif entry not in ("< Prev", "Next >"):
                lines[-1] += f" {_cut(entry)}"
        return "\n".join(lines)

    def _parse_command(self, command: str) -> tuple[str, bool]:
        if command.startswith("search "):
            action = f"search[{command.removeprefix('search ')}]"
            return action, self._is_available(action)
        action = next((action for action, spoken in self._commands.items() if spoken == command), "")
        return action or re.sub(r"[\[\]]", " ", command)[-60:], bool(action)

    def answer(self, action: str) -> str:
        """What the agent has to say for this action to be taken (for demonstrations)."""
        if self._in_few_words:
            return self._spoken(action)
        return f"<think>The next step is {action}.</think><action>{action}</action>"

    def _spoken(self, action: str) -> str:
        """An action as the history tells it."""
        if not self._in_few_words:
            return action
        search = _SEARCH.fullmatch(action)
        return f"search {search[1]}" if search else self._commands.get(action, action)


def _cut(title: str) -> str:
    return " ".join(title.split()[:_TITLE_WORDS])
