"""Verdicts beside the paper follow from the interval of the difference, and say when n is too small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paw_hpc.report import beside
from paw_hpc.report.runs import panels, read_arms
from paw_hpc.statistics import crossed_mean, success_interval
from tests.report.synthetic import draw, evaluation, recipe, write_run

PAPERS: dict[str, Any] = {"model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"}, "updates": 150, "optimizer": {"mini_batch": 256}}


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-1.0, 4.0), "reproduced"),
        ((1.0, 4.0), "reproduced"),  # surely different, and surely by less than matters
        ((-9.0, 3.0), "undecided"),
        ((-20.0, 20.0), "undecided"),
        ((-14.0, -2.0), "not reproduced"),
        ((6.0, 9.0), "not reproduced"),
    ],
)
def test_the_rule(interval: tuple[float, float], said: str) -> None:
    assert beside.verdict(interval) == said


def test_ours_and_the_papers_uncertainty_are_in_the_difference(tmp_path: Path) -> None:
    outcomes = [[True]] * 98 + [[False]] * 42  # 70.0 %, the paper's own 1.5B GRPO
    write_run(tmp_path / "grpo", recipe("grpo", wm=False, **PAPERS), [], [evaluation(outcomes, update=150)])
    arms = read_arms([tmp_path])
    table = beside.paper_table(arms, panels(arms)[0])
    assert table is not None
    [row] = table.rows
    low, high = (100 * x - 70.0 for x in success_interval([o[0] for o in outcomes], list(range(140))))
    theirs = 1.96 * 4.2 / math.sqrt(3)
    assert row[:4] == ("grpo: success (1.5B GRPO)", "1 × 140 × 1", f"70.0 [{70 + low:.1f}, {70 + high:.1f}]", "70.0 ± 4.2")
    assert row[4:] == (f"+0.0 [{-math.hypot(low, theirs):+.1f}, {math.hypot(high, theirs):+.1f}]", "undecided")


def test_the_papers_claim_is_judged_as_a_difference_of_arms(tmp_path: Path) -> None:
    rates = {"grpo": 0.3, "paw": 0.9}
    for seed in range(3):
        for arm, rate in rates.items():
            end = evaluation(draw(seed + 10 * (arm == "paw"), 60, rate), update=150)
            write_run(tmp_path / f"{arm}-s{seed}", recipe(arm, seed=seed, wm=arm == "paw", **PAPERS), [], [end])
    arms = read_arms([tmp_path])
    table = beside.paper_table(arms, panels(arms)[0])
    assert table is not None and [row[0] for row in table.rows] == ["grpo: success (1.5B GRPO)", "paw: success (1.5B GRPO+PaW)", "paw - grpo"]
    of = {arm: np.array([np.ravel(draw(s + 10 * (arm == "paw"), 60, rate)) for s in range(3)], dtype=float) for arm, rate in rates.items()}
    expected = crossed_mean(of["paw"] - of["grpo"])
    assert table.rows[2][1:4] == ("3 × 60", f"{100 * expected.mean:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]", "+7.9")
    assert table.rows[0][5] == table.rows[2][5] == "not reproduced"


def test_another_set_up_is_judged_in_brackets_and_another_model_not_at_all(tmp_path: Path) -> None:
    write_run(tmp_path / "short", recipe("short", **PAPERS, rollout={"groups": 4}), [], [evaluation(draw(0, 60, 0.2), update=150)])
    write_run(tmp_path / "tiny", recipe("tiny"), [], [evaluation(draw(0, 60, 0.2), update=60)])
    arms = read_arms([tmp_path / "short"])
    table = beside.paper_table(arms, panels(arms)[0])
    assert table is not None and table.rows[0][5] == "(not reproduced)"
    tiny = read_arms([tmp_path / "tiny"])
    assert beside.paper_table(tiny, panels(tiny)[0]) is None
