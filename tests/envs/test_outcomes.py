"""Files of outcomes: what is written is read again, and what is wrong with one is said in a line. How they
are judged is in tests/report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs import Environments, Outcome, Panel, Task, read_outcomes, write_outcomes
from paw_hpc.evaluation.results import EvaluatedEpisode, EvaluationResult, write_evaluation
from paw_hpc.system.errors import DataError, StorageError

ROOT = Path(__file__).resolve().parents[2]
PANEL = Panel("test", tuple(Task(f"g{n}", "odd" if n % 2 else "even", "") for n in range(4)), "abc")


def outcome(task: int, repeat: int = 0, **changes: Any) -> Outcome:
    whole = Outcome(
        f"g{task}", "odd" if task % 2 else "even", repeat, 7, task < 3, 0.25 * task, 9, 1, 10.0 * (task < 3)
    )
    return dataclasses.replace(whole, **changes)


EPISODES = [outcome(task, repeat) for task in range(4) for repeat in range(2)]
ABOUT: dict[str, Any] = {
    "player": "theirs",
    "benchmark": "webshop",
    "panel": PANEL,
    "temperature": 0.4,
    "rules": "15 steps",
    "seed": 3,
    "update": 100,
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = write_outcomes(tmp_path / "new" / "a.jsonl", EPISODES, **ABOUT, environment_failures=2)
    found = read_outcomes(path)
    assert found.episodes == tuple(EPISODES)
    assert (found.player, found.benchmark, found.panel, found.panel_checksum, found.tasks) == (
        "theirs",
        "webshop",
        "test",
        "abc",
        4,
    )
    assert (found.seed, found.update, found.temperature, found.rules, found.environment_failures) == (
        3,
        100,
        0.4,
        "15 steps",
        2,
    )


def test_the_documented_form_is_the_written_one(tmp_path: Path) -> None:
    """Programs without this package write it by what the module says."""
    about, first, *_ = map(
        json.loads, write_outcomes(tmp_path / "a.jsonl", EPISODES, **ABOUT).read_text().splitlines()
    )
    from paw_hpc.envs import outcomes

    assert outcomes.__doc__ is not None
    shown = outcomes.__doc__.split("\n\n")[1].replace("\n", " ").replace("}", "}\n").splitlines()
    assert [json.loads(one).keys() for one in shown] == [about.keys(), first.keys()]


def test_lines_are_those_of_an_evaluation(tmp_path: Path) -> None:
    written = write_outcomes(tmp_path / "a.jsonl", EPISODES, **ABOUT).read_text().splitlines()[1:]
    result = EvaluationResult.of_episodes(
        [EvaluatedEpisode(**dataclasses.asdict(episode)) for episode in EPISODES],
        label="a",
        panel="test",
        panel_checksum="abc",
        temperature=0.4,
        update=0,
        seconds=1.0,
    )
    evaluated = write_evaluation(tmp_path / "run", result).with_suffix(".jsonl").read_text().splitlines()
    assert list(map(json.loads, written)) == list(map(json.loads, evaluated))


def test_a_panel_that_was_played_is_written(tmp_path: Path) -> None:
    numbers = str(ROOT / "examples" / "number_game" / "number_game.py")
    with Environments("number_game", plugins=[numbers], max_steps=3) as environments:
        panel = environments.panel()
        batch = environments.open_batch(panel.tasks, members=2)
        while not batch.done:
            batch.step([None if episode.done else "10" for episode in batch.episodes])
        path = write_outcomes(
            tmp_path / "a.jsonl",
            [e.outcome() for e in batch.episodes],
            player="ten",
            benchmark="number_game",
            panel=panel,
            temperature=0,
        )
    found = read_outcomes(path)
    assert (
        len(found.episodes) == 128 and found.tasks == 64 and 0 < sum(e.success for e in found.episodes) < 128
    )


def _say(key: str, value: Any, line: int = 0) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        row = json.loads(lines[line]) | {key: value}
        return [*lines[:line], json.dumps(row), *lines[line + 1 :]]

    return change


def _without(key: str, line: int) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        row = json.loads(lines[line])
        del row[key]
        return [*lines[:line], json.dumps(row), *lines[line + 1 :]]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "line 1: no JSON object"),
        (
            lambda lines: lines[1:],
            "line 1: no file of outcomes: it begins with an object whose format is 'paw-outcomes-1'",
        ),
        (lambda lines: lines[:1], "no episode in it"),
        (lambda lines: [*lines, lines[1]], "line 10: g0, repeat 0: line 2 has it; count repeats from 0"),
        (
            lambda lines: lines[:7],
            "episodes of 3 tasks (and 0 that the environment broke), where the panel has 4",
        ),
        (lambda lines: [*lines[:3], "{", *lines[3:]], "line 4: no JSON object"),
        (lambda lines: [*lines[:3], "[]", *lines[3:]], "line 4: no JSON object (no object)"),
        (lambda lines: [*lines[:3], "", *lines[3:]], "line 4: no JSON object"),
        (_say("format", "paw-outcomes-2"), "line 1: no file of outcomes"),
        (_say("player", " "), "line 1: player is empty"),
        (_say("player", "a, b"), "line 1: player is 'a, b'; a name has letters, digits and . _ + -"),
        (_say("temperature", "warm"), "line 1: temperature: Input should be a valid number"),
        (_say("temperature", -1), "line 1: temperature is -1.0, and cannot be"),
        (_say("tasks", 3), "episodes of 4 tasks (and 0 that the environment broke), where the panel has 3"),
        (_say("score", 1.5, 4), "line 5: g1: score is 1.5, and is in [0, 1]"),
        (_say("score", float("nan"), 4), "line 5: g1: score is nan"),
        (_say("return", float("inf"), 4), "line 5: g1: return is inf"),
        (_say("return", None, 4), "line 5: return: Input should be a valid number"),
        (_without("return", 4), "line 5: return: Input should be a valid number"),
        (_without("steps", 4), "line 5: steps: Field required"),
        (_say("success", "perhaps", 4), "line 5: success: Input should be a valid boolean"),
        (_say("invalid", 10, 4), "line 5: g1: 10 invalid ones among 9 steps cannot be"),
        (_say("repeat", -1, 4), "line 5: g1: repeat is -1, and is counted from 0"),
        (_say("task_type", "even", 4), "line 5: g1 is of type even, and was odd"),
        (_say("task_id", "\ud800", 4), "line 5: no JSON object (task_id holds half a character"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    change: Callable[[list[str]], list[str]], said: str, tmp_path: Path
) -> None:
    path = write_outcomes(tmp_path / "a.jsonl", EPISODES, **ABOUT)
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(DataError) as refused:
        read_outcomes(path)
    assert (
        said in str(refused.value)
        and str(refused.value).startswith(f"{path}: ")
        and "\n" not in str(refused.value)
    )


@pytest.mark.parametrize(
    ("episodes", "more", "said"),
    [
        ([], {}, "no episode in it"),
        (EPISODES[:6], {}, "episodes of 3 tasks (and 0 that the environment broke), where the panel has 4"),
        (EPISODES + EPISODES[:1], {}, "line 10: g0, repeat 0: line 2 has it"),
        ([*EPISODES, dataclasses.replace(EPISODES[0], task_id="g9")], {}, "g9 is no task of panel test"),
        (EPISODES, {"temperature": float("nan")}, "temperature is nan, and cannot be"),
        ([*EPISODES[1:], outcome(0, score=2.0)], {}, "g0: score is 2.0"),
    ],
)
def test_what_cannot_be_is_not_written(
    episodes: list[Outcome], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        write_outcomes(tmp_path / "a.jsonl", episodes, **ABOUT | more)
    assert said in str(refused.value) and not (tmp_path / "a.jsonl").exists()


def test_a_task_that_the_environment_broke_may_be_missing(tmp_path: Path) -> None:
    path = write_outcomes(tmp_path / "a.jsonl", EPISODES[:6], **ABOUT, environment_failures=2)
    assert len(read_outcomes(path).episodes) == 6


def test_a_file_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        read_outcomes(tmp_path / "nowhere.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder must be"):
        write_outcomes(tmp_path / "file" / "a.jsonl", EPISODES, **ABOUT)
