"""WebShop as a benchmark: its goals as tasks, its sessions in this process, the agent's view.

A step takes microseconds, so sessions need neither processes nor threads: all of them share one read-only
catalogue.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from paw_hpc.envs.base import EnvironmentState, Panel, Session, Task
from paw_hpc.envs.panels import parse_name, sub_panel
from paw_hpc.envs.templates import load_template
from paw_hpc.envs.webshop.catalogue import Catalogue
from paw_hpc.envs.webshop.data import find_catalogue
from paw_hpc.envs.webshop.game import SEARCH_ENTRY, SEPARATOR, Game
from paw_hpc.envs.webshop.goals import Goal, Goals
from paw_hpc.envs.webshop.prompt import WebshopView
from paw_hpc.envs.webshop.reward import Tagger, make_tagger
from paw_hpc.recipe import EnvSection
from paw_hpc.system.errors import DataError
from paw_hpc.system.seeding import derive_seed

TEST_GOALS = 500
"""The first goals of the global order are for testing (the paper's protocol), the rest for training."""


class Webshop:
    """Implements `paw_hpc.envs.base.Benchmark`."""

    def __init__(self, env: EnvSection):
        self._env, self._template = env, load_template("webshop", env.prompt_template)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        return find_catalogue(self._env.webshop.catalogue, self._env.webshop.num_products)

    @functools.cached_property
    def goals(self) -> Goals:
        return self.catalogue.goals(self._env.webshop.goals)

    @functools.cached_property
    def _tagger(self) -> tuple[str, Tagger]:
        return make_tagger(self._env.webshop.tagger)

    @property
    def source(self) -> str:
        about, nouns = self.catalogue.about, self._tagger[0]
        return (
            f"WebShop {about['set']}, {about['count']:,} products, {len(self.goals):,} "
            f"{self.goals.kind} goals, nouns by {nouns}"
        )

    def tasks(self, split: str) -> Sequence[Task]:
        """`test` or `train`. Raises DataError where a split is unknown or empty."""
        if split not in ("test", "train"):
            raise DataError(f"WebShop has no split '{split}'; one of test, train")
        listed = GoalTasks(self.catalogue, self.goals, split_goals(self.goals, split))
        if not listed:
            raise DataError(
                f"WebShop {self.catalogue.about['set']}: none of its {len(self.goals)} {self.goals.kind} "
                f"goals is left for {split} "
                f"(the first {TEST_GOALS} are for testing); use env.webshop.goals=synthetic or the full set"
            )
        if split == "train" and self._env.train_games is not None and self._env.train_games < len(listed):
            return sub_panel(listed, self._env.train_games, seed=0, name="env.train_games")
        return listed

    def panel(self, name: str) -> Panel:
        split, count, seed = parse_name(name, "webshop")
        listed = self.tasks(split)
        chosen = (
            sorted(listed, key=lambda task: task.task_id)
            if count is None
            else sub_panel(listed, count, seed, name)
        )
        contents = sorted(f"{task.task_id} {_content(self._goal(task))}\n" for task in chosen)
        title = f"WebShop {self.catalogue.about['set']} {self.goals.kind} {name}"
        return Panel(title, tuple(chosen), hashlib.sha256("".join(contents).encode()).hexdigest())

    def view(self, task: Task, seed: int) -> WebshopView:
        env = self._env
        return WebshopView(
            style=env.prompt,
            history=env.shown_history,
            validity=env.validity,
            template=self._template,
            max_steps=env.max_steps,
        )

    async def open(self, task: Task, members: int) -> Sequence[Session]:
        return [self.session(task, member) for member in range(members)]

    def session(self, task: Task, member: int = 0) -> ShopSession:
        """One live episode. `member` only matters to `search[<r>]`."""
        game = Game(
            self.catalogue,
            self._goal(task),
            self._tagger[1],
            derive_seed(0, f"webshop/{task.task_id}", member),
        )
        return ShopSession(game, self._env.max_steps, self._env.success_reward)

    async def close(self) -> None:
        """There is nothing to end."""

    def _goal(self, task: Task) -> Goal:
        goal: Goal = self.goals[int(task.source)]
        return goal


class GoalTasks(Sequence[Task]):
    """Goals as tasks, made when asked for: millions of them cost no memory. `source` is the goal's place in
    the global order."""

    def __init__(self, catalogue: Catalogue, goals: Goals, places: Sequence[int] | np.ndarray):
        self._goals, self._places = goals, places
        generated = "generated-" if str(catalogue.about["set"]).startswith("generated") else ""
        self._prefix = f"{generated}{goals.kind}"

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(self._places[index])
        goal = self._goals[place]
        return Task(f"{self._prefix}/{place:07d}-{goal.identity}", goal.category, str(place))


@functools.lru_cache(maxsize=4)
def split_goals(goals: Goals, split: str) -> np.ndarray:
    """int64[n]: places in the global order, ascending. What asks for the same as a test goal (see
    `Goal.identity`) is left out of train."""
    test = np.arange(min(TEST_GOALS, len(goals)))
    if split == "test":
        return test
    asked = {goals[int(i)].identity for i in test}
    twins = [i for i in goals.same_products(test.tolist()) if i >= len(test) and goals[i].identity in asked]
    return np.setdiff1d(np.arange(len(test), len(goals)), np.array(twins, dtype=np.int64))


def _content(goal: Goal) -> str:
    return hashlib.sha256(
        repr((goal.asin, goal.instruction, goal.attributes, goal.price_cap, goal.options)).encode()
    ).hexdigest()


class ShopSession:
    """Implements `paw_hpc.envs.base.Session`. An episode ends with a purchase, or after `max_steps`.

    Observations after the first leave the instruction out: it stands on every page, and copying it would be
    most of what a world model learns.
    """

    def __init__(self, game: Game, max_steps: int, success_reward: float):
        self.game, self.steps = game, 0
        self._max_steps, self._success_reward = max_steps, success_reward
        self._instruction = f"Instruction:{SEPARATOR}{game.goal.instruction.strip()}{SEPARATOR}"

    async def reset(self) -> EnvironmentState:
        return self.state()

    def state(self) -> EnvironmentState:
        """The page shown as it is, for callers without an event loop: at the start, what `reset` returns."""
        return EnvironmentState(self.game.observation, self._admissible())

    async def step(self, action: str) -> EnvironmentState:
        return self.act(action)

    def act(self, action: str) -> EnvironmentState:
        """`step`, for callers without an event loop."""
        observation, score, bought = self.game.step(action)
        self.steps += 1
        won = bought and score == 1.0
        return EnvironmentState(
            observation=observation.replace(self._instruction, "", 1),
            admissible=self._admissible(),
            reward=self._success_reward if won else 0.0,
            done=bought or self.steps >= self._max_steps,
            success=won,
            score=score,
        )

    async def close(self) -> None:
        """There is nothing to end."""

    def _admissible(self) -> tuple[str, ...]:
        available = self.game.available
        search = (SEARCH_ENTRY,) if available.has_search_bar else ()
        return (*search, *(f"click[{name}]" for name in available.clickables if name != "search"))
