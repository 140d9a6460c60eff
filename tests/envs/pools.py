"""Pools of fake engines, and what their tests look at: processes, memory, what a fake engine says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from paw_hpc.envs.base import EnvironmentState, Session, Task
from paw_hpc.envs.pool import EnvironmentPool

ROOT = Path(__file__).resolve().parents[2]
FAKE = "tests.envs.fake_engine:FakeEngine"
ME = psutil.Process()


EARLIER: set[psutil.Process] = set()
"""Children that tests before the running one left in this process, such as the tracker of shared memory: none
of the pool's."""


def children_of(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
    """`process.children`, again where one of them ended while psutil was looking at it; without those of
    earlier tests."""
    for attempt in range(20):
        try:
            return [child for child in process.children(recursive=recursive) if child not in EARLIER]
        except (ProcessLookupError, psutil.NoSuchProcess):
            if attempt == 19:
                raise
            time.sleep(0.02)
    raise AssertionError


def task(name: str = "g", **how: Any) -> Task:
    return Task(name, "fake", json.dumps({"name": name, **how}))


def fake_pool(
    workers: int = 1, timeout_s: float = 10.0, max_steps: int = 50, factory: str = FAKE
) -> EnvironmentPool:
    load: Callable[[Task], Any] = lambda t: json.loads(t.source)  # noqa: E731
    return EnvironmentPool(
        factory, load, workers=workers, timeout_s=timeout_s, max_steps=max_steps, success_reward=10.0
    )


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[EnvironmentPool]:
    pool = fake_pool(**options)
    try:
        yield pool
    finally:
        await pool.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous test; whatever it leaves behind is an orphan."""
    EARLIER.clear()
    EARLIER.update(children_of(ME, recursive=True))
    asyncio.run(asyncio.wait_for(test(), 240))
    assert gone(children_of(ME, recursive=True)) == []


def gone(processes: Sequence[psutil.Process], within_s: float = 5.0) -> list[psutil.Process]:
    """Those of the processes that are still there after a while (zombies that nobody has collected yet are
    not there)."""
    end = time.monotonic() + within_s
    while True:
        left = [p for p in processes if _lives(p)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def fields(state: EnvironmentState) -> tuple[str, int, int, int]:
    """(game, steps, process that loaded it, process that plays it)."""
    name, *numbers = state.observation.split(" ")
    steps, loader, player = map(int, numbers)
    return name, steps, loader, player


def workers_of(pool: EnvironmentPool) -> list[int]:
    return [process.pid for process in pool._processes]


async def play(session: Session, *actions: str) -> EnvironmentState:
    state = await session.reset()
    for action in actions:
        state = await session.step(action)
    return state


def resident(pool: EnvironmentPool) -> int:
    """Bytes of resident memory of the pool's workers."""
    return sum(psutil.Process(pid).memory_info().rss for pid in workers_of(pool))
