"""Random walks through a benchmark, and the same tasks, seeds and actions again through each interface: is
what comes back the same?

    python -m tests.envs.walks [500] [--data auto] [--only webshop]

(At this size ALFWorld's takes minutes. `--data auto` takes official data where it is at hand, the default
generated ones.) Beside admissible actions a walk tries what is none, searches of all kinds, and capitals; the
first walk of each task goes a way that wins, where one is known, so that rewards are compared, too.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random
from typing import Any

from paw_hpc.envs import AsyncEnvironments, Environments, EnvironmentState, Task
from paw_hpc.envs.alfworld import games
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.webshop import agents
from paw_hpc.envs.webshop.game import SEARCH_ENTRY
from paw_hpc.recipe import EnvSection

GENERATED: dict[str, dict[str, Any]] = {
    "alfworld": {
        "games": "generated",
        "task_types": ("pick_and_place_simple", "look_at_obj_in_light"),
        "max_steps": 15,
        "workers": 1,
    },
    "webshop": {"webshop": {"catalogue": "generated", "num_products": 120}, "max_steps": 15},
    "search": {"search": {"data": "generated"}, "max_steps": 4},
}
AUTO: dict[str, dict[str, Any]] = {
    "alfworld": {"max_steps": 30, "workers": 1},
    "webshop": {"max_steps": 15},
    "search": {"search": {"data": "auto"}, "max_steps": 4},
}
MEMBERS = 4
"""Walks of one task, which share a reset where they can."""


@dataclass(frozen=True)
class Walk:
    """An episode: what was done, and what was said, the first state included."""

    task: Task
    repeat: int
    actions: list[str]
    states: list[EnvironmentState]


def walk_bare(benchmark: str, keys: dict[str, Any], walks: int, seed: int = 0) -> list[Walk]:
    """Walks on the benchmark's own sessions."""

    async def all_of_them() -> list[Walk]:
        bench, found = make_benchmark(EnvSection(name=benchmark, **keys)), list[Walk]()
        try:
            for number, task in enumerate(_tasks(bench, benchmark, walks)):
                for repeat, session in enumerate(await bench.open(task, MEMBERS)):
                    rng, known = (
                        Random(f"{seed}/{number}/{repeat}"),
                        [] if repeat else _winning(bench, benchmark, task),
                    )
                    states, actions = [await session.reset()], list[str]()
                    words = states[0].observation.lower().split()
                    while not states[-1].done:
                        actions.append(
                            known.pop(0) if known else _any_action(benchmark, states[-1], words, rng)
                        )
                        states.append(await session.step(actions[-1]))
                    await session.close()
                    found.append(Walk(task, repeat, actions, states))
        finally:
            await bench.close()
        return found

    return asyncio.run(all_of_them())[:walks]


def walk_async(benchmark: str, keys: dict[str, Any], walks: Sequence[Walk]) -> list[list[EnvironmentState]]:
    """The same through coroutines; those of a task as a group, all at once."""

    async def one(episode: Any, actions: list[str]) -> list[EnvironmentState]:
        return [episode.state, *[await episode.step(action) for action in actions]]

    async def all_of_them() -> list[list[EnvironmentState]]:
        found: list[list[EnvironmentState]] = []
        async with AsyncEnvironments(benchmark, **keys) as environments:
            for first in range(0, len(walks), MEMBERS):
                group = walks[first : first + MEMBERS]
                episodes = await environments.open_group(group[0].task, len(group))
                found += await asyncio.gather(
                    *(one(e, w.actions) for e, w in zip(episodes, group, strict=True))
                )
        return found

    return asyncio.run(all_of_them())


def walk_batch(benchmark: str, keys: dict[str, Any], walks: Sequence[Walk]) -> list[list[EnvironmentState]]:
    """The same as batches of some tasks, one call after the other."""
    found: list[list[EnvironmentState]] = []
    with Environments(benchmark, **keys) as environments:
        for first in range(0, len(walks), 4 * MEMBERS):
            some = walks[first : first + 4 * MEMBERS]
            batch = environments.open_batch([walk.task for walk in some[::MEMBERS]], members=MEMBERS)
            states = [[episode.state] for episode in batch.episodes]
            for turn in range(max(len(walk.actions) for walk in some)):
                actions = [walk.actions[turn] if turn < len(walk.actions) else None for walk in some]
                said = batch.step([*actions, *[None] * (len(states) - len(some))])
                for trace, state in zip(states, said, strict=True):
                    trace.extend([] if state is None else [state])
            batch.close()
            found += states[: len(some)]
    return found


def walk_single(benchmark: str, keys: dict[str, Any], walks: Sequence[Walk]) -> list[list[EnvironmentState]]:
    """The same, one episode after the other."""
    with Environments(benchmark, **keys) as environments:
        found = []
        for walk in walks:
            episode = environments.open(walk.task, repeat=walk.repeat)
            found.append([episode.state, *[episode.step(action) for action in walk.actions]])
            assert episode.done and episode.outcome().success == walk.states[-1].success
    return found


