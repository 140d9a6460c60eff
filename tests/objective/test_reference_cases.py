"""Credit as the reference set-up assigns it: the recorded batches where they are, and a small one worked out
by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paw_hpc.experience import ACTION
from tests.beside import SHARED, beside
from tests.objective.reference_cases import ESTIMATORS, TOLERANCE, errors, load, planned, pool_of

RECORDED = "reference/agent_rl/golden.json.gz"


def sample(
    episode: int, step: int, anchor: str, valid: bool = True, reward: float = 0.0, length: int = 1
) -> dict[str, Any]:
    return {
        "group": 0,
        "episode": episode,
        "step": step,
        "anchor": anchor,
        "valid": valid,
        "reward": reward,
        "length": length,
    }


# One group. Episode 0: an invalid step at a, then a valid one at b that wins 10. Episode 1: two valid steps
# at a and c, nothing won.
CASE: dict[str, Any] = {
    "penalty": 1.0,
    "gamma": 0.5,
    "omega": 1.0,
    "similarity": None,
    "samples": [
        sample(0, 0, "a", valid=False),
        sample(0, 1, "b", reward=10.0, length=2),
        sample(1, 0, "a"),
        sample(1, 1, "c"),
    ],
    "expected": {
        # Scores of the samples: 9, 10, 0, 0. Mean 4.75, squared deviations 18.0625 + 27.5625 + 2 * 22.5625 =
        # 90.75, std sqrt(30.25) = 5.5.
        "grpo_over_steps": [4.25 / 5.5, 5.25 / 5.5, -4.75 / 5.5, -4.75 / 5.5],
        "grpo_mean_only_over_steps": [4.25, 5.25, -4.75, -4.75],
        "rloo_over_steps": [4.25 * 4 / 3, 5.25 * 4 / 3, -4.75 * 4 / 3, -4.75 * 4 / 3],
        # First samples of the episodes: 9 and 0. Mean 4.5, std sqrt(2 * 4.5^2) = 4.5 sqrt(2).
        "grpo_mean_only_over_episodes": [4.5, 5.5, -4.5, -4.5],
        "grpo_over_episodes": [0.5**0.5, 5.5 / 4.5 * 0.5**0.5, -(0.5**0.5), -(0.5**0.5)],
        "rloo_over_episodes": [9.0, 11.0, -9.0, -9.0],
        # Returns to go 5, 10, 0, 0; the penalty is taken from that of its step, after discounting: 4. State
        # a: 4 and 0, -+2. b, c are met once.
        "gigpo_mean_norm": [4.25 + 2, 5.25, -4.75 - 2, -4.75],
        "gigpo_mean_std_norm": [4.25 / 5.5 + 0.5**0.5, 5.25 / 5.5, -4.75 / 5.5 - 0.5**0.5, -4.75 / 5.5],
        # Rewards of the last tokens 9, 10, 0, 0; gamma = lambda = 1, so A = reward - value: 8, (11, 9), 1,
        # -2. Mean 5.4; squared deviations 6.76 + 31.36 + 12.96 + 19.36 + 54.76 = 125.2, std sqrt(31.3).
        "ppo_token_gae": {
            "values": [[1.0], [-1.0, 1.0], [-1.0], [2.0]],
            "advantages": [
                [2.6 / 31.3**0.5],
                [5.6 / 31.3**0.5, 3.6 / 31.3**0.5],
                [-4.4 / 31.3**0.5],
                [-7.4 / 31.3**0.5],
            ],
            "returns": [[9.0], [10.0, 10.0], [0.0], [0.0]],
        },
    },
}


def worst(case: dict[str, Any], changes: dict[str, Any] | None = None) -> dict[str, float]:
    """Share of its largest value by which each estimator is off."""
    return {name: error / largest for name, error, largest in errors(case, changes)}


def test_a_case_by_hand() -> None:
    found = worst(CASE)
    assert {name.split()[0] for name in found} == ESTIMATORS.keys()
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"penalty": "episode"}, "grpo_over_steps"),
        ({"penalty": "after_normalization"}, "gigpo_mean_norm"),
        ({"statistics": "episodes"}, "rloo_over_steps"),
        ({"statistics": "samples"}, "grpo_over_episodes"),
        ({"normalize_std": False}, "gigpo_mean_std_norm"),
        ({"token_lambda": 0.5}, "ppo_token_gae advantages"),
        ({"token_gamma": 0.5}, "ppo_token_gae returns"),
    ],
)
def test_another_protocol_is_told_apart(changes: dict[str, Any], told: str) -> None:
    if "token_lambda" in changes or "token_gamma" in changes:
        case = {**CASE, "expected": {"ppo_token_gae": CASE["expected"]["ppo_token_gae"]}}
    else:
        case = {**CASE, "expected": {told: CASE["expected"][told]}}
    assert worst(case, changes)[told] > 100 * TOLERANCE


def test_a_penalty_of_the_step_before_discounting_is_told_apart() -> None:
    """`penalty: episode` discounts the penalty as the reward that it is: the return to go of a step before an
    invalid one has a part of it."""
    case = {
        **CASE,
        "samples": [sample(0, 0, "a"), sample(0, 1, "b", False, 10.0), sample(1, 0, "a"), sample(1, 1, "c")],
    }
    pool = pool_of(case["samples"])
    keys = {"name": "gigpo", "gigpo_anchor": "observation", "normalize_std": False, "gigpo_omega": 1.0}
    mine = planned(case, pool, {**keys, "penalty": "sample", "statistics": "samples"}).advantage
    discounted = planned(case, pool, {**keys, "penalty": "episode", "statistics": "samples"}).advantage
    assert mine.tolist() == pytest.approx([10 - 4.75 + 2.5, 9 - 4.75, -4.75 - 2.5, -4.75])
    assert discounted.tolist() == pytest.approx([9 - 4.5 + 2.25, 9 - 4.5, -4.5 - 2.25, -4.5])


def test_the_anchor_may_leave_out_the_actions() -> None:
    pool = pool_of(CASE["samples"])
    pool.transitions[0].admissible, pool.transitions[2].admissible = ("look",), ("look", "go")
    keys = {"name": "gigpo", "normalize_std": False, "penalty": "sample", "statistics": "samples"}
    with_actions = planned(CASE, pool, {**keys, "gigpo_anchor": "observation_and_actions"}).advantage
    without = planned(CASE, pool, {**keys, "gigpo_anchor": "observation"}).advantage
    assert (without - with_actions).tolist() == pytest.approx([2.0, 0.0, -2.0, 0.0])


def test_ppo_over_tokens_weighs_and_reports_by_token() -> None:
    pool = pool_of(CASE["samples"])
    keys = {"name": "ppo", "ppo_advantages": "tokens", "penalty": "sample", "value_coefficient": 0.5}
    found = planned(CASE, pool, keys, CASE["expected"]["ppo_token_gae"]["values"])
    batch = found.batch
    assert not batch.sample_streams and batch.value_position is not None
    assert batch.streams["old_value"].tolist() == [1.0, -1.0, 1.0, -1.0, 2.0]
    assert batch.streams["value_weight"].tolist() == pytest.approx([0.1] * 5)
    rows = batch.streams["advantage"][batch.row_kind == ACTION]
    assert found.advantage[1] == pytest.approx(float(rows[1:3].mean())) and float(
        rows.mean()
    ) == pytest.approx(0.0, abs=1e-6)
    late = planned(
        CASE, pool, {**keys, "penalty": "after_normalization"}, CASE["expected"]["ppo_token_gae"]["values"]
    ).advantage
    free = planned(
        {**CASE, "penalty": 0.0}, pool, keys, CASE["expected"]["ppo_token_gae"]["values"]
    ).advantage
    torch.testing.assert_close(late, free - torch.tensor([1.0, 0.0, 0.0, 0.0]))


@beside(RECORDED)
def test_every_recorded_batch() -> None:
    for number, case in enumerate(load(SHARED / RECORDED)):
        found = worst(case)
        assert max(found.values()) < TOLERANCE, (number, found)
