"""The agent's view of an ALFWorld episode: what it is shown and how its answer is read.

Two styles. The words of `paper` are a template (see `paw_hpc.envs.templates`). `paper` follows the paper's
App. A.1: task, steps taken, the last `history` observations with their actions, the current observation and
the admissible actions; the answer is `<think>...</think><action>...</action>`. `compact` shows the same facts
in few words for tiny models that are trained from scratch, adds the commands played earlier, and takes the
bare command as the answer. `conversation` begins as `paper` does, `compact-conversation` as `compact`; each
later turn is the observation, and `next_turn` behind it.
"""

from __future__ import annotations

import numpy as np

from paw_hpc.envs.answers import after_thought, first_tags, is_written, only_action
from paw_hpc.envs.base import EnvironmentState, Message, Task
from paw_hpc.envs.templates import PromptTemplate, shipped_template
from paw_hpc.recipe.env import COMPACT
from paw_hpc.system.seeding import generator

NOTHING = "Nothing happens."
_TAIL = 30
"""Characters of a response without an action that the reference takes for one."""
_TASK = "Your task is to: "


def split_intro(text: str) -> tuple[str, str]:
    """The first observation of an episode -> (description of the room, task sentence)."""
    body = text.split("=-", 1)[-1].strip()
    room, _, task = body.partition(_TASK)
    return room.strip(), task.strip()


class AlfworldView:
    """Implements `paw_hpc.envs.base.AgentView`.

    Args:
        style: one of `paw_hpc.recipe.env.PROMPT_STYLES`.
        history: earlier (observation, action) pairs that the prompt shows.
        seed: orders the admissible commands of the compact prompt (listing them sorted would teach positions
            instead of words).
        validity: "admissible" or "format" (see `paw_hpc.envs.answers`).
        template: of the paper's style; default: the shipped one.
        max_steps: of the episode, for the template.
    """

    def __init__(
        self,
        task: Task,
        *,
        style: str,
        history: int,
        seed: int,
        validity: str = "admissible",
        template: PromptTemplate | None = None,
        max_steps: int = 50,
    ):
        self.task_sentence = ""
        self._template, self._max_steps = template or shipped_template("alfworld"), max_steps
        self._opening = ""
        self._in_few_words, self._history, self._seed, self._by_format = (
            style in COMPACT,
            history,
            seed,
            validity == "format",
        )
        self._past: list[tuple[str, str]] = []
        self._observation = ""
        self._admissible: tuple[str, ...] = ()
        self._shown_history = history
        self._shown_commands: int | None = None

    def start(self, state: EnvironmentState) -> None:
        self._opening = state.observation.strip()
        self._observation, self.task_sentence = split_intro(state.observation)
        self._admissible = state.admissible

    def observe(self, action: str, state: EnvironmentState) -> None:
        self._past.append((self._observation, action))
        self._observation, self._admissible = state.observation.strip(), state.admissible
        self._shown_history, self._shown_commands = self._history, None

    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self._compact() if self._in_few_words else self._paper()}]

    def next_turn(self) -> str:
        if self._in_few_words:
            return self._commands()
        return shipped_template("alfworld", "turn").render(
            task=self.task_sentence,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[],
            observation=self._observation,
            opening=self._opening,
            actions=self._offered(),
        )

    def parse(self, response: str, opened: bool = False) -> tuple[str, bool]:
        if self._in_few_words:
            bare, outside = after_thought(response, opened)
            action = " ".join(bare.lower().split())
            return action, outside and (
                is_written(bare, response) if self._by_format else action in self._admissible
            )
        if self._by_format:
            return first_tags(response, _TAIL, opened)
        said, thought = only_action(response, opened)
        if said is None:
            return " ".join(response.lower().split())[-60:], False
        action = " ".join(said.lower().split())
        return action, thought and action in self._admissible

    def answer(self, command: str) -> str:
        """What the agent has to say for this command to be taken (for demonstrations)."""
        return (
            command
            if self._in_few_words
            else f"<think>The next step is {command}.</think><action>{command}</action>"
        )

    def anchor(self) -> str:
        """What GiGPO may call the same state: the observation. With the admissible commands it tells the
        place and what is held, too."""
        return self._observation

    def shorten(self) -> bool:
        shown = min(self._shown_history, len(self._past))
        if shown > 0:
            self._shown_history = shown - 1
            return True
        if self._in_few_words and (self._shown_commands is None or self._shown_commands > 0) and self._past:
            self._shown_commands = (
                len(self._past) if self._shown_commands is None else self._shown_commands
            ) // 2
            return True
        return False

    def _paper(self) -> str:
        recent = self._past[len(self._past) - min(self._shown_history, len(self._past)) :]
        first = len(self._past) - len(recent) + 1
        return self._template.render(
            task=self.task_sentence,
            step=len(self._past) + 1,
            steps_taken=len(self._past),
            max_steps=self._max_steps,
            history=[
                {"step": first + i, "observation": seen, "action": done}
                for i, (seen, done) in enumerate(recent)
            ],
            observation=self._observation,
            opening=self._opening,
            actions=self._offered(),
        )

    def _offered(self) -> list[str]:
        return [command for command in self._admissible if command != "help"]

    def _compact(self) -> str:
        keep = min(self._shown_history, len(self._past))
        older, recent = self._past[: len(self._past) - keep], self._past[len(self._past) - keep :]
        if self._shown_commands is not None:
            older = older[len(older) - min(self._shown_commands, len(older)) :]
        parts = [f"task: {self.task_sentence}"]
        if older:
            parts.append("did: " + "; ".join(_short(action) for _, action in older))
        parts += [f"saw: {_brief(seen)} > {action}" for seen, action in recent]
        parts.append(f"now: {_brief(self._observation)}")
        return "\n".join([*parts, self._commands()])

    def _commands(self) -> str:
        return "can: " + _grouped(self._admissible, generator(self._seed, "list-order", len(self._past)))


def _brief(observation: str) -> str:
    """The first observation lists every receptacle of the room; the admissible `go to` commands say the
    same."""
    return "start" if observation.startswith("You are in the middle of a room") else observation


def _grouped(admissible: tuple[str, ...], rng: np.random.Generator) -> str:
    """The commands in few words, shuffled: `go to bed 1, desk 2 1; take pen 1 from desk 2; look` (numbers of
    one type of receptacle stand together)."""
    places: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}
    for index in rng.permutation(len(admissible)):
        command = admissible[int(index)]
        if command.startswith("go to "):
            kind, _, number = command.removeprefix("go to ").rpartition(" ")
            places.setdefault(kind, []).append(number)
        else:
            verb, _, rest = command.partition(" ")
            other.setdefault(verb, []).append(rest)
    going = ", ".join(f"{kind} {' '.join(numbers)}" for kind, numbers in places.items())
    return "; ".join(
        [f"{verb} {', '.join(rest)}".strip() for verb, rest in sorted(other.items())]
        + ([f"go to {going}"] if going else [])
    )


def _short(command: str) -> str:
    """A command played earlier, in few words: `go to desk 1` -> `desk 1`, `open drawer 2` -> `open`."""
    if command.startswith("go to "):
        return command.removeprefix("go to ")
    return "open" if command.startswith("open ") else command
