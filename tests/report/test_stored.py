"""The report on two small real runs (kept in stored/, with how they were made) is the one that was read and
kept beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paw_hpc.study.report import write_report

STORED = Path(__file__).parent / "stored"
ARMS = ("vanilla", "paw")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies; the report names runs by their paths, so it is the current one."""
    for arm in ARMS:
        shutil.copytree(STORED / arm, tmp_path / "runs" / arm)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def reported(runs: Path) -> list[str]:
    return (
        write_report([runs / arm for arm in ARMS], Path("report"))
        .markdown.read_text(encoding="utf-8")
        .splitlines()
    )


def test_the_report_is_the_stored_one(runs: Path) -> None:
    assert reported(runs) == (STORED / "expected.md").read_text(encoding="utf-8").splitlines()


def test_one_episode_that_went_otherwise_changes_it(runs: Path) -> None:
    path = runs / "paw" / "evaluations" / "end.jsonl"
    first, *others = path.read_text(encoding="utf-8").splitlines()
    episode = json.loads(first)
    path.write_text(
        "\n".join([json.dumps(episode | {"success": not episode["success"]}), *others]) + "\n",
        encoding="utf-8",
    )
    expected = (STORED / "expected.md").read_text(encoding="utf-8").splitlines()
    changed = [line for line in set(reported(runs)) - set(expected) if line.startswith("| quickstart-paw")]
    assert changed
