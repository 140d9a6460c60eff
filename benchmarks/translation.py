"""Is the fast translation of ALFWorld's games Fast Downward's, character for character, and how fast is it?

    python benchmarks/translation.py [--games 100] [--split train] [--source auto]

Every game is translated by both, in turns, in one process; milliseconds of CPU time. Exits with 1 where a
text differs or a game was left to Fast Downward.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import fast_downward

from paw_hpc.envs.alfworld import fast_translation, games


def timed(translate: Callable[[str, str], Any], domain: str, problem: str) -> tuple[float, Any]:
    """(milliseconds, result)"""
    gc.collect()
    gc.disable()  # as where games are reset
    started = time.process_time()
    made = translate(domain, problem)
    spent = time.process_time() - started
    gc.enable()
    return 1e3 * spent, made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=100, help="evenly from the split; 0: all")
    parser.add_argument("--split", default="train")
    parser.add_argument("--source", default="auto", choices=["auto", "official", "generated"])
    args = parser.parse_args()
    tasks = games.tasks(args.split, args.source)
    if args.games:
        tasks = tasks[:: max(1, len(tasks) // args.games)][: args.games]
    ours: list[float] = []
    stock: list[float] = []
    wrong = []
    for number, task in enumerate(tasks):
        game = games.load_game(task)
        texts = game["pddl_domain"], game["pddl_problem"]
        if number == 0:
            fast_translation.translated(*texts), fast_downward.pddl2sas(*texts)  # imports
        spent, made = timed(fast_translation.translated, *texts)
        ours.append(spent)
        spent, expected = timed(fast_downward.pddl2sas, *texts)
        stock.append(spent)
        if made is None or made[1] != expected[1]:
            wrong.append(task.task_id)
    for name, times in (("this package", ours), ("Fast Downward", stock)):
        print(
            f"{name}: mean {statistics.mean(times):.0f} ms, median {statistics.median(times):.0f}, "
            f"{min(times):.0f} to {max(times):.0f}"
        )
    ratio = sum(ours) / sum(stock)
    print(f"{len(tasks)} games of {args.split}, {games.source_name(args.source)}: {ratio:.3f} of the time")
    print(f"texts that differ: {len(wrong)}" + "".join(f"\n  {name}" for name in wrong[:10]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
