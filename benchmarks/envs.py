"""Steps per second, reset time and memory of the environments, 1 and 128 of them at once.

    python benchmarks/envs.py [webshop] [alfworld] [search] [--environments 1 128] [--steps 4000] [--catalogue
    auto] [--json FILE] [--out FILE]

Each row is measured in a process of its own. Speeds are per second of CPU time of one core, so that they mean
the same on a busy machine; memory is the proportional set size (what the row's processes use, pages that they
share counted once), imports included.

WebShop is played by the random player of `envs/webshop/agents.py`: every seventh step or so is a search of
one to three words, seldom asked before. ALFWorld is played by random admissible commands, four games; its
reset is the mean over twelve games not seen before, file and grammar included, which the members of a group
share, and "again" that of games whose translation is kept; both in a process that has reset another, as a
worker has. Memory is that of the worker and of one process per episode. Search QA is played by one that
searches for the question's own words, one word less in each turn, and answers in the last; its queries go to
BM25 as many at once as there are episodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import mean
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
    reset_again_ms: float | None = None


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
    from paw_hpc.envs.alfworld import games, translations
    from paw_hpc.envs.alfworld.engine import GameEngine

    listed = games.tasks("train")
    chosen = [listed[i] for i in Random(0).sample(range(len(listed)), 12)]
    memory = asyncio.run(_alfworld_memory(chosen, environments))
    moves, rng = list[float](), Random(0)

    def reset(task: Any) -> tuple[float, GameEngine, tuple[str, ...]]:
        start = time.process_time()
        engine = GameEngine(games.load_game(task))
        _, admissible, _ = engine.reset()
        return time.process_time() - start, engine, admissible

    with tempfile.TemporaryDirectory() as empty:
        translations.folder = lambda: Path(empty)  # nothing is kept from an earlier run
        warm = reset(listed[0])[1]
        warm.warm()
        del warm
        new = [reset(task)[0] for task in chosen]
        again = [reset(task)[0] for task in chosen for _ in range(5)]
        engines = [reset(task)[1:] for task in chosen[:4]]
    for engine, admissible in engines:
        start = time.process_time()
        taken = 0
        while taken < max(1, min(steps, 400) // len(engines)):
            _, admissible, won = engine.step(rng.choice(admissible))
            taken += 1
            if won:
                break
        moves.append((time.process_time() - start) / taken)
    name, per_s = f"ALFWorld ({games.source_name()})", len(moves) / sum(moves)
    return Row(name, environments, per_s, 1000 * mean(new), memory, reset_again_ms=1000 * mean(again))


def search(environments: int, steps: int, catalogue: str) -> Row:
    """Whole episodes, as many at once as there are environments; without the retriever's start, which is paid
    once per process."""
    return asyncio.run(_search(environments, steps))


async def _search(environments: int, steps: int) -> Row:
    from paw_hpc.envs.search.benchmark import SearchQA

    env = EnvSection(name="search", max_steps=4)
    bench = SearchQA(env)
    tasks, rng = bench.tasks("train"), Random(0)

    async def fresh() -> tuple[Any, list[str]]:
        task = rng.choice(tasks)
        [session] = await bench.open(task, 1)
        await session.reset()
        return session, bench.question(task).question.split()

    async def episode() -> None:
        session, words = await fresh()
        for turn in range(env.max_steps - 1):
            state = await session.step(f"<search>{' '.join(words[turn:] or words)}</search>")
        state = await session.step(f"<answer>{state.observation[:20]}</answer>")
        assert state.done
        await session.close()

    await episode()  # the retriever starts
    start = time.process_time()
    for _ in range(environments):
        await fresh()
    reset_s = (time.process_time() - start) / environments
    played = 0
    start = time.process_time()
    while played * env.max_steps < steps:
        await asyncio.gather(*(episode() for _ in range(environments)))
        played += environments
    seconds = time.process_time() - start - played * reset_s
    queries = [bench.question(task).question for task in rng.sample(tasks, min(len(tasks), 1000))]
    desk = await bench._start()
    start = time.process_time()
    await asyncio.gather(*(desk.search(query, env.search.topk) for query in queries))
    searches = len(queries) / (time.process_time() - start)
    row = Row(
        f"search QA ({bench.source.split(' (')[0]})",
        environments,
        played * env.max_steps / seconds,
        1000 * reset_s,
        _memory(),
        searches,
    )
    await bench.close()
    return row


async def _alfworld_memory(chosen: list[Any], environments: int) -> float:
    from paw_hpc.envs.alfworld.benchmark import Alfworld

    bench, sessions, rng = Alfworld(EnvSection(workers=1)), list[Any](), Random(0)
    for number, task in enumerate(chosen[: min(len(chosen), environments)]):
        share = len(range(number, environments, min(len(chosen), environments)))
        sessions += await bench.open(task, share)
    states = [await session.reset() for session in sessions]
    for _ in range(3):
        states = [
            await session.step(rng.choice(state.admissible))
            for session, state in zip(sessions, states, strict=True)
        ]
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


HEAD = ("benchmark", "environments", "steps/s per core", "reset ms", "again", "memory MiB", "searches/s")
BENCHMARKS = {"webshop": webshop, "alfworld": alfworld, "search": search}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", choices=[*BENCHMARKS, []], default=[], metavar="BENCHMARK")
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--catalogue", default="auto", help="of WebShop: auto, small, full or generated")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--out", type=Path, help="also write the table here, with versions")
    parser.add_argument(
        "--interfaces",
        type=int,
        nargs="?",
        const=64,
        metavar="EPISODES",
        help="only steps/s through each interface (64)",
    )
    options = parser.parse_args()
    if options.interfaces:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from benchmarks.envs_interfaces import INTERFACES, measure

        print(f"| steps/s per core | {' | '.join(INTERFACES)} |\n|---|{'---:|' * len(INTERFACES)}")
        for cells in measure(options.benchmarks or list(BENCHMARKS), options.interfaces):
            print(f"| {' | '.join(cells)} |", flush=True)
        return
    rows = []
    for name in options.benchmarks or BENCHMARKS:
        for environments in options.environments:
            # A process of its own per row, so that nothing is warm and memory is the row's alone; not a
            # daemon: it has children.
            with multiprocessing.get_context("spawn").Manager() as manager:
                found = manager.list()
                process = multiprocessing.get_context("spawn").Process(
                    target=_measure, args=(name, environments, options.steps, options.catalogue, found)
                )
                process.start()
                process.join()
                rows += list(found)
    cells = [
        [
            row.benchmark,
            str(row.environments),
            f"{row.steps_per_s:,.0f}",
            f"{row.reset_ms:.2f}",
            "" if row.reset_again_ms is None else f"{row.reset_again_ms:.2f}",
            f"{row.memory_mib:,.0f}",
            "" if row.searches_per_s is None else f"{row.searches_per_s:,.0f}",
        ]
        for row in rows
    ]
    table = Table(*HEAD, title="environments")
    for each in cells:
        table.add_row(*each)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.out:
        versions = ", ".join(
            f"{name} {version(name)}" for name in ("textworld", "alfworld", "bm25s", "numpy")
        )
        lines = [
            f"# Environments, {time.strftime('%Y-%m-%d')}, {platform.machine()}, Python "
            f"{platform.python_version()}, {versions}",
            "",
            f"`python benchmarks/envs.py {' '.join(sys.argv[1:])}`: per second of CPU time of one core; "
            "memory with Python and all imports.",
            "",
            f"| {' | '.join(HEAD)} |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(f"| {' | '.join(each)} |" for each in cells),
        ]
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measure(name: str, environments: int, steps: int, catalogue: str, found: Any) -> None:
    found.append(BENCHMARKS[name](environments, steps, catalogue))


if __name__ == "__main__":
    main()
