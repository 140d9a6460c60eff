"""Steps per second, reset time and memory of the environments, 1 and 128 of them at once.

    python benchmarks/envs.py [webshop] [alfworld] [--environments 1 128] [--steps 4000] [--catalogue auto] [--json FILE]

Each row is measured in a process of its own. Speeds are per second of CPU time of one core, so that they mean the same on a busy machine; memory is
the proportional set size (what the row's processes use, pages that they share counted once), imports included.

WebShop is played by the random player of `envs/webshop/agents.py`: every seventh step or so is a search of one to three words, seldom asked before.
ALFWorld is played by random admissible commands; its reset is the one that the members of a group share, and memory is that of the worker and of one
process per episode.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from paw_hpc.recipe import EnvSection, WebshopSection


@dataclass(frozen=True)
class Row:
    """One benchmark with a number of environments."""

    benchmark: str
    environments: int
    steps_per_s: float
    reset_ms: float
    memory_mib: float
    searches_per_s: float | None = None


def webshop(environments: int, steps: int, catalogue: str) -> Row:
    """Round robin over the environments; a new episode when one ends."""
    from paw_hpc.envs.webshop import agents
    from paw_hpc.envs.webshop.benchmark import Webshop

    bench = Webshop(EnvSection(name="webshop", max_steps=15, webshop=WebshopSection(catalogue=catalogue)))  # type: ignore[arg-type]
    tasks, rng = bench.tasks("train"), Random(0)
    bench.session(tasks[0]).act("search[warm]")

    def fresh() -> tuple[Any, Any]:
        session = bench.session(tasks[rng.randrange(len(tasks))])
        return session, agents.random_actions(session.game, rng, 15)

    start = time.process_time()
    playing = [fresh() for _ in range(environments)]
    reset_s = (time.process_time() - start) / environments
    done = resets = 0
    start = time.process_time()
    while done < steps:
        for place, (session, actions) in enumerate(playing):
            action = next(actions, None)
            if action is None or session.act(action).done:
                playing[place] = fresh()
                resets += 1
            done += action is not None
    seconds = time.process_time() - start - resets * reset_s
    queries = [agents.search_words(bench.goals[int(tasks[i].source)]) for i in range(min(len(tasks), 300))]
    start = time.process_time()
    for query in queries:
        bench.catalogue.search(query)
    searches = len(queries) / (time.process_time() - start)
    name = f"WebShop {bench.catalogue.about['set']} ({len(bench.catalogue.products):,} products)"
    return Row(name, environments, done / seconds, 1000 * reset_s, _memory(), searches)


def alfworld(environments: int, steps: int, catalogue: str) -> Row:
    """One group of members on one game in the pool for memory; the engine itself for speed."""
    from paw_hpc.envs.alfworld import games
    from paw_hpc.envs.alfworld.engine import GameEngine

    listed = games.tasks("train")
    chosen = [listed[i] for i in Random(0).sample(range(len(listed)), 4)]
    memory = asyncio.run(_alfworld_memory(chosen, environments))
    resets, moves, rng = list[float](), list[float](), Random(0)
    for task in chosen:
        engine = GameEngine(games.load_game(task))
        start = time.process_time()
        _, admissible, won = engine.reset()
        resets.append(time.process_time() - start)
        start = time.process_time()
        taken = 0
        while taken < max(1, min(steps, 400) // len(chosen)):
            _, admissible, won = engine.step(rng.choice(admissible))
            taken += 1
            if won:
                break
        moves.append((time.process_time() - start) / taken)
    return Row(f"ALFWorld ({games.source_name()})", environments, len(moves) / sum(moves), 1000 * sum(resets) / len(resets), memory)


async def _alfworld_memory(chosen: list[Any], environments: int) -> float:
    from paw_hpc.envs.alfworld.benchmark import Alfworld

    bench, sessions, rng = Alfworld(EnvSection(workers=1)), list[Any](), Random(0)
    for number, task in enumerate(chosen[: min(len(chosen), environments)]):
        share = len(range(number, environments, min(len(chosen), environments)))
        sessions += await bench.open(task, share)
    states = [await session.reset() for session in sessions]
    for _ in range(3):
        states = [await session.step(rng.choice(state.admissible)) for session, state in zip(sessions, states, strict=True)]
    used = _memory(children_only=True)
    for session in sessions:
        await session.close()
    await bench.close()
    return used


def _memory(children_only: bool = False) -> float:
    """MiB of proportional set size."""
    own = psutil.Process()
    processes = own.children(recursive=True) if children_only else [own]
    return sum(process.memory_full_info().pss for process in processes) / 2**20


BENCHMARKS = {"webshop": webshop, "alfworld": alfworld}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", choices=[*BENCHMARKS, []], default=[], metavar="BENCHMARK")
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--catalogue", default="auto", help="of WebShop: auto, small, full or generated")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    rows = []
    for name in options.benchmarks or BENCHMARKS:
        for environments in options.environments:
            # A process of its own per row, so that nothing is warm and memory is the row's alone; not a daemon: it has children.
            with multiprocessing.get_context("spawn").Manager() as manager:
                found = manager.list()
                process = multiprocessing.get_context("spawn").Process(
                    target=_measure, args=(name, environments, options.steps, options.catalogue, found)
                )
                process.start()
                process.join()
                rows += list(found)
    table = Table("benchmark", "environments", "steps/s per core", "reset ms", "memory MiB", "searches/s", title="environments")
    for row in rows:
        searches = "" if row.searches_per_s is None else f"{row.searches_per_s:,.0f}"
        table.add_row(row.benchmark, str(row.environments), f"{row.steps_per_s:,.0f}", f"{row.reset_ms:.2f}", f"{row.memory_mib:.0f}", searches)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _measure(name: str, environments: int, steps: int, catalogue: str, found: Any) -> None:
    found.append(BENCHMARKS[name](environments, steps, catalogue))


if __name__ == "__main__":
    main()
