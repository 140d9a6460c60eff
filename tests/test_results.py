"""Evaluations as files: what is written is read back, and the format is the documented one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from paw_hpc.evaluation.results import (
    EvaluatedEpisode,
    EvaluationResult,
    Prediction,
    TypeResult,
    read_evaluations,
    write_evaluation,
)
from paw_hpc.evaluation.statistics import cluster_interval, wilson_interval
from paw_hpc.system.errors import DataError

WON = {"a": (True, False), "b": (True, True), "c": (False, False)}


def result(label: str = "valid_seen-u30", update: int = 30) -> EvaluationResult:
    episodes = [
        EvaluatedEpisode(
            game, "heat" if game == "c" else "pick", repeat, 11, won, 1.0 * won, 12, 3, 10.0 * won
        )
        for game, outcomes in WON.items()
        for repeat, won in enumerate(outcomes)
    ]
    return EvaluationResult.of_episodes(
        episodes,
        label=label,
        panel="valid_seen:3@1",
        panel_checksum="c0ffee",
        temperature=0.4,
        update=update,
        seconds=3.5,
        observation_ce=1.25,
        observation_tokens=900,
        observation_ce_interval=(1.1, 1.4),
        environment_failures=1,
    )


def test_rates_and_intervals_follow_from_the_episodes() -> None:
    r = result()
    assert (r.games, r.repeats, r.success) == (3, 2, 0.5)
    assert r.interval == cluster_interval([1, 0, 1, 1, 0, 0], list("aabbcc"))
    assert r.per_task_type["heat"] == TypeResult(1, 0.0, wilson_interval(0, 1))
    assert r.per_task_type["pick"].success == 0.75
    with pytest.raises(ValueError, match="no episode"):
        EvaluationResult.of_episodes(
            [], label="x", panel="p", panel_checksum="c", temperature=0, update=0, seconds=0
        )


def test_what_is_written_is_read_back_in_order_of_updates(tmp_path: Path) -> None:
    predicted = Prediction("own", "all", 4, 60, 0.5, (0.4, 0.6), 0.9, 0, None, None, None)
    late, early = (
        dataclasses.replace(result(), predictions=(predicted,), protocol="15 steps"),
        result("valid_seen-u0", 0),
    )
    for r in (late, early):
        write_evaluation(tmp_path, r)
    assert read_evaluations(tmp_path) == [early, late]
    assert read_evaluations(tmp_path / "nowhere") == []


def test_the_files_have_the_documented_format(tmp_path: Path) -> None:
    summary = write_evaluation(tmp_path, result())
    assert summary == tmp_path / "evaluations/valid_seen-u30.json"
    content = json.loads(summary.read_text())
    assert content.keys() == {
        *(
            "label",
            "panel",
            "panel_checksum",
            "temperature",
            "repeats",
            "update",
            "games",
            "success",
            "interval",
            "per_task_type",
        ),
        *(
            "observation_ce",
            "observation_tokens",
            "observation_ce_interval",
            "seconds",
            "environment_failures",
            "noise",
        ),
        *("predictions", "protocol", "judged_by"),
    }
    lines = [json.loads(line) for line in summary.with_suffix(".jsonl").read_text().splitlines()]
    assert lines[0] == {
        "task_id": "a",
        "task_type": "pick",
        "repeat": 0,
        "seed": 11,
        "success": True,
        "score": 1.0,
        "steps": 12,
        "invalid": 3,
        "return": 10.0,
    }
    assert len(lines) == 6


def test_a_label_becomes_a_safe_file_name(tmp_path: Path) -> None:
    r = result("valid_seen:40@1 ../x")
    assert write_evaluation(tmp_path, r).parent == tmp_path / "evaluations"
    assert read_evaluations(tmp_path) == [r]


def test_the_same_label_replaces_and_an_evaluation_cut_short_is_not_read(tmp_path: Path) -> None:
    write_evaluation(tmp_path, result())
    write_evaluation(tmp_path, result(update=31))
    assert [r.update for r in read_evaluations(tmp_path)] == [31]
    (tmp_path / "evaluations/valid_seen-u30.json").unlink()
    assert read_evaluations(tmp_path) == []


@pytest.mark.parametrize("damage", ["{", "{}", '{"label": 3}'])
def test_a_damaged_summary_is_named(tmp_path: Path, damage: str) -> None:
    summary = write_evaluation(tmp_path, result())
    summary.write_text(damage)
    with pytest.raises(DataError, match=r"valid_seen-u30\.json: not an evaluation"):
        read_evaluations(tmp_path)


def test_a_summary_without_its_episodes_is_named(tmp_path: Path) -> None:
    summary = write_evaluation(tmp_path, result())
    summary.with_suffix(".jsonl").unlink()
    with pytest.raises(DataError, match=r"valid_seen-u30\.json"):
        read_evaluations(tmp_path)
