"""What others trained, judged by their outcomes: the numbers of an evaluation of the same episodes, and no
word on what is not known."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cli import main as cli
from paw_hpc.envs import Outcome, Panel, Task, write_outcomes
from paw_hpc.evaluation.results import EvaluationResult, write_evaluation
from paw_hpc.evaluation.statistics import paired_over_seeds, success_interval
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.study.report import compare, write_report
from paw_hpc.study.report.runs import panels, read_arms
from paw_hpc.system.errors import DataError
from tests.report import synthetic

GAMES = 24
PANEL = Panel(
    "valid_seen",
    tuple(
        Task(f"valid/{i:03d}", e.task_type, "") for i, e in enumerate(synthetic.episodes([[True]] * GAMES))
    ),
    "abc",
)


def won(every: int) -> list[list[bool]]:
    return [[game % every != 0] for game in range(GAMES)]


def handed_over(
    path: Path, outcomes: list[list[bool]], player: str = "theirs", panel: Panel = PANEL, **more: Any
) -> Path:
    """The outcomes of `synthetic.episodes`, as another trainer writes them."""
    episodes = [Outcome(**dataclasses.asdict(episode)) for episode in synthetic.episodes(outcomes)]
    settings = {"temperature": 0.4, "update": 60, "rules": ""} | more
    return write_outcomes(path, episodes, player=player, benchmark="alfworld", panel=panel, **settings)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of this package on the same panel."""
    path = tmp_path / "run"
    RunDirectory(path).open(synthetic.recipe("vanilla", wm=False), "test")
    write_evaluation(path, synthetic.evaluation(won(2), update=60))
    return path


def test_outcomes_are_judged_as_an_evaluation_is(run: Path, tmp_path: Path) -> None:
    """The same episodes, once from a run and once handed over: the same cells."""
    same = handed_over(tmp_path / "same.jsonl", won(2))
    arms = read_arms([same, run])
    assert [(arm.label, arm.outside) for arm in arms] == [("vanilla", False), ("theirs", True)], (
        "arms from outside come last"
    )
    [key] = panels(arms)
    table = compare.panel_table(arms, key)
    ours, theirs = table.rows
    assert ours[1:6] == theirs[1:6] and ours[2].startswith("50.0 [")
    types = compare.type_table(arms, key).rows
    assert types[0][1:] == types[1][1:]
    assert success_interval([game[0] for game in won(2)], range(GAMES)) == pytest.approx(
        arms[1].last(key)[0].interval
    )


def test_another_outcome_is_another_number(run: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    one_more = [[True], *won(2)[1:]]
    arms = read_arms([run, handed_over(tmp_path / "a.jsonl", one_more)])
    ours, theirs = compare.panel_table(arms, panels(arms)[0]).rows
    assert ours[2] != theirs[2] and theirs[2].startswith("54.2 [")


def test_they_are_compared_pair_by_pair(run: Path, tmp_path: Path) -> None:
    files = [
        handed_over(tmp_path / "a.jsonl", won(3), player="a"),
        handed_over(tmp_path / "b.jsonl", won(4), player="b"),
    ]
    alone = read_arms(files)
    [(name, difference, *_)] = compare.comparisons(alone, panels(alone)[0])
    assert name == "b - a" and difference.difference == pytest.approx(2 / 24)
    beside = read_arms([*files, run])
    found = {name: d for name, d, *_ in compare.comparisons(beside, panels(beside)[0])}
    assert list(found) == ["a - vanilla", "b - vanilla"]
    outcomes = [
        {0: {f"valid/{i:03d}": [float(game[0])] for i, game in enumerate(won(every))}} for every in (2, 3)
    ]
    assert found["a - vanilla"] == paired_over_seeds(*outcomes)
    assert compare.paper_effect(beside[1], beside[0]) is None


def test_files_of_one_player_are_its_seeds(tmp_path: Path) -> None:
    files = [handed_over(tmp_path / f"{seed}.jsonl", won(2 + seed), seed=seed) for seed in range(3)]
    files.append(handed_over(tmp_path / "start.jsonl", won(2), seed=0, update=0))
    [arm] = read_arms(files)
    [key] = panels([arm])
    assert arm.title == "theirs (3 seeds)" and arm.seeds == (0, 1, 2) and len(arm.start(key)) == 1
    with pytest.raises(
        DataError,
        match=r"copy\.jsonl: theirs, seed 1, on valid_seen after 60 updates is in .*1\.jsonl already",
    ):
        read_arms([*files, handed_over(tmp_path / "copy.jsonl", won(5), seed=1)])


def test_other_rules_are_not_compared(run: Path, tmp_path: Path) -> None:
    """Of panel, checksum, temperature and rules each alone is enough."""
    others = [
        handed_over(tmp_path / "rules.jsonl", won(3), rules="30 steps"),
        handed_over(tmp_path / "cold.jsonl", won(3), temperature=0.0),
        handed_over(tmp_path / "games.jsonl", won(3), panel=dataclasses.replace(PANEL, checksum="abd")),
    ]
    for other in others:
        arms = read_arms([run, other])
        assert len(panels(arms)) == 2
        assert all(
            compare.comparisons([arm for arm in arms if arm.last(key)], key) == [] for key in panels(arms)
        )


def test_the_report_says_what_is_known_and_no_more(run: Path, tmp_path: Path) -> None:
    file = handed_over(tmp_path / "a.jsonl", won(3), environment_failures=1)
    report = write_report([run, file], tmp_path / "both")
    text = report.markdown.read_text()
    assert (
        "theirs, trained elsewhere: " in text
        and "Trained elsewhere, judged by the outcomes that were handed over: theirs." in text
    )
    assert "the environment broke 1 episodes" in text
    training = text.partition("Training, first")[2].partition("##")[0]
    assert "| vanilla |" in training and "theirs" not in training
    alone = write_report([file], tmp_path / "alone")
    assert "## Training" not in alone.markdown.read_text() and all(
        figure.name.startswith("panel-") for figure in alone.figures
    )
    [arm] = alone.data["arms"]
    assert arm["runs"][0]["wanted_updates"] is None and arm["runs"][0]["evaluations"][0]["seconds"] is None


def test_the_command_reports_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = handed_over(tmp_path / "a.jsonl", won(3))
    monkeypatch.setattr(sys, "argv", ["paw", "report", str(file), "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    assert (
        json.loads(capsys.readouterr().out)["arms"][0]["label"] == "theirs"
        and (tmp_path / "report" / "report.md").is_file()
    )
    file.write_text(file.read_text().replace('"score": 1.0', '"score": 2.0', 1))
    monkeypatch.setattr(sys, "argv", ["paw", "report", str(run), str(file)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and "score is 2.0, and is in [0, 1]" in said and said.count("\n") == 1


def test_a_benchmark_that_only_its_trainer_knows_is_reported(tmp_path: Path) -> None:
    file = handed_over(tmp_path / "a.jsonl", won(3))
    file.write_text(file.read_text().replace('"benchmark": "alfworld"', '"benchmark": "theirs_alone"'))
    assert "66.7 [" in write_report([file], tmp_path / "out").markdown.read_text()


def test_evaluations_without_a_run_are_still_refused(tmp_path: Path) -> None:
    result: EvaluationResult = synthetic.evaluation(won(2), update=0)
    write_evaluation(tmp_path / "start", result)
    with pytest.raises(DataError, match="evaluations only"):
        read_arms([tmp_path / "start", handed_over(tmp_path / "a.jsonl", won(3))])
