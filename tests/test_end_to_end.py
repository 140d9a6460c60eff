"""RL from the warm start raises success on a handful of games; co-training lowers the cross-entropy of
held-out observations, vanilla not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from paw_hpc.build import Machinery
from paw_hpc.envs.alfworld import official
from paw_hpc.evaluation.panel import observation_cross_entropy
from paw_hpc.loop import one_update
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.rollout.event_loop import EventLoop

UPDATES = 7

# the shipped policy was cloned on the official games, and the settings are for them
pytestmark = [
    pytest.mark.beside,
    pytest.mark.skipif(
        official.find() is None,
        reason="no official ALFWorld games on this machine ($PAW_DATA, ../shared/data beside the checkout)",
    ),
]


def recipe(paw: bool) -> Recipe:
    return parse_recipe(
        {
            "name": "end-to-end",
            "updates": UPDATES,
            "env": {
                "prompt": "compact",
                "max_steps": 8,
                "train_games": 6,
                "task_types": ["pick_and_place_simple"],
            },
            "model": {"path": "warm-start"},
            "rollout": {"groups": 6, "group_size": 8, "max_prompt_tokens": 512, "max_response_tokens": 12},
            "algorithm": {
                "kl_coefficient": 0.0,
                "old_logp": "rollout",
                "penalty": "after_normalization",
                "aggregation": "episode",
            },
            "wm": {"enabled": paw},
            "optimizer": {"lr": 2.5e-4, "mini_batch": 192},
        }
    )


@dataclass
class Run:
    success: list[float]
    ce_before: float
    ce_after: float


def play(paw: bool) -> Run:
    """A short run, and the observation cross-entropy on the same held-out transitions (the warm start's play
    of other games) before and after it."""
    chosen = recipe(paw)
    with EventLoop() as runner, Machinery(chosen, runner) as machinery:
        foreign, _ = machinery.play(
            machinery.benchmark.tasks("valid_seen")[:4], 2, 0, purpose="eval", temperature=1.0
        )
        before = observation_cross_entropy(machinery, foreign)
        tasks = machinery.benchmark.tasks("train")
        success = [one_update(chosen, machinery, tasks, update)["train/success"] for update in range(UPDATES)]
        after = observation_cross_entropy(machinery, foreign)
    assert before is not None and after is not None
    return Run(success, before.mean, after.mean)


@pytest.fixture(scope="module")
def arms() -> dict[str, Run]:
    return {"vanilla": play(False), "paw": play(True)}


@pytest.mark.parametrize("arm", ["vanilla", "paw"])
def test_training_raises_success(arms: dict[str, Run], arm: str) -> None:
    success = arms[arm].success
    assert np.mean(success[-2:]) > np.mean(success[:2]) + 0.1, success


def test_only_co_training_learns_to_predict(arms: dict[str, Run]) -> None:
    vanilla, paw = arms["vanilla"], arms["paw"]
    assert vanilla.ce_before == paw.ce_before  # the same transitions, the same start
    assert paw.ce_after < 0.7 * paw.ce_before
    assert vanilla.ce_after > 0.9 * vanilla.ce_before
