"""The environments of a benchmark for callers without an event loop: `paw_hpc.envs.sessions`, one call after
the other.

    with Environments("alfworld") as environments:
        episode = environments.open(environments.panel("valid_seen").tasks[0])
        while not episode.done:
            episode.step(choose(episode.state))

The coroutines run in a loop of their own in one thread, so that a notebook, several threads, and a caller
with a loop of its own may call alike.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from paw_hpc.envs.base import EnvironmentState, Message, Panel, Task
from paw_hpc.envs.outcomes import Outcome
from paw_hpc.envs.sessions import AsyncBatch, AsyncEnvironments, AsyncEpisode
from paw_hpc.system.errors import UserError

T = TypeVar("T")


class Environments:
    """The environments of one benchmark. A context manager, which ends every process that it started; used in
    the process that made it.

    Args and errors are those of `AsyncEnvironments`: benchmark, `protocol`, `seed`, `plugins`, and keys of a
    recipe's `env` section.
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
        self._environments = AsyncEnvironments(
            benchmark, protocol=protocol, seed=seed, plugins=plugins, **keys
        )
        self.env, self.seed = self._environments.env, seed
        """The rules, as a recipe's section; the seed of all episodes."""
        self._inline = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="paw-environments", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def source(self) -> str:
        """What is played, official or generated data, in words. Raises DataError where data is missing."""
        return self._environments.source

    def tasks(self, split: str) -> Sequence[Task]:
        """All tasks of a split, in an order that no machine changes. Raises DataError: unknown, or no
        data."""
        return self._environments.tasks(split)

    def panel(self, name: str | None = None) -> Panel:
        """The fixed list of tasks that policies are judged on (see `AsyncEnvironments.panel`)."""
        return self._environments.panel(name)

    def open(self, task: Task, *, repeat: int = 0) -> Episode:
        """Episode number `repeat` of a task, reset. Raises EnvironmentFailure: the environment could not be
        started."""
        return Episode(self._run(self._environments.open(task, repeat=repeat)), self)

    async def open_async(self, task: Task, *, repeat: int = 0) -> Episode:
        """`open`, as a coroutine of any event loop, for servers that have many episodes. One that is
        cancelled leaves no episode."""
        opened: list[AsyncEpisode] = []

        async def opening() -> None:
            opened.append(await self._environments.open(task, repeat=repeat))

        async def undone() -> None:
            for episode in opened:
                await episode.close()

        try:
            await asyncio.wrap_future(self._start(opening()))
        except asyncio.CancelledError:
            self._start(undone())  # behind `opening`, which has been cancelled, or was just done
            raise
        return Episode(opened[0], self)

    def open_group(self, task: Task, members: int, *, first: int = 0) -> list[Episode]:
        """Episodes `first`, `first + 1`, ... of a task, reset; they share the work of resetting. Raises
        EnvironmentFailure."""
        return [
            Episode(one, self) for one in self._run(self._environments.open_group(task, members, first=first))
        ]

    def open_batch(self, tasks: Sequence[Task], *, members: int = 1) -> Batch:
        """Episodes of several tasks, `members` of each side by side, to be stepped together. Raises
        EnvironmentFailure."""
        return Batch(
            [
                Episode(one, self)
                for one in self._run(self._environments.open_batch(tasks, members=members)).episodes
            ],
            self,
        )

    def close(self) -> None:
        """End all episodes and processes."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._environments.close()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. An interrupt (Ctrl-C) cancels it first."""
        future = self._start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            coroutine.close()
            raise UserError("these environments are closed; make new ones")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