def walk_gymnasium(
    benchmark: str, keys: dict[str, Any], walks: Sequence[Walk]
) -> list[list[EnvironmentState]]:
    """The same through Gymnasium; of what it says, what it has of a state."""
    import gymnasium

    def state(
        observation: str, info: dict[str, Any], reward: float = 0.0, done: bool = False
    ) -> EnvironmentState:
        return EnvironmentState(
            observation, tuple(info["admissible"]), reward, done, info["success"], info["score"]
        )

    env = gymnasium.make(f"paw_hpc.envs.gym:paw/{benchmark}", **keys)
    found = []
    for walk in walks:
        trace = [state(*env.reset(options={"task_id": walk.task.task_id, "repeat": walk.repeat}))]
        for action in walk.actions:
            observation, reward, terminated, truncated, info = env.step(action)
            assert isinstance(reward, float) and not (terminated and truncated)
            trace.append(state(observation, info, reward, terminated or truncated))
        found.append(trace)
    env.close()
    return found


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an ASGI application on a free port of loopback."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws_max_size=1 << 20)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def walk_openenv(benchmark: str, keys: dict[str, Any], walks: Sequence[Walk]) -> list[list[EnvironmentState]]:
    """The same over a socket; the walks of some tasks at once, each in a session of its own."""
    from paw_hpc.envs.openenv import Served, TextAction, TextClient, TextObservation, make_app

    def state(seen: TextObservation) -> EnvironmentState:
        return EnvironmentState(
            seen.observation,
            tuple(seen.admissible),
            float(seen.reward or 0.0),
            seen.done,
            seen.success,
            seen.score,
        )

    async def one(url: str, walk: Walk) -> list[EnvironmentState]:
        async with TextClient(url, key="a-key") as client:
            trace = [state((await client.reset(task_id=walk.task.task_id, repeat=walk.repeat)).observation)]
            for action in walk.actions:
                trace.append(state((await client.step(TextAction(action=action))).observation))
            return trace

    async def all_of_them(url: str) -> list[list[EnvironmentState]]:
        found: list[list[EnvironmentState]] = []
        for first in range(0, len(walks), 4 * MEMBERS):
            found += await asyncio.gather(*(one(url, walk) for walk in walks[first : first + 4 * MEMBERS]))
        return found

    with Environments(benchmark, **keys) as environments:
        panel = {"alfworld": "valid_seen", "webshop": "test", "search": "test"}[benchmark]
        with serving(make_app(Served(environments, panel=panel), key="a-key")) as url:
            return asyncio.run(all_of_them(url))


INTERFACES: dict[str, Callable[[str, dict[str, Any], Sequence[Walk]], list[list[EnvironmentState]]]] = {
    "coroutines": walk_async,
    "batches": walk_batch,
    "single calls": walk_single,
    "Gymnasium": walk_gymnasium,
    "OpenEnv": walk_openenv,
}
NEEDS = {"Gymnasium": "gymnasium", "OpenEnv": "openenv"}
"""The package that an interface needs."""


def differences(walks: Sequence[Walk], again: Sequence[Sequence[EnvironmentState]]) -> list[str]:
    """Where the two are not the same: observation, admissible actions, reward, end, success, score, or the
    number of states."""
    found = [] if len(walks) == len(again) else [f"{len(again)} walks, and there were {len(walks)}"]
    for walk, states in zip(walks, again, strict=False):
        where = f"{walk.task.task_id}, episode {walk.repeat}"
        if len(states) != len(walk.states):
            found.append(f"{where}: {len(states)} states, and there were {len(walk.states)}")
        found += [
            f"{where}, step {n}: {b} and not {a}"
            for n, (a, b) in enumerate(zip(walk.states, states, strict=False))
            if a != b
        ]
    return found


def _tasks(bench: Any, benchmark: str, walks: int) -> list[Task]:
    panel = {"alfworld": "valid_seen", "webshop": "test", "search": "test"}[benchmark]
    listed = bench.panel(panel).tasks
    return [listed[number * 7919 % len(listed)] for number in range(-(-walks // MEMBERS))]


def _winning(bench: Any, benchmark: str, task: Task) -> list[str]:
    if benchmark == "alfworld":
        return list(games.load_game(task)["walkthrough"])
    if benchmark == "webshop":
        route = agents.plan_route(bench.session(task).game)
        return list(route.actions) if route else []
    return ["<search>x</search>", f"<answer>{bench.question(task).answers[0]}</answer>"]


def _any_action(benchmark: str, state: EnvironmentState, words: list[str], rng: Random) -> str:
    some = " ".join(rng.sample(words, min(len(words), rng.randint(1, 3))))
    if benchmark == "search":
        return rng.choice(
            [f"<search>{some}</search>"] * 4
            + [f"<answer>{some}</answer>", some, "", "<search></search>", f"<search>{some}"]
        )
    if rng.random() < 0.1:
        return rng.choice(
            [
                some,
                "",
                "click[buy now]",
                "go to nowhere 7",
                *(action.upper() for action in state.admissible[:1]),
            ]
        )
    action = rng.choice(state.admissible)
    if action == SEARCH_ENTRY:
        return rng.choice([f"search[{some}]"] * 8 + ["search[<r>]", action])
    return action


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("walks", type=int, nargs="?", default=500)
    parser.add_argument("--data", choices=("generated", "auto"), default="generated")
    parser.add_argument("--only", choices=tuple(GENERATED))
    given = parser.parse_args()
    wrong = 0
    for benchmark, keys in (GENERATED if given.data == "generated" else AUTO).items():
        if given.only not in (None, benchmark):
            continue
        start = time.perf_counter()
        walks = walk_bare(benchmark, keys, given.walks)
        won = sum(walk.states[-1].success for walk in walks)
        print(
            f"{make_benchmark(EnvSection(name=benchmark, **keys)).source}: {len(walks)} walks, "
            f"{sum(len(w.actions) for w in walks)} steps, {won} won"
        )
        print(f"  bare: {time.perf_counter() - start:.0f} s")
        for name, play in INTERFACES.items():
            if name in NEEDS and find_spec(NEEDS[name]) is None:
                print(f"  {name}: not here")
                continue
            start = time.perf_counter()
            found = differences(walks, play(benchmark, keys, walks))
            wrong += len(found)
            print(
                f"  {name}: {len(found)} differences, {time.perf_counter() - start:.0f} s",
                *found[:3],
                sep="\n    ",
                flush=True,
            )
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
