"""Verdicts beside the paper follow from the interval of the difference, and say when n is too small."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paw_hpc.evaluation.statistics import crossed_mean, success_interval
from paw_hpc.recipe import ProtocolName, load_recipe
from paw_hpc.recipe.shipped import protocol_recipe
from paw_hpc.study.report import verdicts
from paw_hpc.study.report.compare import type_table
from paw_hpc.study.report.runs import panels, read_arms
from paw_hpc.study.report.standings import protocol_notes
from tests.report.synthetic import draw, evaluation, recipe, write_run


def set_up(name: ProtocolName, **changes: Any) -> dict[str, Any]:
    """All keys of a protocol on ALFWorld but name, seed and arm."""
    whole = load_recipe(
        protocol_recipe("alfworld", name), [f"{key}={value}" for key, value in changes.items()]
    ).model_dump(mode="json")
    return {key: value for key, value in whole.items() if key not in ("name", "seed", "wm")}


PAPERS = set_up("reference")


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
    assert verdicts.verdict(interval) == said


def test_ours_and_the_papers_uncertainty_are_in_the_difference(tmp_path: Path) -> None:
    outcomes = [[True]] * 98 + [[False]] * 42  # 70.0 %, the paper's own 1.5B GRPO
    write_run(tmp_path / "grpo", recipe("grpo", wm=False, **PAPERS), [], [evaluation(outcomes, update=150)])
    arms = read_arms([tmp_path])
    table = verdicts.paper_table(arms, panels(arms)[0])
    assert table is not None
    [row] = table.rows
    low, high = (100 * x - 70.0 for x in success_interval([o[0] for o in outcomes], list(range(140))))
    theirs = 1.96 * 4.2 / math.sqrt(3)
    assert row[:3] == ("grpo: success (1.5B GRPO)", "reference", "1 × 140 × 1")
    assert row[3:5] == (f"70.0 [{70 + low:.1f}, {70 + high:.1f}]", "70.0 ± 4.2")
    assert row[5:] == (
        f"+0.0 [{-math.hypot(low, theirs):+.1f}, {math.hypot(high, theirs):+.1f}]",
        "undecided",
    )


def test_the_papers_claim_is_judged_as_a_difference_of_arms(tmp_path: Path) -> None:
    rates = {"grpo": 0.3, "paw": 0.9}
    for seed in range(3):
        for arm, rate in rates.items():
            end = evaluation(draw(seed + 10 * (arm == "paw"), 60, rate), update=150)
            write_run(
                tmp_path / f"{arm}-s{seed}", recipe(arm, seed=seed, wm=arm == "paw", **PAPERS), [], [end]
            )
    arms = read_arms([tmp_path])
    table = verdicts.paper_table(arms, panels(arms)[0])
    assert table is not None and [row[0] for row in table.rows] == [
        "grpo: success (1.5B GRPO)",
        "paw: success (1.5B GRPO+PaW)",
        "paw - grpo",
    ]
    of = {
        arm: np.array([np.ravel(draw(s + 10 * (arm == "paw"), 60, rate)) for s in range(3)], dtype=float)
        for arm, rate in rates.items()
    }
    expected = crossed_mean(of["paw"] - of["grpo"])
    assert table.rows[2][1:5] == (
        "reference",
        "3 × 60",
        f"{100 * expected.mean:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]",
        "+7.9",
    )
    assert table.rows[0][6] == table.rows[2][6] == "not reproduced"


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (set_up("reference", **{"rollout.groups": 4}), "reference but for 1 key"),
        (set_up("ours"), "ours"),
        (set_up("ours", protocol="null"), "ours"),
        (set_up("ours", **{"rollout.groups": 4, "updates": 9}), "ours but for 2 keys"),
    ],
)
def test_another_set_up_than_reference_is_judged_in_brackets_under_its_name(
    tmp_path: Path, of: dict[str, Any], named: str
) -> None:
    write_run(tmp_path / "other", recipe("other", **of), [], [evaluation(draw(0, 60, 0.2), update=150)])
    arms = read_arms([tmp_path / "other"])
    table = verdicts.paper_table(arms, panels(arms)[0])
    assert table is not None and table.rows[0][1] == named and table.rows[0][6] == "(not reproduced)"
    assert type_table(arms, panels(arms)[0]).rows[1][0] == f"paper: 1.5B GRPO+PaW (above: {named})"


@pytest.mark.parametrize(
    ("of", "judged_by", "named", "in_brackets"),
    [
        (set_up("reference"), "reference", "reference", False),
        (set_up("reference"), "", "reference", False),  # an evaluation of before the protocols had names
        (set_up("reference"), "ours", "reference, judged by ours", True),
        (set_up("ours"), "reference", "ours, judged by reference", True),
        (
            set_up("reference"),
            "reference, except eval.temperature: 1 (reference: 0.4)",
            "reference, judged by reference but for 1 key",
            True,
        ),
        # What the run's own set-up says already is not said again.
        (
            set_up("reference", **{"env.max_steps": 20}),
            "reference, except env.max_steps: 20 (reference: 50)",
            "reference but for 1 key",
            True,
        ),
    ],
)
def test_who_judged_is_named_where_it_was_not_the_runs_own_set_up(
    tmp_path: Path, of: dict[str, Any], judged_by: str, named: str, in_brackets: bool
) -> None:
    end = dataclasses.replace(evaluation(draw(0, 60, 0.2), update=150), judged_by=judged_by)
    write_run(tmp_path / "run", recipe("run", **of), [], [end])
    arms = read_arms([tmp_path / "run"])
    table = verdicts.paper_table(arms, panels(arms)[0])
    assert table is not None and table.rows[0][1] == named and table.rows[0][6].startswith("(") == in_brackets
    assert type_table(arms, panels(arms)[0]).rows[1][0].endswith(f"(above: {named})")
    notes = [line for line in protocol_notes(arms) if "judged by" in line]
    assert notes == ([f"run: judged by {judged_by} on valid_seen."] if "judged by" in named else [])


def test_another_model_and_a_set_up_without_a_name_are_not_judged_at_all(tmp_path: Path) -> None:
    write_run(tmp_path / "tiny", recipe("tiny"), [], [evaluation(draw(0, 60, 0.2), update=60)])
    unnamed = set_up("reference", protocol="null", **{"rollout.groups": 4})
    write_run(
        tmp_path / "unnamed", recipe("unnamed", **unnamed), [], [evaluation(draw(0, 60, 0.2), update=60)]
    )
    for path in ("tiny", "unnamed"):
        arms = read_arms([tmp_path / path])
        key = panels(arms)[0]
        assert verdicts.paper_table(arms, key) is None
        assert not any(row[0].startswith("paper") for row in type_table(arms, key).rows)


class TestNotes:
    def lines(self, folder: Path, *runs: dict[str, Any]) -> list[str]:
        for number, of in enumerate(runs):
            write_run(
                folder / f"r{number}",
                recipe(f"r{number}", **of),
                [],
                [evaluation(draw(0, 60, 0.2), update=60)],
            )
        return protocol_notes(read_arms([folder]))

    def test_each_arm_has_its_protocol_and_its_departures_from_both(self, tmp_path: Path) -> None:
        first, second = self.lines(tmp_path, set_up("reference"))
        assert first == "r0: protocol reference, in every key."
        assert (
            second.startswith("r0: departs from ours: ")
            and "algorithm.entropy_bonus: 0.001 (ours: 0)" in second
        )

    def test_keys_that_disagree_with_what_the_recipe_says(self, tmp_path: Path) -> None:
        [first] = self.lines(tmp_path, set_up("ours", protocol="reference"))
        assert first.startswith("r0: the recipe says `protocol: reference`, and its keys disagree: ")
        assert "algorithm.entropy_bonus: 0 (reference: 0.001)" in first

    def test_a_run_without_a_name(self, tmp_path: Path) -> None:
        same, *_ = self.lines(tmp_path / "same", set_up("ours", protocol="null"))
        assert same == "r0: protocol ours, in every key; the recipe does not say so."
        other, *both = self.lines(tmp_path / "other", set_up("ours", protocol="null", updates=9))
        assert "not put beside the paper's numbers" in other
        assert [line.split(":")[1].strip() for line in both] == [
            "departs from reference",
            "departs from ours",
        ]
        assert (
            "updates: 9 (reference: 150)" in both[0]
            and both[1] == "r0: departs from ours: updates: 9 (ours: 150)."
        )

    def test_the_same_is_said_once_and_of_other_runs_nothing(self, tmp_path: Path) -> None:
        lines = self.lines(
            tmp_path / "two", set_up("ours"), set_up("ours") | {"wm": False}, set_up("ours", updates=9)
        )
        assert lines[0] == "r1, r0: protocol ours, in every key."
        assert self.lines(tmp_path / "tiny", {}) == []
