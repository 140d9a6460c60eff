"""Gloo ranks for tests: several processes that run the same cases one after another, because starting them is what costs."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

Case = Callable[[int, Path], None]
"""Takes the rank and a folder that all ranks share; a function of a module, not a local one."""


def run_ranks(world: int, cases: Sequence[Case], folder: Path, *, timeout_s: float = 180.0) -> None:
    """Run every case on every rank. The first failure ends all ranks and is raised with the case's name.

    Args:
        timeout_s: how long a rank waits in a collective that another has not joined.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_rank, (world, list(cases), folder, timeout_s), nprocs=world)
    for rank in range(world):
        assert (folder / f".rank-{rank}").read_text().split() == [case.__name__ for case in cases]


def _rank(rank: int, world: int, cases: list[Case], folder: Path, timeout_s: float) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=f"file://{folder}/.store", rank=rank, world_size=world, timeout=timeout)
    for case in cases:
        try:
            case(rank, folder)
        except Exception as error:
            raise AssertionError(f"{case.__name__} on rank {rank}") from error
        dist.barrier()
    (folder / f".rank-{rank}").write_text(" ".join(case.__name__ for case in cases))
    dist.destroy_process_group()
