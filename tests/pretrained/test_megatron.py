"""A pretrained model in Megatron's layouts, with head counts and layers that halves do not divide. The ranks'
cases are in `ranks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pretrained import ranks
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")


def run(world: int, expected: Path, smollm2: Path, *cases: Callable[[int, Path], None]) -> None:
    (expected / ranks.FOLDER).write_text(str(smollm2))
    run_ranks(world, cases, expected, timeout_s=300.0)


def test_the_update_moves_weights_far_more_than_layouts_may_differ(expected: Path) -> None:
    found = torch.load(expected / ranks.EXPECTED, weights_only=False)
    assert found["moved"] > 100 * ranks.CLOSE and found["metrics"]["wm_loss"] > 0.01


def test_two_ranks(expected: Path, smollm2: Path) -> None:
    run(2, expected, smollm2, ranks.two_stages)


def test_three_ranks(expected: Path, smollm2: Path) -> None:
    run(3, expected, smollm2, ranks.three_tensor_parallel_ranks, ranks.three_stages)


def test_four_ranks(expected: Path, smollm2: Path) -> None:
    run(4, expected, smollm2, ranks.four_stages_of_unlike_size)
