"""Episodes, steps and places as plain values, and as text."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.evaluation.episodes.copier import copied_tokens
from paw_hpc.evaluation.episodes.folder import EpisodeFolder, find, read
from paw_hpc.study.view.library import Library
from paw_hpc.study.view.terminal import clean
from tests.episodes import made
from tests.view.conftest import ATTACKS


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["episodes", *arguments])
    return done.exit_code, done.output


def test_summaries_are_those_of_the_rows(runs: list[Path]) -> None:
    rows = read(find(runs[0])[1].path).to_pylist()
    for e in Library(runs).file("paw", "update_000001").episodes:
        mine = [row for row in rows if (row["group"], row["member"]) == (e.group, e.member)]
        logp = [v for row in mine for v in row["observation_logp"] or ()]
        assert rows[e.first_row] is mine[0] and e.steps == len(mine)
        assert (e.invalid, e.selected) == (
            sum(not row["valid"] for row in mine),
            sum(row["selected"] for row in mine),
        )
        assert e.advantage == mine[0]["advantage"] and e.seed == str(mine[0]["seed"])
        assert e.surprise == (pytest.approx(-sum(logp) / len(logp), rel=1e-5) if logp else None)


def test_steps_read_from_any_place_of_a_large_file_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read in parts: parts that end within an episode change nothing."""
    whole = made.run_of(tmp_path / "whole", 1)
    monkeypatch.setattr("paw_hpc.evaluation.episodes.folder.ROW_GROUP", 3)
    parts = made.run_of(tmp_path / "parts", 1)
    one, other = (Library([run]).file(run.name, "update_000000") for run in (whole, parts))
    assert one.episodes == other.episodes
    assert [one.steps(e) for e in one.episodes] == [other.steps(e) for e in other.episodes]
    assert one.surprises == other.surprises and one.search("1") == other.search("1") != []


def test_a_step_as_it_is_shown(runs: list[Path]) -> None:
    kept = Library(runs).file("paw", "update_000000")
    rows = {
        (row["group"], row["member"], row["step"]): row for row in read(find(runs[0])[0].path).to_pylist()
    }
    for e in kept.episodes:
        for step in kept.steps(e):
            row = rows[e.group, e.member, step["step"]]
            assert (
                "".join(step["observation"]) == row["observation"]
                and "".join(step["response"]) == row["response"]
            )
            assert step["response_p"] == pytest.approx([math.exp(v) for v in row["old_logp"]], rel=0.01)
            if row["observation_logp"]:
                assert step["observation_p"] == pytest.approx(
                    [math.exp(v) for v in row["observation_logp"]], rel=0.01
                )
            before = rows.get((e.group, e.member, step["step"] - 1))
            if before is not None:
                ids = (np.int32(before["observation_ids"]), np.int32(row["observation_ids"]))
                assert step["copied"] == copied_tokens(*ids).astype(int).tolist()
            assert json.dumps(step, allow_nan=False)


def test_surprises_begin_with_the_least_probable_token(runs: list[Path]) -> None:
    found = Library(runs).file("paw", "update_000000").surprises
    least = min(v for row in read(find(runs[0])[0].path).to_pylist() for v in row["observation_logp"] or ())
    assert found[0]["p"] == pytest.approx(math.exp(least), rel=0.01)
    assert [each["p"] for each in found] == sorted(each["p"] for each in found)
    assert Library(runs).file("vanilla", "update_000000").surprises == []


def test_a_surprise_that_comes_again_is_one_surprise(tmp_path: Path) -> None:
    """What a first word is, say, is asked at every step: it must not fill the list."""
    rows = made.rows()
    asked = [n for n, row in enumerate(rows.to_pylist()) if row["observation_logp"]]
    many = rows.take([asked[0]] * 30 + asked[1:])
    first = many.slice(0, 1).to_pylist()[0]
    others = Counter(
        (tuple(row["observation_ids"][:at]), row["observation_ids"][at])
        for row in many.to_pylist()
        for at in _places(row)
    )
    EpisodeFolder(tmp_path / "run", made.ALL).write_update(0, many)
    found = Library([tmp_path / "run"]).file("run", "update_000000").surprises
    mine = [
        each
        for each in found
        if (each["group"], each["member"], each["step"]) == (first["group"], first["member"], first["step"])
    ]
    assert mine and all(each["times"] >= 30 for each in mine) and len(mine) <= len(first["observation_ids"])
    assert sum(each["times"] for each in found) <= others.total()
    assert len({(each["before"], each["token"]) for each in found}) == len(found) > len(mine)


