"""Gloo ranks for tests. Importing PyTorch and Megatron-core takes ten seconds of a core. So a process that
has imported them stands ready, and ranks are its forks: it has computed nothing, so it has no threads that a
fork would lose. Every case has ranks of its own, since what Megatron-core has built keeps its groups' threads
for as long as the process lives."""

from __future__ import annotations

import datetime
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

_IMPORTED = [
    "tests.processes",
    "tests.policy.checkpoint_ranks",
    "tests.policy.megatron_cases",
    "tests.policy.update_cases",
]


class Case(Protocol):
    """Takes the rank and a folder that all ranks share; a function of a module, not a local one."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, rank: int, folder: Path, /) -> None: ...


def run_ranks(world: int, cases: Sequence[Case], folder: Path, *, timeout_s: float = 180.0) -> None:
    """Run the cases one after another, each on ranks of its own. The first failure ends all ranks and is
    raised with the case's name.

    Args:
        timeout_s: how long a rank waits in a collective that another has not joined.
    """
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    for case in cases:
        (folder / ".store").unlink(missing_ok=True)
        arguments = (world, case, folder, timeout_s, dict(os.environ), Path.cwd())
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=world, start_method="forkserver")
        for rank in range(world):
            ended = folder / f".rank-{rank}"
            assert ended.read_text() == case.__name__
            ended.unlink()


def _rank(
    rank: int,
    world: int,
    case: Case,
    folder: Path,
    timeout_s: float,
    environment: dict[str, str],
    place: Path,
) -> None:
    # The process that was forked has those of the time when it began.
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/.store", rank=rank, world_size=world, timeout=timeout
    )
    try:
        case(rank, folder)
    except Exception as error:
        raise AssertionError(f"{case.__name__} on rank {rank}") from error
    dist.barrier()
    (folder / f".rank-{rank}").write_text(case.__name__)
    dist.destroy_process_group()
