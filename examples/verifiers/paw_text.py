"""ALFWorld, WebShop and search QA as an environment of verifiers (0.4). With this file's folder on
PYTHONPATH, verifiers and paw-hpc[webshop]:

    vf-eval paw-text --env.taskset.benchmark webshop --env.taskset.panel test:8@0 --model NAME
    --client.base-url http://localhost:8000/v1 --no-push

An episode is a conversation: the first user turn is our prompt, each later one what was observed. Answers are
read and judged by our rules, and the reward is 1 for success. Tasks are those of a panel, so what `paw eval`
says of a policy and what is found here speak of the same tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from paw_hpc.envs import AsyncEnvironments

__all__ = ["TextEnv", "TextTaskset"]


class TextConfig(vf.TasksetConfig):
    benchmark: str = "webshop"
    """alfworld, webshop or search."""
    panel: str | None = None
    """As in `paw eval --panel`; none: the benchmark's first."""
    rules: dict[str, Any] = Field(default_factory=dict)
    """Keys of a recipe's `env` section."""
    seed: int = 0

    def environments(self) -> AsyncEnvironments:
        return AsyncEnvironments(
            self.benchmark, seed=self.seed, **({"prompt": "conversation", "history": "all"} | self.rules)
        )


class TextData(vf.TaskData):
    task_type: str


class TextTask(vf.Task[TextData, vf.State, vf.TaskConfig]):
    pass


class TextTaskset(vf.Taskset[TextTask, TextConfig]):
    def load(self) -> Iterator[TextTask]:
        for task in self.config.environments().panel(self.config.panel).tasks:
            yield TextTask(
                TextData(id=task.task_id, name=task.task_id, task_type=task.task_type), self.config.task
            )


class TextEnvConfig(vf.EnvConfig):
    # a chat, which runs no code
    agent: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})


class TextEnv(vf.Env[TextEnvConfig]):
    async def start(self) -> None:
        self._environments = self.taskset.config.environments()
        panel = self._environments.panel(self.taskset.config.panel)
        self._tasks = {task.task_id: task for task in panel.tasks}

    async def stop(self) -> None:
        await self._environments.close()

    async def run(self, task: TextTask, agents: vf.Agents) -> None:
        episode = await self._environments.open(self._tasks[task.data.id])
        try:
            async with agents.agent.interaction(task) as interaction:
                segment = await interaction.turn(episode.turn())
                while not segment.terminated:
                    await episode.respond(segment.last_reply)
                    if episode.done:
                        break
                    segment = await interaction.turn(episode.turn())
        finally:
            await episode.close()
        interaction.trace.record_reward("success", float(episode.success), 1.0)
        for name in ("score", "steps", "invalid", "episode_return"):
            interaction.trace.record_metric(name, float(getattr(episode, name)))
