"""The processes of a run: which one this is, how they meet, and the few Python objects that they exchange
(tensors are for the backends).

Every rank runs the same program. Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT)
or srun (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID), or alone; where they meet is for meeting.py to say.
Alone, everything here is a no-op.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from paw_hpc.system.errors import RecipeError, UserError
from paw_hpc.system.meeting import meet

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """This process among those of its run."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    """Its number on its machine: the GPU that it takes."""

    @classmethod
    def of_environment(cls) -> Process:
        """What torchrun or srun said; without either, a run of one process."""
        for names in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ):
            # An interactive shell of srun has a step of one task: that is no parallel start.
            if all(name in os.environ for name in names) and (
                names[0] == "RANK" or int(os.environ["SLURM_NTASKS"]) > 1
            ):
                return cls(*(int(os.environ[name]) for name in names))
        return cls()


@contextlib.contextmanager
def joined(*, gpu: bool, timeout_s: float) -> Iterator[Process]:
    """Inside, the default process group of this run exists: gloo for CPU tensors and, with `gpu`, NCCL for
    those of this process's own GPU.

    Raises:
        RecipeError: more processes on this machine than GPUs, or nobody says where to meet.
        UserError: not all came, or one that is not of this run (see meeting.py).
    """
    process = Process.of_environment()
    if gpu:
        # Kernels start in the order in which they were asked for, so that communication overlaps.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        if process.local_rank >= torch.cuda.device_count():
            raise RecipeError(
                f"megatron: {process.local_rank + 1} or more processes on this machine, but torch sees "
                f"{torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(process.local_rank)
    store: dist.Store = dist.HashStore()
    if process.processes > 1:
        store = meet(process.rank, process.processes, timeout_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        store=store,
        rank=process.rank,
        world_size=process.processes,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    try:
        yield process
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """The rank that speaks: it writes metrics, shows progress, and answers for the run."""
    return rank() == 0


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on the main rank, on every rank. A UserError there ends the other ranks, which say
    nothing of it (PeerFailed)."""
    if size() == 1:
        return work()
    result: tuple[Any, UserError | None] = (None, None)
    if is_main():
        try:
            result = (work(), None)
        except UserError as error:
            result = (None, error)
    value, problem = broadcast(result)
    if problem is not None:
        raise problem if is_main() else PeerFailed(2)
    return cast(T, value)


def main_first(work: Callable[[], T]) -> T:
    """`work` on every rank, on the main one before the others: what it leaves in a cache is there for
    them."""
    kept: list[T] = []
    on_main(lambda: kept.append(work()))
    return kept[0] if kept else work()


def broadcast(value: T, source: int = 0) -> T:
    """`value` of the rank `source`, on every rank (pickled)."""
    if size() == 1:
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=source, device=torch.device("cpu"))
    return cast(T, held[0])


def gather(value: T) -> list[T]:
    """Every rank's `value`, on every rank, in the order of ranks (pickled; for small things)."""
    if size() == 1:
        return [value]
    everyone: list[Any] = [None] * size()
    dist.all_gather_object(everyone, value)
    return everyone


def first(value: T | None) -> T | None:
    """The first rank's value that is not None, on every rank."""
    return next((found for found in gather(value) if found is not None), None)


class PeerFailed(SystemExit):
    """Ends this rank because another has failed, which reports the error; it says nothing itself."""
