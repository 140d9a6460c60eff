"""What a benchmark must offer: tasks, environments in worker processes, and the agent's view of an
episode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from paw_hpc.system.text import well_formed

LONGEST_OBSERVATION = 200_000
"""Characters of an observation, far beyond what a prompt takes; more is left out, so that one page cannot
cost minutes of tokenizing."""
Message = dict[str, str]
"""A chat message: {"role": "user" | "assistant" | "system", "content": text}."""


@dataclass(slots=True, frozen=True)
class Task:
    """One task instance. `task_id` is stable across machines (no absolute path in it)."""

    task_id: str
    task_type: str
    source: str
    """Where the engine finds it on this machine, for example a game file."""


@dataclass(slots=True, frozen=True)
class Panel:
    """A fixed list of tasks, sorted by id. `name` says split, part, restriction and kind of data; `checksum`
    covers ids and contents."""

    name: str
    tasks: tuple[Task, ...]
    checksum: str


@dataclass(slots=True, frozen=True)
class EnvironmentState:
    """What the environment says after a reset or a step."""

    observation: str
    admissible: tuple[str, ...] = ()
    """Admissible commands in an order that depends on the state alone; empty where a benchmark has no such
    list."""
    reward: float = 0.0
    """As the benchmark's protocol says (success_reward on success), without penalties."""
    done: bool = False
    success: bool = False
    score: float = 0.0

    def __post_init__(self) -> None:
        """What an environment says comes from outside, whoever wrote the environment: here it becomes text
        that every tokenizer takes."""
        object.__setattr__(self, "observation", well_formed(self.observation[:LONGEST_OBSERVATION]))
        object.__setattr__(self, "admissible", tuple(map(well_formed, self.admissible)))


Turn = tuple[str, EnvironmentState]
"""An action, and what came of it."""


class Session(Protocol):
    """One live episode of an environment."""

    async def reset(self) -> EnvironmentState: ...

    async def step(self, action: str) -> EnvironmentState:
        """Raises EnvironmentFailure when the environment (not the agent) is at fault."""
        ...

    async def close(self) -> None: ...


class EnvironmentFailure(RuntimeError):
    """The environment died, hung or answered nonsense. The episode ends as failed by the environment and is
    not trained on."""


class AgentView(Protocol):
    """The agent's side of one episode: renders prompts, parses responses, remembers the history."""

    def start(self, state: EnvironmentState) -> None: ...

    def messages(self) -> list[Message]:
        """The prompt for the current step."""
        ...

    def parse(self, response: str, opened: bool = False) -> tuple[str, bool]:
        """(action for the environment, valid), by the rule of `env.validity`. An action that the environment
        does not know changes nothing there.

        Args:
            opened: the prompt has opened the thought (see `ChatFormat.opens_thought`): the response begins
                inside of it.
        """
        ...

    def observe(self, action: str, state: EnvironmentState) -> None: ...

    def anchor(self) -> str:
        """The current state as its observation tells it, for GiGPO's grouping; `algorithm.gigpo_anchor` says
        whether admissible actions join it."""
        ...

    def shorten(self) -> bool:
        """Drop the oldest part of the history because the prompt does not fit; False when nothing is left to
        drop."""
        ...


class ConversationView(AgentView, Protocol):
    """A view that can also play as a conversation (`env.prompt: conversation`): `messages` is then asked
    once, at the first step."""

    def next_turn(self) -> str:
        """What the next user turn says behind the observation that has just been made, which it begins
        with."""
        ...


@dataclass(slots=True, frozen=True)
class SpokenTurn:
    """What was said at a step, what was observed then, and what the next user turn says behind that (see
    `ConversationView.next_turn`)."""

    said: str
    observed: str
    following: str


@dataclass(slots=True, frozen=True)
class Demonstration:
    """One state of a scripted player's episode, and what to say in it."""

    messages: list[Message]
    answer: str
    turns: tuple[SpokenTurn, ...] = ()
    """With `env.prompt: conversation`: since the demonstration before in the same episode; none: the episode
    begins here."""


class Taught:
    """The view of a scripted player's episode, which keeps its turns where they are to be cloned as a
    conversation."""

    def __init__(self, view: AgentView, conversation: bool) -> None:
        self._view, self._conversation, self._turns = view, conversation, list[SpokenTurn]()

    def observe(self, said: str, action: str, state: EnvironmentState) -> None:
        """The agent said something, which the environment took for `action`, and this came of it."""
        self._view.observe(action, state)
        if self._conversation:
            self._turns.append(SpokenTurn(said, state.observation, self._view.next_turn()))  # type: ignore[attr-defined]

    def demonstration(self, answer: str) -> Demonstration:
        """What to say now."""
        turns, self._turns = tuple(self._turns), []
        return Demonstration(self._view.messages(), answer, turns)


@dataclass(slots=True, frozen=True)
class Lessons:
    """Expert play, from which a small policy is cloned (`paw warm-start`)."""

    demonstrations: Iterable[Demonstration]
    save_tokenizer: Callable[[Path], object]
    """Writes a tokenizer with the words of the benchmark's world into a folder, for a model from scratch."""


class Benchmark(Protocol):
    """A benchmark package. Constructing one is cheap and reads no data;
    `paw_hpc.envs.benchmarks.make_benchmark` chooses it."""

    @property
    def source(self) -> str:
        """What is played (official or generated data, and what the run should be judged by knowing), for the
        log."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """All tasks of a split, in one global order that no machine changes."""
        ...

    def panel(self, name: str) -> Panel:
        """The panel of a name (see `paw_hpc.recipe.panels_of`), or of PANEL:N@SEED. Raises DataError."""
        ...

    def view(self, task: Task, seed: int) -> AgentView: ...

    async def open(self, task: Task, members: int) -> Sequence[Session]:
        """Sessions of one task; they share the reset work."""
        ...

    async def close(self) -> None: ...
