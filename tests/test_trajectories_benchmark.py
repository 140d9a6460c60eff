"""The benchmark of whole trajectories, at toy size: it counts what it says, and ends where the two ways
differ."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import trajectories

SIZES = {"episodes": 2, "rounds": 1, "opening": 8, "response": 3, "observation": 5, "rest": 2}
TOY = [
    "recipes/quickstart.yaml",
    "--steps",
    "3",
    "6",
    *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))),
]


def test_tokens_are_those_of_the_formula() -> None:
    rows = {(row["steps"], row["arm"], row["way"]): row for row in trajectories.main(TOY)}
    for steps in (3, 6):
        new = 3 + 4 + 5 + 2
        for arm in trajectories.ARMS:
            apart, whole = (rows[steps, arm, way] for way in trajectories.WAYS)
            assert whole["rows"] == apart["rows"] and whole["tokens"] < apart["tokens"]
            assert min(apart["score_s"], apart["update_s"], whole["score_s"], whole["update_s"]) > 0
        prompts = sum(8 + new * step for step in range(steps))
        assert rows[steps, "vanilla", "samples"]["tokens"] == 2 * (prompts + 3 * steps)
        assert rows[steps, "vanilla", "chains"]["tokens"] == 2 * (8 + new * (steps - 1) + 3)


def test_another_result_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = trajectories.measured

    def wrong(*arguments: object) -> trajectories.Found:
        found = right(*arguments)  # type: ignore[arg-type]
        return dataclasses.replace(found, loss=found.loss + 0.01) if found.way == "chains" else found

    monkeypatch.setattr(trajectories, "measured", wrong)
    with pytest.raises(SystemExit, match=r"3 steps, vanilla: loss is .* of samples and .* of chains"):
        trajectories.main(TOY)
