"""Exact match of players that need no language model, on a panel of search QA: what a trained policy has to
beat.

    python benchmarks/search_baseline.py --panel test [--data mini] [--index FOLDER]

- copy: searches the question once and copies a span (paw_hpc/envs/search/baseline.py), played through the
  benchmark's own sessions;
- title: answers with the best passage's title;
- within reach: share of questions with a golden answer in the passages of that one search, the bound of any
  player that reads only those.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paw_hpc.envs.base import Task
from paw_hpc.envs.search.baseline import copy_answer
from paw_hpc.envs.search.benchmark import SearchQA, make_retriever
from paw_hpc.envs.search.metrics import contains_answer
from paw_hpc.envs.search.protocol import Action
from paw_hpc.envs.search.questions import is_in_domain
from paw_hpc.envs.search.retriever import DENSE_META
from paw_hpc.evaluation.statistics import success_interval
from paw_hpc.recipe import EnvSection, SearchSection

PLAYERS = ("copy", "title")


async def judge(
    benchmark: SearchQA, tasks: list[Task], env: EnvSection
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """player -> set -> (exact match, F1) of each question; `within reach` has no F1."""
    results: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: defaultdict(list) for name in (*PLAYERS, "within reach")
    }
    retriever = make_retriever(env)
    found = retriever.search([benchmark.question(task).question for task in tasks], env.search.topk)
    for task, hits in zip(tasks, found, strict=True):
        question, passages = benchmark.question(task), [hit.passage for hit in hits]
        answers = {
            "copy": copy_answer(question.question, passages),
            "title": passages[0].title if passages else "",
        }
        for name, session in zip(PLAYERS, await benchmark.open(task, len(PLAYERS)), strict=True):
            await session.step(str(Action("search", question.question)))
            end = await session.step(
                str(Action("answer", " ".join(answers[name].split()))) if answers[name] else ""
            )
            results[name][task.task_type].append((float(end.success), end.score))
        reach = any(contains_answer(passage.contents, question.answers) for passage in passages)
        results["within reach"][task.task_type].append((float(reach), 0.0))
    retriever.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--panel", default="test")
    parser.add_argument("--data", default="auto", choices=["auto", "official", "mini", "generated"])
    parser.add_argument("--index", help="folder made by `paw data search build`")
    arguments = parser.parse_args()
    kind = "dense" if arguments.index and (Path(arguments.index) / DENSE_META).is_file() else "bm25"
    env = EnvSection(
        name="search",
        max_steps=4,
        history=4,
        search=SearchSection(data=arguments.data, index=arguments.index, retriever=kind),
    )
    asyncio.run(report(env, arguments.panel))


async def report(env: EnvSection, panel_name: str) -> None:
    benchmark = SearchQA(env)
    panel = benchmark.panel(panel_name)
    results = await judge(benchmark, list(panel.tasks), env)
    await benchmark.close()
    table = Table(title=f"{panel.name}, {benchmark.source}")
    for column in ("set", "questions", "copy EM %", "copy F1 %", "title EM %", "within reach %"):
        table.add_column(column, justify="left" if column == "set" else "right")
    sets = list(results["copy"])
    for name in sets:
        table.add_row(f"{name}{'*' if is_in_domain(name) else ''}", *_row(results, [name]))
    table.add_row("all", *_row(results, sets))
    means = [
        sum(sum(v[i] for v in results[player][s]) / len(results[player][s]) for s in sets) / len(sets)
        for player, i in _COLUMNS
    ]
    table.add_row("mean of sets", "", *(f"{100 * value:.1f}" for value in means))
    Console(width=150).print(table)
    print("* in domain. Brackets: 95 % interval over questions.")


_COLUMNS = (("copy", 0), ("copy", 1), ("title", 0), ("within reach", 0))


def _row(results: dict[str, dict[str, list[tuple[float, float]]]], sets: list[str]) -> list[str]:
    cells = [str(sum(len(results["copy"][name]) for name in sets))]
    for player, measure in _COLUMNS:
        values = [value[measure] for name in sets for value in results[player][name]]
        cell = f"{100 * sum(values) / len(values):.1f}"
        if measure == 0:
            low, high = success_interval([bool(v) for v in values], list(range(len(values))))
            cell += f" [{100 * low:.1f}, {100 * high:.1f}]"
        cells.append(cell)
    return cells


if __name__ == "__main__":
    main()
