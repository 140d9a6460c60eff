"""Plays groups of episodes against an engine, asynchronously per episode.

Each episode is a coroutine: it asks the engine for a turn, gives the action to its environment, and goes on.
No environment waits for another's turn unless the engine was told to (`rollout.batching: deterministic`).
Seeds come from (run seed, purpose, update, group or task, member, step) alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from paw_hpc.envs.base import AgentView, Benchmark, EnvironmentFailure, EnvironmentState, Session, Task
from paw_hpc.experience import Episode, Group, Ids, Transition
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.engines.base import Completion, Engine, GenerationRequest
from paw_hpc.rollout.prompts import Conversation, Overlong, Prompter, Window
from paw_hpc.system.seeding import derive_seed, name_seed
from paw_hpc.system.text import mended

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """How episodes are played (training and evaluation differ in these only)."""

    run_seed: int
    purpose: str
    temperature: float
    max_prompt_tokens: int
    max_response_tokens: int
    max_observation_tokens: int
    seeds: Literal["place", "task"] = "place"
    """What an episode's seed says of its task: the group's global index, or the task's id wherever it
    stands."""
    conversation: bool = False
    """Every prompt goes on from the one before (`env.prompt: conversation`)."""


@dataclass(slots=True)
class CollectStats:
    """Wall-clock facts of one collection. Waits are means over episodes."""

    seconds: float = 0.0
    engine_wait_s: float = 0.0
    environment_wait_s: float = 0.0
    first_token_s: float = 0.0
    """Mean over turns, from the request to its first token; 0 where the engine does not say."""
    engine_idle_s: float = 0.0
    """No turn was being generated."""
    episodes_in_flight: float = 0.0
    """Mean over the collection; the largest number is in `peak_episodes`."""
    peak_episodes: int = 0
    straggler_s: float = 0.0
    """From the end of nine tenths of the episodes to the end of the last."""
    generated_tokens: int = 0
    prompt_tokens: int = 0
    environment_steps: int = 0
    failed_by_environment: int = 0
    overlong_prompts: int = 0
    """Episodes that ended, as failures, because their next prompt did not fit even without history."""
    truncated_prompts: int = 0
    truncated_observations: int = 0
    mended_texts: int = 0
    """Texts from environments and retrievers that held halves of characters (see system/text.py)."""
    mixed_version_turns: int = 0
    """Turns during which the engine's weights changed."""
    engine: dict[str, float] = field(default_factory=dict)
    """What the engine says of itself, under public names."""
    entropies: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    """(episode, step) -> the engine's entropies of the response tokens, where it reports them."""

    def metrics(self) -> dict[str, float]:
        seconds = max(self.seconds, 1e-9)
        return {
            "rollout/generated_tokens": self.generated_tokens,
            "rollout/prompt_tokens": self.prompt_tokens,
            "rollout/environment_steps": self.environment_steps,
            "rollout/failed_by_environment": self.failed_by_environment,
            "rollout/overlong_prompts": self.overlong_prompts,
            "rollout/truncated_prompts": self.truncated_prompts,
            "rollout/truncated_observations": self.truncated_observations,
            "rollout/mended_texts": self.mended_texts,
            "rollout/mixed_version_turns": self.mixed_version_turns,
            "time/collect_s": self.seconds,
            "time/engine_wait_s": self.engine_wait_s,
            "time/environment_wait_s": self.environment_wait_s,
            "time/environment_wait_share": self.environment_wait_s / seconds,
            "time/engine_idle_share": self.engine_idle_s / seconds,
            "time/generation_tokens_per_s": self.generated_tokens / seconds,
            "time/first_token_s": self.first_token_s,
            "time/episodes_in_flight": self.episodes_in_flight,
            "time/peak_episodes_in_flight": self.peak_episodes,
            "time/straggler_s": self.straggler_s,
            **self.engine,
        }


