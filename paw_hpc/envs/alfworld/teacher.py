"""A scripted player of ALFWorld that knows the walkthrough: demonstrations from which a small policy is
cloned, and its tokenizer.

The expert plays training games (with detours, so that the policy also sees states an expert avoids). Its play
is cached by content; no validation game is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from paw_hpc.envs.alfworld import games
from paw_hpc.envs.alfworld.benchmark import Alfworld
from paw_hpc.envs.alfworld.prompt import NOTHING, split_intro
from paw_hpc.envs.alfworld.rooms import ROOMS
from paw_hpc.envs.alfworld.tokenizer import alfworld_texts, save_tokenizer
from paw_hpc.envs.base import Demonstration, EnvironmentState, Lessons, Task, Taught
from paw_hpc.envs.panels import sub_panel
from paw_hpc.recipe import Recipe, WarmStartSection
from paw_hpc.system.data_paths import atomic_file, cache_dir
from paw_hpc.system.seeding import derive_seed, generator

HARVEST_VERSION = 3
"""Part of the cache key: raise it when the expert or the transcript format changes."""
_CHUNK_GAMES = 10
_IDLE = ("look", "inventory", "examine ")


def lessons(recipe: Recipe, console: Console | None = None) -> Lessons:
    """What the expert teaches with the recipe's prompt (section `warm_start`)."""
    transcripts = harvest(recipe, console)
    return Lessons(
        demonstrations(transcripts, recipe), lambda folder: save_tokenizer(_texts(transcripts), folder)
    )


def harvest(recipe: Recipe, console: Console | None = None) -> list[dict[str, Any]]:
    """Expert episodes on training games, one dict each: task_id, task_type, won, steps of {observation,
    admissible, label, played}.

    Cached under a key of games, settings and HARVEST_VERSION.
    """
    section = recipe.warm_start
    listed = games.tasks("train", recipe.env.games, recipe.env.task_types)
    tasks = sub_panel(listed, min(section.games, len(listed)), seed=recipe.seed, name="warm_start.games")
    key = [
        HARVEST_VERSION,
        games.checksum(tasks),
        section.hints,
        section.detour,
        section.habit,
        section.max_steps,
        recipe.seed,
    ]
    path = cache_dir("warm-start") / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.jsonl.gz"
    if not path.exists():
        chunks = [tasks[i : i + _CHUNK_GAMES] for i in range(0, len(tasks), _CHUNK_GAMES)]
        context = multiprocessing.get_context("spawn")
        # TextWorld grows with every reset: renew the processes
        with context.Pool(recipe.env.workers, maxtasksperchild=10) as pool:
            results = pool.imap(functools.partial(_play_games, recipe=recipe), chunks)
            played = [
                line
                for lines in track(results, "expert play", len(chunks), console=console)
                for line in lines
            ]
        with atomic_file(path) as file, gzip.open(file, "wt", encoding="utf-8") as text:
            text.writelines(line + "\n" for line in played)
    with gzip.open(path, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


def _play_games(tasks: Sequence[Task], recipe: Recipe) -> list[str]:
    # The engine is imported where it runs: TextWorld's translator writes into sys.argv and sys.stdout of its
    # process.
    from paw_hpc.envs.alfworld.engine import GameEngine

    lines = []
    for task in tasks:
        game = games.load_game(task)
        engine = GameEngine(game)
        for member, hint in enumerate(recipe.warm_start.hints):
            detour = recipe.warm_start.detour if member % 2 == 0 else 0.0
            rng = np.random.default_rng(derive_seed(recipe.seed, f"expert/{task.task_id}", member))
            lines.append(
                json.dumps(_play(engine, task, game["walkthrough"], hint, detour, recipe.warm_start, rng))
            )
    return lines


def _play(
    engine: Any,
    task: Task,
    walkthrough: Sequence[str],
    hint: float,
    detour: float,
    section: WarmStartSection,
    rng: np.random.Generator,
) -> dict[str, Any]:
    from paw_hpc.envs.alfworld.expert import Expert

    observation, admissible, won = engine.reset()
    expert, steps = Expert(split_intro(observation)[1], walkthrough, hint, rng), list[dict[str, Any]]()
    while not won and len(steps) < section.max_steps:
        label = expert.act(admissible)
        if section.habit and rng.random() < section.habit:
            idle = [command for command in admissible if command.startswith(_IDLE)]
            label = idle[int(rng.integers(len(idle)))]
        played = label if rng.random() >= detour else admissible[int(rng.integers(len(admissible)))]
        steps.append({"observation": observation, "admissible": admissible, "label": label, "played": played})
        observation, admissible, won = engine.step(played)
        expert.observe(played, observation.strip() != NOTHING)
    return {"task_id": task.task_id, "task_type": task.task_type, "won": won, "steps": steps}


def _texts(transcripts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Every word that a player of these games meets, and the prompt's own."""
    yield "task: did: saw: > now: start can: ; ,"
    yield from alfworld_texts()
    for room in ROOMS.values():  # generated games too are played with this tokenizer
        yield " ".join([*room.receptacles, *room.objects, *room.fixtures])
    for transcript in transcripts:
        for step in transcript["steps"]:
            yield step["observation"]
            yield " ".join(step["admissible"])


def demonstrations(transcripts: Sequence[dict[str, Any]], recipe: Recipe) -> Iterator[Demonstration]:
    """The expert's command in every state of its episodes. A share `warm_start.fumble` of them is preceded by
    a command that did nothing."""
    benchmark = Alfworld(recipe.env)
    said = sorted({step["label"] for transcript in transcripts for step in transcript["steps"]})
    for number, transcript in enumerate(transcripts):
        rng = generator(recipe.seed, "fumble", number)
        task = Task(transcript["task_id"], transcript["task_type"], "")
        view = benchmark.view(task, derive_seed(recipe.seed, "clone-view", number))
        taught, before = Taught(view, recipe.env.conversation), None
        for step in transcript["steps"]:
            state = EnvironmentState(step["observation"], tuple(step["admissible"]))
            if before is None:
                view.start(state)
            else:
                taught.observe(view.answer(before), before, state)
            wrong = said[int(rng.integers(len(said)))]
            if rng.random() < recipe.warm_start.fumble and wrong not in state.admissible:
                taught.observe(view.answer(wrong), wrong, dataclasses.replace(state, observation=NOTHING))
            before = step["played"]
            yield taught.demonstration(view.answer(step["label"]))
