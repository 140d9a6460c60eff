"""ALFWorld as a benchmark: its tasks, its environments in worker processes, the agent's view."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.envs.alfworld import games, panels
from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import Panel, Session, Task
from paw_hpc.envs.panels import sub_panel
from paw_hpc.envs.pool import EnvironmentPool
from paw_hpc.envs.templates import load_template
from paw_hpc.recipe import EnvSection

ENGINE = "paw_hpc.envs.alfworld.engine:GameEngine"


class Alfworld:
    """Implements `paw_hpc.envs.base.Benchmark`."""

    def __init__(self, env: EnvSection):
        self._env, self._template = env, load_template("alfworld", env.prompt_template)
        self._pool = EnvironmentPool(
            ENGINE,
            games.load_game,
            workers=env.workers,
            timeout_s=env.step_timeout_s,
            max_steps=env.max_steps,
            success_reward=env.success_reward,
        )

    @property
    def source(self) -> str:
        """Which games are played (official or generated), for the log."""
        return games.source_name(self._env.games)

    def tasks(self, split: str) -> list[Task]:
        listed = games.tasks(split, self._env.games, self._env.task_types)
        if split == "train" and self._env.train_games is not None and self._env.train_games < len(listed):
            return sub_panel(listed, self._env.train_games, seed=0, name="env.train_games")
        return listed

    def panel(self, name: str) -> Panel:
        return panels.panel(name, self._env.task_types, self._env.games)

    def view(self, task: Task, seed: int) -> AlfworldView:
        env = self._env
        return AlfworldView(
            task,
            style=env.prompt,
            history=env.shown_history,
            seed=seed,
            validity=env.validity,
            template=self._template,
            max_steps=env.max_steps,
        )

    async def open(self, task: Task, members: int) -> Sequence[Session]:
        return await self._pool.open(task, members)

    async def close(self) -> None:
        await self._pool.close()
