"""What a policy from scratch is cloned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.envs.alfworld.teacher import _play
from paw_hpc.envs.base import Task
from paw_hpc.recipe import WarmStartSection
from paw_hpc.study import warmstart
from paw_hpc.system.errors import UserError


def test_a_conversation_is_not_cloned_as_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"env\.prompt: conversation cannot be cloned"):
        warmstart.main("recipes/warm-start.yaml", ["env.prompt=conversation", "env.history=all"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


IDLE = {"look", "inventory", "examine"}


def labels(habit: float) -> tuple[list[str], bool]:
    """The expert's commands over 8 episodes of one game, and whether all were won; every command was admissible and was played."""
    task_id, game = compose("train", "pick_and_place_simple", 2, seed=11)
    engine, section = GameEngine(game), WarmStartSection(habit=habit, max_steps=60)
    said, won = [], True
    for seed in range(8):
        played = _play(engine, Task(task_id, "pick_and_place_simple", ""), game["walkthrough"], 1.0, 0.0, section, np.random.default_rng(seed))
        for step in played["steps"]:
            assert step["label"] in step["admissible"] and step["played"] == step["label"]
        said += [step["label"] for step in played["steps"]]
        won &= played["won"]
    return said, won


@pytest.mark.parametrize("habit", [0.3, 0.5])
def test_an_expert_with_the_habit_looks_about_in_its_share_of_the_steps_and_still_wins(habit: float) -> None:
    brisk, brisk_won = labels(0.0)
    slow, slow_won = labels(habit)
    assert brisk_won and slow_won
    share = sum(label.split()[0] in IDLE for label in slow) / len(slow)
    assert sum(label.split()[0] in IDLE for label in brisk) == 0
    assert abs(share - habit) < 4 * (habit * (1 - habit) / len(slow)) ** 0.5
    assert len(slow) > len(brisk)