def _places(row: dict[str, Any]) -> range:
    return range(len(row["observation_logp"] or ()))


def test_the_same_task_in_the_other_run_comes_first(runs: list[Path]) -> None:
    found = Library(runs).same_task("paw", "update_000001", *_first(runs))
    assert [(each["run"], each["file"], each["same_seed"]) for each in found][:1] == [
        ("vanilla", "update_000001", True)
    ]
    assert Library(runs[:1]).same_task("paw", "update_000001", *_first(runs)) == []


def _first(runs: list[Path]) -> tuple[int, int]:
    e = Library(runs).file("paw", "update_000001").episodes[0]
    return e.group, e.member


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    run = made.run_of(tmp_path / "run", 1)
    library = Library([run])
    before = library.episodes("run", "update_000000")
    EpisodeFolder(run, made.ALL).write_update(0, made.rows(seed=9))
    assert library.episodes("run", "update_000000") != before


def test_two_runs_with_one_name(tmp_path: Path) -> None:
    runs = [made.run_of(tmp_path / folder / "s0", 1) for folder in ("a", "b")]
    assert list(Library(runs).runs) == [str(run) for run in runs]


def test_the_command_shows_the_newest_update_and_what_is_asked_for(runs: list[Path]) -> None:
    status, said = invoke(str(runs[0]))
    episodes = Library(runs).file("paw", "update_000002").episodes
    assert (
        status == 0
        and said.splitlines()[0] == "update 2  (update_000002)"
        and len(said.splitlines()) == 1 + len(episodes)
    )
    group = episodes[0].group
    status, said = invoke(
        str(runs[0]),
        "--update",
        "1",
        "--group",
        str(Library(runs).file("paw", "update_000001").episodes[0].group),
    )
    assert status == 0 and "step 0" in said and "      > " in said and "      < " in said
    status, said = invoke(str(runs[0]), "--outcome", "success", "--json")
    assert [json.loads(line)["success"] for line in said.splitlines()] == [True] * sum(
        e.success for e in episodes
    )
    status, said = invoke(str(runs[0]), "--group", str(group), "--member", "0", "--json")
    assert json.loads(said)["steps"] == Library(runs).steps("paw", "update_000002", group, 0)
    status, said = invoke(str(runs[0]), "--limit", "2")
    assert len(said.splitlines()) == 4 and "--limit 4" in said
    assert invoke(str(runs[0]), "--grep", "no such text")[0] == 1
    assert invoke(str(runs[0]), "--group", "77")[0] == 1


def test_a_text_is_found_where_it_stands(runs: list[Path]) -> None:
    e = Library(runs).file("paw", "update_000000").episodes[0]
    wanted = "".join(Library(runs).steps("paw", "update_000000", e.group, e.member)[0]["response"])
    status, said = invoke(
        str(runs[0]),
        "--grep",
        wanted.upper() if wanted.upper() != wanted else wanted,
        "--json",
        "--limit",
        "1000",
    )
    found = [json.loads(line) for line in said.splitlines()]
    assert status == 0 and any(
        (f["update"], f["group"], f["member"]) == (0, e.group, e.member) for f in found
    )
    for each in found:
        for step in each["steps"]:
            assert (
                wanted.lower()
                in " ".join([step["action"], "".join(step["response"]), "".join(step["observation"])]).lower()
            )


def test_hostile_text_does_not_steer_a_terminal(hostile: Path) -> None:
    status, said = invoke(
        str(hostile), "--group", str(Library([hostile]).file(hostile.name, "update_000000").episodes[0].group)
    )
    assert status == 0 and ATTACKS[1] in said.replace("\n", "")
    assert clean("a\x1b[2Jb\rc\x07 \x9b31m \u202e d\n") == "a\\x1b[2Jb\\rc\\x07 \\x9b31m \\u202e d\n"
