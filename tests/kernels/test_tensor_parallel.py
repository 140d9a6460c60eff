"""A vocabulary on two ranks equals a vocabulary on one. The cases are in `ranks`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels import ranks


@pytest.mark.skipif(torch.cuda.is_available(), reason="the two ranks compute on the CPU")
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(ranks.main, (2, tmp_path), nprocs=2)
    for rank in "01":
        assert (tmp_path / rank).read_text().split() == [case.__name__ for case in ranks.CASES]
