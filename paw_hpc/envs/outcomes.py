"""How episodes ended, as a file that `paw report` judges, whoever played them: JSON lines, one of the whole,
then one for each episode.

    {"format": "paw-outcomes-1", "player": "trl", "benchmark": "alfworld", "panel": "valid_seen",
     "panel_checksum": "f04d...", "tasks": 140, "seed": 0, "update": 100, "temperature": 0.4, "rules": "50
     steps", "environment_failures": 0}
    {"task_id": "valid_seen/...", "task_type": "pick_and_place_simple", "repeat": 0, "seed": 123, "success":
     true, "score": 1.0, "steps": 9, "invalid": 0, "return": 10.0}

(Each is one line.) The lines of episodes are those of an evaluation's LABEL.jsonl in a run directory. One
file holds one policy on one panel; several seeds of one training are several files of one `player`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paw_hpc.envs.base import Panel
from paw_hpc.recipe.experiment import NAME
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors, write_atomically
from paw_hpc.system.text import require_text

FORMAT = "paw-outcomes-1"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One episode."""

    task_id: str
    task_type: str
    repeat: int
    """Which of the episodes of this task, from 0."""
    seed: int
    """Of this episode; only told, never counted with."""
    success: bool
    score: float
    """The benchmark's own, in [0, 1]; where it has none, 1 for success and 0 for failure."""
    steps: int
    invalid: int
    """Steps whose action was malformed or not admissible."""
    episode_return: float
    """Undiscounted, without penalties; `return` in the file."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One policy on one panel."""

    player: str
    """Who played, as the report calls it (letters, digits and . _ + -); files of one player are its seeds."""
    benchmark: str
    panel: str
    """The whole name of the panel (`Panel.name`), with its checksum and how many tasks it has."""
    panel_checksum: str
    tasks: int
    seed: int
    """Of the training that made the policy."""
    update: int
    """Updates that the policy has had; 0: not trained."""
    temperature: float
    rules: str
    """How episodes were played beyond panel and temperature, in words: outcomes are compared only where it is
    the same."""
    environment_failures: int
    """Episodes that the environment broke; they are in no rate, and no line tells of them."""
    episodes: tuple[Outcome, ...] = ()


def write_outcomes(
    path: str | Path,
    episodes: Iterable[Outcome],
    *,
    player: str,
    benchmark: str,
    panel: Panel,
    temperature: float,
    rules: str = "",
    seed: int = 0,
    update: int = 0,
    environment_failures: int = 0,
) -> Path:
    """Write a file of outcomes, whole or not at all. Returns its path.

    Args:
        episodes: `episode.outcome()` of every episode of the panel that the environment did not break.
        panel: what was played, all of it.
        others: see `Outcomes`.

    Raises:
        DataError: what is no panel's outcomes: none, a task twice with one `repeat`, a task that is not of
            the panel or was left out, a number out of bounds.
        StorageError: full disk.
    """
    path = Path(path)
    whole = Outcomes(
        player=player,
        benchmark=benchmark,
        panel=panel.name,
        panel_checksum=panel.checksum,
        tasks=len(panel.tasks),
        seed=seed,
        update=update,
        temperature=float(temperature),
        rules=rules,
        environment_failures=environment_failures,
        episodes=tuple(episodes),
    )
    known = {task.task_id for task in panel.tasks}
    if strange := next((e.task_id for e in whole.episodes if e.task_id not in known), None):
        raise DataError(
            f"{path}: {strange} is no task of panel {panel.name}; write each panel's outcomes into a file "
            "of its own"
        )
    _check(path, whole)
    about = {"format": FORMAT} | asdict(replace(whole, episodes=()))
    del about["episodes"]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in (about, *map(_line, whole.episodes))))
    return path


