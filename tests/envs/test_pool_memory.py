"""The memory of environment workers stays bounded: whatever an engine keeps goes with its episode."""

from __future__ import annotations

import asyncio

import pytest

from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.base import Task
from paw_hpc.envs.pool import EnvironmentPool
from tests.envs.pools import ME, ROOT, children_of, play, resident, run, started, task


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class TestMemory:
    def test_of_an_engine_that_leaks_goes_with_its_episode(self) -> None:
        """500 resets, 20 MB kept by each: a worker that held them would have grown to 10 GB."""

        async def test() -> None:
            async with started() as pool:
                for i in range(100):
                    sessions = await pool.open(task(f"g{i}", ballast=20 << 20), 5)
                    await asyncio.gather(*[play(s, "look") for s in sessions])
                    for s in sessions:
                        await s.close()
                    if i == 4:
                        early, few = resident(pool), len(children_of(ME, recursive=True))
                assert resident(pool) < early + (4 << 20)
                assert len(children_of(ME, recursive=True)) <= few + 3

        run(test)

    def test_of_workers_stays_the_same_over_500_resets_of_alfworld(self) -> None:
        made = [compose("train", "pick_and_place_simple", index, seed=0)[1] for index in range(30)]
        games = {
            f"g{i}": game for i, game in enumerate(sorted(made, key=lambda g: len(g["pddl_problem"]))[:5])
        }

        async def test() -> None:
            pool = EnvironmentPool(
                "paw_hpc.envs.alfworld.engine:GameEngine",
                lambda t: games[t.task_id],
                workers=1,
                timeout_s=60,
                max_steps=50,
                success_reward=10.0,
            )
            try:
                for i in range(40):
                    name = f"g{i % len(games)}"
                    sessions = await pool.open(Task(name, "pick_and_place_simple", ""), 13)
                    states = await asyncio.gather(*[play(s, games[name]["walkthrough"][0]) for s in sessions])
                    assert len({state.observation for state in states}) == 1
                    for s in sessions:
                        await s.close()
                    if i == 9:
                        early = resident(pool)
                assert resident(pool) < early + (8 << 20)
            finally:
                await pool.close()

        run(test)