class _Gauge:
    """A count over time: its integral, its peak, and how long it was 0."""

    def __init__(self) -> None:
        self.value = self.peak = 0
        self.integral = self.zero_s = 0.0
        self._since = time.perf_counter()

    def change(self, by: int) -> None:
        now = time.perf_counter()
        self.integral += self.value * (now - self._since)
        self.zero_s += 0.0 if self.value else now - self._since
        self._since = now
        self.value += by
        self.peak = max(self.peak, self.value)


class Collector:
    """Collects the groups of one update (or of a panel).

    Args:
        benchmark: where tasks are played.
        engine: what generates the turns.
        chat: renders prompts and observations to ids.
    """

    def __init__(self, benchmark: Benchmark, engine: Engine, chat: ChatFormat, settings: PlaySettings):
        self._benchmark, self._engine, self._chat, self._settings = benchmark, engine, chat, settings
        self._episodes, self._turns, self._ends = _Gauge(), _Gauge(), list[float]()

    async def collect(
        self, tasks: Sequence[Task], members: int, index: int, first_group: int = 0
    ) -> tuple[list[Group], CollectStats]:
        """Play every task `members` times.

        Args:
            index: the update (or the repeat of an evaluation); a part of every seed.
            first_group: global index of the first task's group.

        Raises:
            RecipeError: a prompt cannot fit. This, and any error of the engine, ends all episodes at once and
                closes their environments.
        """
        stats, start, mended_before = CollectStats(), time.perf_counter(), mended()
        self._episodes, self._turns, self._ends = _Gauge(), _Gauge(), []
        groups = [Group(first_group + g, task.task_id, task.task_type) for g, task in enumerate(tasks)]
        for group in groups:
            for m in range(members):
                self._engine.join(group.index * members + m)
        await _all(
            [
                self._group(task, group, members, index, stats)
                for task, group in zip(tasks, groups, strict=True)
            ]
        )
        self._summarize(stats, start, len(tasks) * members)
        stats.mended_texts = mended() - mended_before
        return groups, stats

    def _summarize(self, stats: CollectStats, start: float, episodes: int) -> None:
        now = time.perf_counter()
        stats.seconds = now - start
        stats.engine_wait_s /= max(1, episodes)
        stats.environment_wait_s /= max(1, episodes)
        stats.first_token_s /= max(1, stats.environment_steps)
        for gauge in (self._episodes, self._turns):
            gauge.change(0)
        stats.engine_idle_s = self._turns.zero_s
        stats.episodes_in_flight, stats.peak_episodes = (
            self._episodes.integral / max(stats.seconds, 1e-9),
            self._episodes.peak,
        )
        if self._ends:
            stats.straggler_s = now - sorted(self._ends)[max(0, math.ceil(0.9 * len(self._ends)) - 1)]

    async def _group(self, task: Task, group: Group, members: int, index: int, stats: CollectStats) -> None:
        place = group.index if self._settings.seeds == "place" else name_seed(task.task_id)
        seeds = [
            derive_seed(self._settings.run_seed, self._settings.purpose, index, place, m)
            for m in range(members)
        ]
        group.episodes = [
            Episode(group.index * members + m, group.index, task.task_id, task.task_type, seed=seeds[m])
            for m in range(members)
        ]
        sessions: Sequence[Session] = ()
        start = time.perf_counter()
        try:
            sessions = await self._benchmark.open(task, members)
            stats.environment_wait_s += (time.perf_counter() - start) * members
            await _all(
                [self._episode(task, e, s, stats) for e, s in zip(group.episodes, sessions, strict=True)]
            )
        except EnvironmentFailure as error:
            for episode in group.episodes:
                self._failed(episode, error, stats)
        finally:
            # Also those of episodes that never began.
            for episode in group.episodes:
                self._engine.leave(episode.index)
            for session in sessions:
                await session.close()

    async def _episode(self, task: Task, episode: Episode, session: Session, stats: CollectStats) -> None:
        self._episodes.change(1)
        try:
            view = self._benchmark.view(task, episode.seed)
            state = await session.reset()
            view.start(state)
            prompter = self._prompter(view)
            while not state.done:
                state = await self._turn(view, prompter, episode, session, state, stats)
            episode.success, episode.score = state.success, state.score
        except (
            Overlong
        ) as error:  # the policy cannot go on: what it did so far is trained on, with the return that it has
            _log.warning("group %d, episode %d: %s: it counts as failed", episode.group, episode.index, error)
            stats.overlong_prompts += 1
        except EnvironmentFailure as error:
            self._failed(episode, error, stats)
        finally:
            self._episodes.change(-1)
            self._ends.append(time.perf_counter())
            self._engine.leave(episode.index)
            await session.close()

    def _failed(self, episode: Episode, error: EnvironmentFailure, stats: CollectStats) -> None:
        _log.warning("group %d, episode %d: the environment failed: %s", episode.group, episode.index, error)
        episode.failed_by_environment = True
        stats.failed_by_environment += 1

    def _prompter(self, view: AgentView) -> Prompter:
        kind = Conversation if self._settings.conversation else Window
        return kind(view, self._chat, self._settings.max_prompt_tokens)

    async def _turn(
        self,
        view: AgentView,
        prompter: Prompter,
        episode: Episode,
        session: Session,
        state: EnvironmentState,
        stats: CollectStats,
    ) -> EnvironmentState:
        step, start = len(episode.transitions), time.perf_counter()
        prompt, shortened = prompter.prompt(episode.task_id, step + 1)
        episode.truncated_prompts += shortened
        stats.truncated_prompts += shortened
        before, anchor = state, view.anchor()
        seed = derive_seed(episode.seed, "turn", step)
        request = GenerationRequest(
            episode.index, prompt, seed, self._settings.temperature, self._settings.max_response_tokens
        )
        self._turns.change(1)
        try:
            answer = await self._engine.generate(request)
        finally:
            self._turns.change(-1)
        generated = time.perf_counter()
        action, valid = view.parse(self._chat.decode(answer.ids), self._chat.opens_thought)
        state = await session.step(action)
        view.observe(action, state)
        observation, cut = self._chat.observation(state.observation, self._settings.max_observation_tokens)
        if not state.done:
            prompter.go_on(answer.ids, state.observation)
        episode.truncated_observations += cut
        stats.truncated_observations += cut
        stats.engine_wait_s += generated - start
        stats.environment_wait_s += time.perf_counter() - generated
        stats.generated_tokens += len(answer.ids)
        stats.prompt_tokens += len(prompt)
        stats.environment_steps += 1
        stats.first_token_s += answer.first_token_s or 0.0
        stats.mixed_version_turns += answer.token_versions is not None
        if answer.entropies is not None:
            stats.entropies[episode.index, step] = answer.entropies
        episode.transitions.append(
            self._transition(
                episode, step, prompt, answer, observation, state, action, valid, anchor, before.admissible
            )
        )
        return state

    def _transition(
        self,
        episode: Episode,
        step: int,
        prompt: Ids,
        answer: Completion,
        observation: Ids,
        state: EnvironmentState,
        action: str,
        valid: bool,
        anchor: str,
        admissible: tuple[str, ...],
    ) -> Transition:
        return Transition(
            group=episode.group,
            episode=episode.index,
            step=step,
            prompt_ids=prompt,
            response_ids=answer.ids,
            response_logprobs=answer.logprobs,
            bridge_ids=self._chat.bridge(self._chat.ends_turn(answer.ids)),
            observation_ids=observation,
            reward=state.reward,
            valid=valid,
            anchor=anchor,
            admissible=admissible,
            weight_version=answer.weight_version,
            token_versions=answer.token_versions,
            action=action,
        )


async def _all(jobs: Sequence[Coroutine[None, None, None]]) -> None:
    """Run them together. When one raises, the others are cancelled and waited for, and its error is raised as
    it is."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