class Episode:
    """One episode, reset and ready. `Environments.open` makes it; see `AsyncEpisode` for each of its
    words."""

    def __init__(self, episode: AsyncEpisode, environments: Environments):
        self._episode, self._environments = episode, environments
        self.task, self.repeat, self.seed = episode.task, episode.repeat, episode.seed

    @property
    def state(self) -> EnvironmentState:
        """What the environment said last."""
        return self._episode.state

    @property
    def observation(self) -> str:
        return self._episode.observation

    @property
    def admissible(self) -> tuple[str, ...]:
        """Actions that can be taken now; empty where the benchmark lists none."""
        return self._episode.admissible

    @property
    def state_key(self) -> str:
        """Equal where an episode is in the same state, as far as it can be seen: what GiGPO groups by."""
        return self._episode.state_key

    @property
    def done(self) -> bool:
        """It was won, lost or broken off by its limit of steps, or the environment failed."""
        return self._episode.done

    @property
    def success(self) -> bool:
        return self._episode.success

    @property
    def score(self) -> float:
        """The benchmark's own, in [0, 1]; where it has none, 1 for success."""
        return self._episode.score

    @property
    def failed(self) -> bool:
        """The environment, not the agent, broke down: the episode is over and counts in no rate."""
        return self._episode.failed

    @property
    def steps(self) -> int:
        """Actions taken."""
        return self._episode.steps

    @property
    def invalid(self) -> int:
        """How many of them were malformed or not admissible, where the benchmark can tell."""
        return self._episode.invalid

    @property
    def episode_return(self) -> float:
        """Undiscounted, without penalties."""
        return self._episode.episode_return

    def admits(self, action: str) -> bool:
        """Whether an action is well-formed and can be taken now; True where the benchmark cannot tell."""
        return self._episode.admits(action)

    def messages(self) -> list[Message]:
        """The prompt for this step; what a model says to it goes to `respond`."""
        return self._episode.messages()

    def turn(self) -> str:
        """What the next user turn of a conversation says, for callers that keep the messages. Raises
        UserError: a benchmark without conversations."""
        return self._episode.turn()

    def outcome(self) -> Outcome:
        """How it went, as a line of a file of outcomes. Raises UserError: the environment broke it."""
        return self._episode.outcome()

    def reset(self) -> EnvironmentState:
        """Begin the task anew. Raises EnvironmentFailure."""
        return self._environments._run(self._episode.reset())

    def step(self, action: str) -> EnvironmentState:
        """Take an action, in the environment's own words. Raises EnvironmentFailure, or UserError where the
        episode is over already."""
        return self._act(action, self._episode._judge(action))

    def respond(self, response: str, *, opened: bool = False) -> EnvironmentState:
        """Take the action that a model's response to `messages` says, read and judged by the rules; else as
        `step`."""
        return self._act(*self._episode._agent().parse(response, opened))

    async def act_async(self, said: str, *, response: bool = False) -> EnvironmentState:
        """`step`, or `respond`, as a coroutine of any event loop, for servers that have many episodes."""
        action, valid = self._episode._agent().parse(said) if response else (said, self._episode._judge(said))
        if hasattr(self._episode._live(), "act"):
            return self._act(action, valid)
        return await asyncio.wrap_future(self._environments._start(self._episode._step(action, valid)))

    def close(self) -> None:
        """End it. What is known of it stays."""
        self._environments._run(self._episode.close())

    def _act(self, action: str, valid: bool) -> EnvironmentState:
        """A session that never waits offers its step without an event loop, `act` (WebShop's): the way to the
        loop's thread and back would cost several of its steps. One at a time: not every tagger can be asked
        by two threads at once."""
        act: Callable[[str], EnvironmentState] | None = getattr(self._episode._live(), "act", None)
        if act is None:
            return self._environments._run(self._episode._step(action, valid))
        try:
            with self._environments._inline:
                state = act(action)
        except BaseException:
            self._episode.failed = True
            self.close()
            raise
        self._episode._count(action, valid, state)
        if state.done:
            self.close()
        return state


class Batch:
    """Episodes that are stepped together, each in its own environment at once. `Environments.open_batch`
    makes it."""

    def __init__(self, episodes: Sequence[Episode], environments: Environments):
        self.episodes = list(episodes)
        self._environments, self._batch = environments, AsyncBatch([episode._episode for episode in episodes])

    @property
    def done(self) -> bool:
        """All are over."""
        return self._batch.done

    def reset(self) -> list[EnvironmentState]:
        """Begin them all anew. Raises EnvironmentFailure where one could not."""
        return self._environments._run(self._batch.reset())

    def step(self, actions: Sequence[str | None]) -> list[EnvironmentState | None]:
        """One action for each episode; None for one that is over or shall wait (see `AsyncBatch.step`)."""
        return self._environments._run(self._batch.step(actions))

    def respond(self, responses: Sequence[str | None]) -> list[EnvironmentState | None]:
        """`step` with responses of a model."""
        return self._environments._run(self._batch.respond(responses))

    def close(self) -> None:
        """End them all."""
        self._environments._run(self._batch.close())
