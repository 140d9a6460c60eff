"""`--json`: what status, plan, eval and report print for scripts is what they know, in numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.cli.plain import plain
from paw_hpc.evaluation import panel
from paw_hpc.evaluation.statistics import Interval
from tests.report.synthetic import draw, evaluation, recipe, training_metrics, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    start, ends = draw(0, 20, 0.4), {"grpo": draw(1, 20, 0.5), "grpo-paw": draw(2, 20, 0.7)}
    for name, end in ends.items():
        wm = name == "grpo-paw"
        evaluations = [evaluation(start, update=0, ce=1.1), evaluation(end, update=30, ce=0.7 if wm else 1.2)]
        write_run(
            tmp_path / "runs" / name,
            recipe(name, wm=wm),
            training_metrics(int(wm), 30, gain=0.2, wm=wm),
            evaluations,
        )
    return tmp_path / "runs"


def said(*arguments: str) -> Any:
    """The one JSON value on standard output."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_status(runs: Path) -> None:
    found = said("status", str(runs))["runs"]
    assert [Path(row["run"]).name for row in found] == ["grpo", "grpo-paw"]
    assert all((row["played"], row["saved"]) == (30, 0) and row["wanted"] >= 30 for row in found)


def test_report(runs: Path, tmp_path: Path) -> None:
    found = said("report", str(runs), "--out", str(tmp_path / "report"))
    assert Path(found["markdown"]).is_file() and Path(found["html"]).is_file()
    ends = {arm["label"]: arm["runs"][0]["evaluations"][-1] for arm in found["arms"]}
    assert (
        ends.keys() == {"grpo", "grpo-paw"}
        and ends["grpo-paw"]["success"] == np.mean(draw(2, 20, 0.7))
        and ends["grpo"]["update"] == 30
    )
    low, high = ends["grpo"]["interval"]
    assert low <= ends["grpo"]["success"] <= high and ends["grpo"]["episodes"] == 20
    [difference] = found["differences"]
    assert (difference["arm"], difference["against"]) == ("grpo-paw", "grpo")
    assert difference["difference"] == pytest.approx(ends["grpo-paw"]["success"] - ends["grpo"]["success"])


def test_plan_of_recipes_and_sweeps() -> None:
    found = said("plan", "alfworld/qwen2.5-1.5b-grpo-paw", "cluster.gpus_per_node=8")["runs"]
    small = said("plan", "quickstart")["runs"][0]
    [big] = found
    assert (
        big["gpus_per_node"] >= 1
        and big["memory_bytes"]["trainer"]["total"] > 1e9
        and big["estimated"]["update_s"] > 0
    )
    assert big["gpu_hours"] == pytest.approx(
        big["estimated"]["update_s"] * big["updates"] * len(big["nodes"]) * big["gpus_per_node"] / 3600
    )
    assert small["estimated"] is None and small["gpu"] is None and small["seeds"] == 1


def test_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluation(draw(0, 20, 0.4), update=3)
    monkeypatch.setattr(panel, "evaluate_path", lambda *_, **__: result)
    found = said("eval", "runs/x", "--panel", "valid_seen")
    assert (found["success"], found["update"], found["episodes"]) == (result.success, 3, 20)


def test_an_error_is_no_json_and_says_so_by_its_status(tmp_path: Path) -> None:
    from paw_hpc.system.errors import UserError

    done = CliRunner().invoke(app, ["status", str(tmp_path / "none"), "--json"])
    assert done.stdout == "" and isinstance(done.exception, UserError), "main makes exit status 2 of it"


def test_values_in_json_s_types() -> None:
    interval: Interval = (0.1, math.inf)
    assert plain({"a": Path("x"), 3: interval, "n": np.float32(0.5), "f": [math.nan, {1}]}) == {
        "a": "x",
        "3": [0.1, None],
        "n": 0.5,
        "f": [None, [1]],
    }
