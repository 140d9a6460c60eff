"""A benchmark from outside: find a hidden number by asking. Its reward is dense: every guess that comes
closer is paid for at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paw_hpc.envs.base import EnvironmentState, Message, Panel, Session, Task
from paw_hpc.recipe import EnvSection
from paw_hpc.recipe.doors import BENCHMARKS, Benchmark, read_options
from paw_hpc.recipe.section import Section
from paw_hpc.system.seeding import derive_seed


class Options(Section):
    """`env.options`."""

    highest: int = 20
    """The hidden number is between 1 and this."""
    closer: float = 1.0
    """Reward of a guess that is closer than all before it."""


class Game:
    """One episode. Implements `paw_hpc.envs.base.Session`."""

    def __init__(self, hidden: int, env: EnvSection, options: Options):
        self._hidden, self._env, self._options = hidden, env, options
        self._steps, self._best = 0, options.highest

    async def reset(self) -> EnvironmentState:
        return EnvironmentState(f"I think of a number between 1 and {self._options.highest}.")

    async def step(self, action: str) -> EnvironmentState:
        self._steps += 1
        last = self._steps >= self._env.max_steps
        if not action.isdecimal():
            return EnvironmentState("Say a number.", done=last)
        distance = abs(int(action) - self._hidden)
        if distance == 0:
            return EnvironmentState(
                "Yes!", reward=self._env.success_reward, done=True, success=True, score=1.0
            )
        reward = self._options.closer if distance < self._best else 0.0
        self._best = min(self._best, distance)
        score = 1.0 - self._best / self._options.highest
        return EnvironmentState(
            "Higher." if int(action) < self._hidden else "Lower.", reward=reward, done=last, score=score
        )

    async def close(self) -> None:
        pass


class View:
    """What the agent sees of an episode. Implements `paw_hpc.envs.base.AgentView`."""

    def __init__(self, history: int):
        self._history, self._said, self._now = history, list[str](), ""

    def start(self, state: EnvironmentState) -> None:
        self._now = state.observation

    def messages(self) -> list[Message]:
        said = self._said[-2 * self._history :] if self._history else []
        return [{"role": "user", "content": "\n".join([*said, self._now, "Answer with a number."])}]

    def parse(self, response: str, opened: bool = False) -> tuple[str, bool]:
        number = re.search(r"\d{1,6}", response)
        return (number[0], True) if number else (response.strip(), False)

    def observe(self, action: str, state: EnvironmentState) -> None:
        self._said += [self._now, action]
        self._now = state.observation

    def anchor(self) -> str:
        return self._now

    def shorten(self) -> bool:
        shorter = bool(self._said)
        del self._said[:2]
        return shorter


class NumberGame:
    """Implements `paw_hpc.envs.base.Benchmark`."""

    source = "numbers to be found"

    def __init__(self, env: EnvSection):
        self._env, self._options = env, read_options(Options, env.options)

    def tasks(self, split: str) -> Sequence[Task]:
        """Of a set of its own for each split; the hidden number is a function of the task's id."""
        return [Task(f"{split}-{number:03d}", "number", "") for number in range(64)]

    def panel(self, name: str) -> Panel:
        return Panel(name, tuple(self.tasks(name)), f"numbers up to {self._options.highest}")

    def view(self, task: Task, seed: int) -> View:
        return View(self._env.history)

    async def open(self, task: Task, members: int) -> Sequence[Session]:
        hidden = 1 + derive_seed(0, task.task_id) % self._options.highest
        return [Game(hidden, self._env, self._options) for _ in range(members)]

    async def close(self) -> None:
        pass


BENCHMARKS.add("number_game", Benchmark(make=NumberGame, panels=("test",), options=Options))
