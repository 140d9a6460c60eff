"""The interface for other trainers plays an episode as an evaluation does: from the same seed, with the same
prompts and reading of answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from paw_hpc.envs import AsyncEnvironments, sessions
from paw_hpc.objective.credit import state_key
from paw_hpc.rollout.collector import Collector
from tests.rollout.desks import CHAT, SETTINGS, Parrot, World


@pytest.mark.parametrize("style", ["compact", "paper"])
def test_an_evaluations_responses_play_the_same_episodes(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, engine, seed = World(style=style), Parrot(), 11
    settings = replace(SETTINGS, run_seed=seed, purpose="eval", seeds="task")
    tasks = world.tasks("train")[:3]
    groups, _ = asyncio.run(Collector(world, engine, CHAT, settings).collect(tasks, 4, 0, first_group=5))
    monkeypatch.setattr(sessions, "make_benchmark", lambda env: world)

    async def again() -> int:
        environments, steps = AsyncEnvironments("alfworld", seed=seed), 0
        for task, group in zip(tasks, groups, strict=True):
            for member, evaluated in zip(await environments.open_group(task, 4), group.episodes, strict=True):
                assert member.seed == evaluated.seed
                for t in evaluated.transitions:
                    assert CHAT.prompt(member.messages()).tolist() == t.prompt_ids.tolist()
                    assert member.state_key == state_key(t.anchor, t.admissible)
                    before = member.invalid
                    state = await member.respond(CHAT.decode(t.response_ids))
                    assert (state.reward, member.invalid == before) == (t.reward, t.valid)
                    steps += 1
                assert member.done and (member.success, member.score, member.steps) == (
                    evaluated.success,
                    evaluated.score,
                    len(evaluated.transitions),
                )
                assert member.outcome().episode_return == evaluated.episode_return
        return steps

    assert asyncio.run(again()) > 20
    assert len({episode.seed for group in groups for episode in group.episodes}) == 12
