"""The environments of a benchmark for any trainer, as coroutines: open tasks, step, read what there is to
know of an episode, close.

    async with AsyncEnvironments("webshop", max_steps=15) as environments:
        episode = await environments.open(environments.panel("test").tasks[0])
        while not episode.done:
            await episode.step(choose(episode.state))

A thin layer over `paw_hpc.envs.base.Benchmark`, whose sessions do the work: what they say is handed on
unchanged. `paw_hpc.envs.blocking` has the same for callers without an event loop. Rules (steps, prompts,
which data) are the keys of a recipe's `env` section; an episode is seeded as `paw eval` seeds it, so what is
played here and what is evaluated there can be compared episode by episode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Self

from paw_hpc.envs.base import Benchmark, EnvironmentFailure, EnvironmentState, Panel, Session, Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.episode import EpisodeRecord
from paw_hpc.envs.rules import rules_of
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.system.errors import UserError
from paw_hpc.system.registry import load_plugin

Admits = Callable[[str, EnvironmentState], bool]


class AsyncEnvironments:
    """The environments of one benchmark. Used from one event loop; an asynchronous context manager, which
    ends every process that it started.

    Constructing it is cheap and reads no data.

    Args:
        benchmark: alfworld, webshop, search, or one that a plugin brings.
        protocol: `reference` or `ours`: begin with this protocol's rules (`paw recipes show
            BENCHMARK/PROTOCOL`); none: with every key's default.
        seed: of all episodes, as a recipe's `seed`.
        plugins: files or modules that bring benchmarks, as in a recipe.
        keys: of a recipe's `env` section (`paw recipes keys env`), over the protocol's: `max_steps=15`,
            `webshop={"catalogue": "small"}`.

    Raises:
        RecipeError: an unknown benchmark, protocol or key, or a value that does not fit; says which would.
    """

    def __init__(
        self,
        benchmark: str,
        *,
        protocol: str | None = None,
        seed: int = 0,
        plugins: Sequence[str] = (),
        **keys: Any,
    ):
        for plugin in plugins:
            load_plugin(plugin)
        self.env, self.seed = rules_of(benchmark, protocol, keys), seed
        """The rules, as a recipe's section; the seed of all episodes."""
        self.benchmark: Benchmark = make_benchmark(self.env)
        self._admits: Admits = BENCHMARKS.find(benchmark).admits or _listed
        self._open = set[AsyncEpisode]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def source(self) -> str:
        """What is played, official or generated data, in words. Raises DataError where data is missing."""
        return self.benchmark.source

    def tasks(self, split: str) -> Sequence[Task]:
        """All tasks of a split, in an order that no machine changes. Raises DataError: unknown, or no
        data."""
        return self.benchmark.tasks(split)

    def panel(self, name: str | None = None) -> Panel:
        """The fixed list of tasks that policies are judged on, with its checksum.

        Args:
            name: as in `paw eval --panel`: `valid_seen`, or `valid_seen:40@0` for a seeded part; none: the
                benchmark's first.

        Raises:
            DataError: no such panel, or no data for it.
        """
        return self.benchmark.panel(name or BENCHMARKS.find(self.env.name).panels[0])

    async def open(self, task: Task, *, repeat: int = 0) -> AsyncEpisode:
        """One episode of a task, reset.

        Args:
            repeat: which of the episodes of this task, from 0; it seeds what there is of chance.

        Raises:
            EnvironmentFailure: the environment could not be started.
        """
        [episode] = await self.open_group(task, 1, first=repeat)
        return episode

    async def open_group(self, task: Task, members: int, *, first: int = 0) -> list[AsyncEpisode]:
        """Episodes `first`, `first + 1`, ... of a task, reset; they share the work of resetting. Raises
        EnvironmentFailure."""
        if members < 1 or first < 0:
            raise UserError(
                f"{members} episodes from number {first} on: at least one is opened, and they are counted "
                "from 0"
            )
        episodes = [AsyncEpisode(self, task, first + member) for member in range(members)]
        sessions = await self._sessions(task, first, members)
        try:
            for episode, session in zip(episodes, sessions, strict=True):
                await episode._begin(session)
        except BaseException:
            await asyncio.gather(*(session.close() for session in sessions))
            self._open.difference_update(episodes)
            raise
        return episodes

    async def open_batch(self, tasks: Sequence[Task], *, members: int = 1) -> AsyncBatch:
        """Episodes of several tasks, `members` of each, to be stepped together; in the order of the tasks,
        those of one task side by side.

        Raises:
            EnvironmentFailure: one of them could not be started; none is left open.
        """
        opened = await asyncio.gather(
            *(self.open_group(task, members) for task in tasks), return_exceptions=True
        )
        batch = AsyncBatch([episode for group in opened if isinstance(group, list) for episode in group])
        for failure in opened:
            if isinstance(failure, BaseException):
                await batch.close()
                raise failure
        return batch

    async def close(self) -> None:
        """End all episodes and processes. Nothing is lost that was not over."""
        for episode in list(self._open):
            await episode.close()
        await self.benchmark.close()

    async def _sessions(self, task: Task, first: int, members: int) -> Sequence[Session]:
        # A benchmark counts the members of a group from 0: for a later one those before it are opened, and
        # closed at once.
        sessions = await self.benchmark.open(task, first + members)
        for session in sessions[:first]:
            await session.close()
        return sessions[first:]


class AsyncEpisode(EpisodeRecord):
    """One episode, reset and ready. `AsyncEnvironments.open` makes it."""

    async def reset(self) -> EnvironmentState:
        """Begin the task anew; at the first step already, where none was taken. Raises EnvironmentFailure."""
        if self._session is None or self.steps or self.failed:
            await self.close()
            [session] = await self._environments._sessions(self.task, self.repeat, 1)
            await self._begin(session)
        return self.state

    async def step(self, action: str) -> EnvironmentState:
        """Take an action, in the environment's own words: one of `admissible` where it lists them. What it
        does not know changes nothing and costs a step.

        Raises:
            EnvironmentFailure: the environment died, hung or talked nonsense; the episode is over (`failed`).
            UserError: the episode is over already, or the action is no string.
        """
        return await self._step(action, self._judge(action))

    async def respond(self, response: str, *, opened: bool = False) -> EnvironmentState:
        """Take the action that a model's response to `messages` says, read and judged by the rules
        (`validity`); else as `step`.

        Args:
            opened: the prompt ended inside of the thought: the model's chat template writes `<think>`.
        """
        return await self._step(*self._agent().parse(response, opened))

    async def close(self) -> None:
        """End it. What is known of it stays."""
        session, self._session = self._session, None
        self._environments._open.discard(self)
        if session is not None:
            await session.close()

    async def _begin(self, session: Session) -> None:
        self._session = session
        self._environments._open.add(self)
        self.state = self._start = await session.reset()
        self.steps, self.invalid, self.episode_return, self.failed = 0, 0, 0.0, False
        self._view = None
        self._unseen.clear()

    async def _step(self, action: str, valid: bool) -> EnvironmentState:
        session = self._live()
        try:
            state = await session.step(action)
        except BaseException:
            # Also where the wait for it was cancelled: its answer is still on the way, and would be taken for
            # that to the next action.
            self.failed = True
            await self.close()
            raise
        self._count(action, valid, state)
        if state.done:
            await self.close()
        return state

    def _judge(self, action: str) -> bool:
        if not isinstance(action, str):
            raise UserError(
                f"{self.task.task_id}: an action is a string, and this is a {type(action).__name__}"
            )
        return self.admits(action)

    def _live(self) -> Session:
        if self.done or self._session is None:
            raise UserError(
                f"{self.task.task_id}: this episode is {'over' if self.done else 'closed'}; reset it, or "
                "open another"
            )
        return self._session

    def _count(self, action: str, valid: bool, state: EnvironmentState) -> None:
        self.state = state
        self.steps += 1
        self.invalid += not valid
        self.episode_return += state.reward
        self._unseen.append((action, state))


class AsyncBatch:
    """Episodes that are stepped together. `AsyncEnvironments.open_batch` makes it, or any list of
    episodes."""

    def __init__(self, episodes: Sequence[AsyncEpisode]):
        self.episodes = list(episodes)

    @property
    def done(self) -> bool:
        """All are over."""
        return all(episode.done for episode in self.episodes)

    async def reset(self) -> list[EnvironmentState]:
        """Begin them all anew. Raises EnvironmentFailure where one could not."""
        return list(await asyncio.gather(*(episode.reset() for episode in self.episodes)))

    async def step(self, actions: Sequence[str | None]) -> list[EnvironmentState | None]:
        """One action for each episode, in their order; None for one that is over or that shall wait.

        Returns what each environment said; None where nothing was done, and where the environment failed
        (`failed` says which).

        Raises:
            UserError: another number of actions than of episodes, or one for an episode that is over.
        """
        return await self._all(actions, AsyncEpisode.step)

    async def respond(self, responses: Sequence[str | None]) -> list[EnvironmentState | None]:
        """`step` with responses of a model (see `AsyncEpisode.respond`)."""
        return await self._all(responses, AsyncEpisode.respond)

    async def close(self) -> None:
        for episode in self.episodes:
            await episode.close()

    async def _all(
        self, said: Sequence[str | None], act: Callable[[AsyncEpisode, str], Any]
    ) -> list[EnvironmentState | None]:
        if len(said) != len(self.episodes):
            raise UserError(
                f"{len(said)} actions for {len(self.episodes)} episodes; give one for each, and None where "
                "an episode is over"
            )
        over = [
            e.task.task_id for e, one in zip(self.episodes, said, strict=True) if one is not None and e.done
        ]
        if over:
            raise UserError(f"{over[0]}: an action for an episode that is over; give None for it")

        async def one(episode: AsyncEpisode, what: str | None) -> EnvironmentState | None:
            try:
                return None if what is None else await act(episode, what)
            except EnvironmentFailure:
                return None

        return list(
            await asyncio.gather(
                *(one(episode, what) for episode, what in zip(self.episodes, said, strict=True))
            )
        )


def _listed(action: str, state: EnvironmentState) -> bool:
    return not state.admissible or action in state.admissible
