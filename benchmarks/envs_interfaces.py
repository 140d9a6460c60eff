"""Steps per second through each interface for other trainers, beside the bare environments: `python
benchmarks/envs.py --interfaces`.

One episode after the other, resets included (ALFWorld's games have been reset before, so their translations
are kept); the same random actions through each interface. Speeds are per second of CPU time of all processes
and threads that take part, server and client among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from random import Random
from typing import Any

import psutil

from paw_hpc.envs import Environments
from paw_hpc.envs.base import Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.recipe import EnvSection

SETTINGS: dict[str, dict[str, Any]] = {
    "webshop": {"max_steps": 15, "webshop": {"catalogue": "small"}},
    "alfworld": {"max_steps": 30, "workers": 1},
    "search": {"max_steps": 4},
}
PANELS = {"webshop": "test", "alfworld": "valid_seen", "search": "test"}
FACTOR = {"webshop": 12, "alfworld": 1, "search": 12}
"""So many times the episodes that were asked for: the clock of a process has steps of 10 ms."""
GAMES = 8
"""Tasks that are played, again and again."""


def action(admissible: tuple[str, ...] | list[str], observation: str, rng: Random) -> str:
    if not admissible:
        return f"<search>{' '.join(rng.sample(observation.split(), 2))}</search>"
    chosen = rng.choice(list(admissible))
    return (
        f"search[{' '.join(rng.sample(observation.split(), 2))}]" if chosen.startswith("search[") else chosen
    )


def cpu_s() -> float:
    """Of this process and all below it, those that have ended among them."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [me, *me.children(recursive=True)])


def counted(play: Callable[[Task, Random], int], tasks: list[Task], episodes: int) -> float:
    """Steps per second of CPU time; every task has been played once before."""
    for task in tasks:
        play(task, Random(0))
    before, steps = cpu_s(), 0
    for number in range(episodes):
        steps += play(tasks[number % len(tasks)], Random(number))
    return steps / (cpu_s() - before)


def bare(name: str, tasks: list[Task], episodes: int) -> float:
    bench = make_benchmark(EnvSection(name=name, **SETTINGS[name]))
    with asyncio.Runner() as runner:

        async def one(task: Task, rng: Random) -> int:
            [session] = await bench.open(task, 1)
            state, steps = await session.reset(), 0
            while not state.done:
                state, steps = await session.step(action(state.admissible, state.observation, rng)), steps + 1
            await session.close()
            return steps

        found = counted(lambda task, rng: runner.run(one(task, rng)), tasks, episodes)
        runner.run(bench.close())
    return found


def plain(name: str, tasks: list[Task], episodes: int) -> float:
    with Environments(name, **SETTINGS[name]) as environments:

        def play(task: Task, rng: Random) -> int:
            episode = environments.open(task)
            while not episode.done:
                episode.step(action(episode.admissible, episode.observation, rng))
            episode.close()
            return episode.steps

        return counted(play, tasks, episodes)


def gymnasium(name: str, tasks: list[Task], episodes: int) -> float:
    import gymnasium as gym

    env = gym.make(f"paw_hpc.envs.gym:paw/{name}", panel=PANELS[name], **SETTINGS[name])

    def play(task: Task, rng: Random) -> int:
        observation, info = env.reset(options={"task_id": task.task_id})
        done, steps = False, 0
        while not done:
            observation, _, terminated, truncated, info = env.step(
                action(info["admissible"], observation, rng)
            )
            done, steps = terminated or truncated, steps + 1
        return steps

    found = counted(play, tasks, episodes)
    env.close()
    return found


def openenv(name: str, tasks: list[Task], episodes: int) -> float:
    """A server in a thread of this process and its client, one websocket for each episode."""
    from paw_hpc.envs.openenv import Served, TextAction, TextClient, make_app

    async def one(url: str, task: Task, rng: Random) -> int:
        async with TextClient(url, key="a-key") as client:
            result, steps = await client.reset(task_id=task.task_id), 0
            while not result.done:
                seen = result.observation
                result, steps = (
                    await client.step(TextAction(action=action(seen.admissible, seen.observation, rng))),
                    steps + 1,
                )
            return steps

    with (
        Environments(name, **SETTINGS[name]) as environments,
        asyncio.Runner() as runner,
        _serving(make_app(Served(environments, panel=PANELS[name]), key="a-key")) as url,
    ):
        return counted(lambda task, rng: runner.run(one(url, task, rng)), tasks, episodes)


@contextlib.contextmanager
def _serving(app: Any) -> Iterator[str]:
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


INTERFACES = {"bare": bare, "plain": plain, "Gymnasium": gymnasium, "OpenEnv, over a socket": openenv}
NEEDS = {"Gymnasium": "gymnasium", "OpenEnv, over a socket": "openenv"}


def measure(names: list[str], episodes: int) -> list[list[str]]:
    """Rows of a table: benchmark, then steps per second through each interface (a dash: its package is not
    here)."""
    rows = []
    for name in names:
        bench = make_benchmark(EnvSection(name=name, **SETTINGS[name]))
        listed = bench.panel(PANELS[name]).tasks
        tasks = [listed[i] for i in Random(0).sample(range(len(listed)), GAMES)]
        row = [name]
        for interface, play in INTERFACES.items():
            here = interface not in NEEDS or find_spec(NEEDS[interface]) is not None
            row.append(f"{play(name, tasks, FACTOR[name] * episodes):,.0f}" if here else "–")
        rows.append(row)
    return rows
