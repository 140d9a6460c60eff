"""The step `soak` of benchmarks/load.py: what long play leaves behind in one process."""

from __future__ import annotations

import argparse
import asyncio
import gc
from dataclasses import dataclass
from random import Random
from typing import Any

import psutil
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Left:
    """What is there between two groups."""

    episodes: int
    memory_mib: float
    """Of this process and all that it started, proportional set size."""
    descriptors: int
    threads: int
    processes: int


def soak(options: argparse.Namespace, console: Console) -> dict[str, list[Left]]:
    found = {name: asyncio.run(_soak(name, options.episodes)) for name in options.benchmarks}
    for name, lefts in found.items():
        console.print(f"\n### {name}: {options.episodes:,} episodes in one process\n")
        table = Table("episodes", "memory MiB", "descriptors", "threads", "processes", box=MARKDOWN)
        for left in lefts:
            table.add_row(
                f"{left.episodes:,}",
                f"{left.memory_mib:.1f}",
                str(left.descriptors),
                str(left.threads),
                str(left.processes),
            )
        console.print(table)
    return found


async def _soak(name: str, episodes: int) -> list[Left]:
    bench, tasks, rng, lefts = *_benchmark(name), Random(0), list[Left]()
    played, tenth = 0, max(8, episodes // 10)
    while played < episodes:
        members = min(8, episodes - played)
        sessions = await bench.open(rng.choice(tasks), members)
        await asyncio.gather(*(_episode(name, session, rng) for session in sessions))
        played += members
        if played // tenth > (played - members) // tenth:
            gc.collect()
            lefts.append(_left(played))
    await bench.close()
    return lefts


async def _episode(name: str, session: Any, rng: Random) -> None:
    state = await session.reset()
    for turn in range(3):
        if state.done:
            break
        words = {
            "search": "<search>who was born in the city</search>",
            "webshop": "<action>search[red cotton shirt]</action>",
        }
        state = await session.step(
            words[name] if name in words else f"<action>{rng.choice(state.admissible)}</action>"
        )
        if name == "webshop" and turn == 0 and state.admissible:
            words[name] = f"<action>{rng.choice(state.admissible)}</action>"
    await session.close()


def _benchmark(name: str) -> tuple[Any, Any]:
    from paw_hpc.envs.benchmarks import make_benchmark
    from paw_hpc.recipe import EnvSection

    own: dict[str, Any] = {
        "search": {"search": {"data": "generated"}},
        "webshop": {"webshop": {"catalogue": "generated"}},
    }.get(name, {"train_games": 40, "workers": 1})
    bench = make_benchmark(EnvSection(name=name, **own))  # type: ignore[arg-type]
    return bench, bench.tasks("train")


def _left(played: int) -> Left:
    own = psutil.Process()
    family = [own, *own.children(recursive=True)]
    memory = sum(process.memory_full_info().pss for process in family) / 2**20
    return Left(played, memory, own.num_fds(), own.num_threads(), len(family))