def read_outcomes(path: str | Path) -> Outcomes:
    """The content of a file of outcomes.

    Raises:
        DataError: what is wrong with it, and in which line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a file that write_outcomes wrote"
        ) from None
    about = _read(path, 1, lines[0] if lines else b"")
    if about.get("format") != FORMAT:
        raise DataError(
            f"{path}: line 1: no file of outcomes: it begins with an object whose format is '{FORMAT}'"
        )
    episodes = [_read(path, number, line) for number, line in enumerate(lines[1:], 2)]
    for number, row in enumerate(episodes, 2):
        row["episode_return"] = row.pop("return", None)
        episodes[number - 2] = _as(path, number, Outcome, row)
    whole: Outcomes = _as(path, 1, Outcomes, about | {"episodes": ()})
    whole = replace(whole, episodes=tuple(episodes))
    _check(path, whole)
    return whole


def _line(episode: Outcome) -> dict[str, Any]:
    row = asdict(episode)
    row["return"] = row.pop("episode_return")
    return row


def _read(path: Path, number: int, line: bytes) -> Any:
    try:
        found = read_json(line)
        require_text(found)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise DataError(f"{path}: line {number}: no JSON object ({error})") from None
    return found


def _as(path: Path, number: int, kind: type[Any], row: Any) -> Any:
    try:
        return checked(kind, row)
    except ValueError as error:
        raise DataError(f"{path}: line {number}: {str(error).replace('episode_return', 'return')}") from None


def _check(path: Path, whole: Outcomes) -> None:
    """Raises DataError for what no panel's outcomes can be."""
    if empty := next(
        (name for name in ("player", "benchmark", "panel") if not getattr(whole, name).strip()), None
    ):
        raise DataError(f"{path}: line 1: {empty} is empty; say its name")
    if not re.fullmatch(NAME, whole.player):  # it becomes the name of an arm, as a recipe's
        raise DataError(
            f"{path}: line 1: player is {whole.player[:80]!a}; a name has letters, digits and . _ + -, and "
            "begins with one of the first two"
        )
    bounds = {
        name: getattr(whole, name) for name in ("update", "temperature", "environment_failures", "tasks")
    }
    if wrong := next(
        (name for name, value in bounds.items() if not (math.isfinite(value) and value >= 0)), None
    ):
        raise DataError(f"{path}: line 1: {wrong} is {bounds[wrong]}, and cannot be")
    if not whole.episodes:
        raise DataError(f"{path}: no episode in it; one line for each follows the first")
    first: dict[tuple[str, int], int] = {}
    types: dict[str, str] = {}
    for number, episode in enumerate(whole.episodes, 2):
        if fault := _fault(episode):
            raise DataError(f"{path}: line {number}: {episode.task_id}: {fault}")
        place = episode.task_id, episode.repeat
        if place in first:
            raise DataError(
                f"{path}: line {number}: {episode.task_id}, repeat {episode.repeat}: line {first[place]} "
                "has it; count repeats from 0"
            )
        first[place] = number
        if types.setdefault(episode.task_id, episode.task_type) != episode.task_type:
            raise DataError(
                f"{path}: line {number}: {episode.task_id} is of type {episode.task_type}, and was "
                f"{types[episode.task_id]}"
            )
    if not len(types) <= whole.tasks <= len(types) + whole.environment_failures:
        raise DataError(
            f"{path}: episodes of {len(types)} tasks (and {whole.environment_failures} that the "
            "environment broke), where the panel has "
            f"{whole.tasks}: a rate on a panel is over all of them; play the others, or a part by its "
            "name, such as PANEL:40@0"
        )


def _fault(episode: Outcome) -> str:
    if not (math.isfinite(episode.score) and 0 <= episode.score <= 1):
        return f"score is {episode.score}, and is in [0, 1]"
    if not math.isfinite(episode.episode_return):
        return f"return is {episode.episode_return}, and is a number"
    if not 0 <= episode.invalid <= episode.steps:
        return f"{episode.invalid} invalid ones among {episode.steps} steps cannot be"
    return f"repeat is {episode.repeat}, and is counted from 0" if episode.repeat < 0 else ""
