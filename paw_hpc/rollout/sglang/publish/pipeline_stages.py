"""Broadcast from every pipeline stage: each sends the tensors it has, without the detour over the first
process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import torch
import torch.distributed as dist

from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import ServerClient, ServerFault, http_session
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import NamedTensor, Weights
from paw_hpc.rollout.sglang.publish.checks import WeightSample
from paw_hpc.rollout.sglang.publish.paths import BroadcastPath, Smallest
from paw_hpc.rollout.sglang.publish.traversal import Address, Passes, StagePass
from paw_hpc.system import distributed
from paw_hpc.system.errors import UserError


@dataclass(frozen=True, slots=True)
class Stages:
    """How the stages of a pipeline are passed over on their own."""

    weights: Weights
    """Of this process's stage; its ranks alone take part."""
    senders: tuple[int, ...]
    """The rank of each stage, in their order, that sends its tensors; the first process is the first of
    them."""


@dataclass(slots=True)
class _Part:
    """How one process has done its part."""

    fault: tuple[str, str] | None = None
    """(server, reason)"""
    error: str = ""
    expected: dict[str, list[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


class StagedBroadcast(BroadcastPath):
    """One process group per stage: its sender (rank 0 there) and every rank of every server. Every process of
    the trainer has one of these.

    Servers load one bucket at a time, in the order of their requests: stages send one after the other, so
    that no two servers can wait for different stages. While one sends, each later one gathers its first
    bucket; within a stage, the next bucket is gathered while one is under way.

    Args:
        key: of the servers, which the other processes hear with every order; None: they have none, or this is
            another process.
    """

    def __init__(
        self, loop: EventLoop, bucket_bytes: int, timeout_s: float, stages: Stages, key: str | None = None
    ):
        super().__init__(loop, bucket_bytes, timeout_s)
        self._stages, self._key = stages, key
        self._http: aiohttp.ClientSession | None = None

    def follow(self, order: StagePass) -> None:
        """The part of a process that is not the first; that one says what went wrong."""
        self._take_part(self._servers(order.servers, order.key), order.sample)

    def close(self) -> None:
        super().close()
        if self._http is not None:
            self._loop.run(self._http.close())
            self._http = None

    def _send_all(self, servers: Sequence[Server], passes: Passes) -> NamedTensor:
        assert passes.give_order is not None, "a pipeline has several processes"
        passes.give_order(StagePass(tuple(map(Address.of, servers)), passes.sample, self._key))
        smallest, parts = self._take_part(servers, passes.sample)
        for part in parts:
            if part.error:
                raise UserError(part.error)
            if part.fault is not None:
                raise ServerFault(*part.fault)
        passes.sample.merge([(part.expected, part.names) for part in parts])
        return smallest.found

    def _take_part(self, servers: Sequence[Server], sample: WeightSample) -> tuple[Smallest, list[_Part]]:
        """A collective of all processes; what each has done."""
        part, smallest, rank = _Part(), Smallest(), distributed.rank()
        if rank in self._stages.senders:
            self._send_stage(servers, sample, smallest, part)
        else:
            for _ in self._stages.weights.tensors():
                pass
        parts = distributed.gather(part)
        if any(p.error or p.fault for p in parts):
            self._leave()  # somebody may have missed a broadcast
        return smallest, parts

    def _send_stage(
        self, servers: Sequence[Server], sample: WeightSample, smallest: Smallest, part: _Part
    ) -> None:
        """Send this stage's tensors when it is its turn, unless an earlier stage has failed; gather them to
        the end in any case."""
        position = self._stages.senders.index(distributed.rank())
        before, after = [
            self._stages.senders[i] if 0 <= i < len(self._stages.senders) else None
            for i in (position - 1, position + 1)
        ]
        passing = sample.watch(self._stages.weights.tensors())
        packed = self._packed(smallest.watch(passing), self._stages.weights.nbytes)
        well = False
        try:
            first = next(packed)
            well = before is None or _await_turn(before)
            if well:
                self._join(servers).send_all(itertools.chain([first], packed))
                part.expected, part.names = sample.expected, sample.names
        except ServerFault as fault:
            part.fault, well = (fault.server, fault.reason), False
        except Exception as error:
            part.error, well = (
                f"publication from rank {distributed.rank()}: {type(error).__name__}: {error}",
                False,
            )
        finally:
            for _ in passing:
                pass
            if after is not None:
                _say(well, after)

    def _servers(self, addresses: Sequence[Address], key: str | None) -> list[Server]:
        """Servers of the first process's fleet, seen from here."""
        if self._http is None:
            self._http = self._loop.run(_session(key))
        return [
            Server(i, a.name, client=ServerClient(a.name, a.url, self._http), ranks=a.ranks, device=a.device)
            for i, a in enumerate(addresses)
        ]


async def _session(key: str | None) -> aiohttp.ClientSession:
    return http_session(key)


def _say(well: bool, rank: int) -> None:
    dist.send(torch.tensor([int(well)]), rank)


def _await_turn(rank: int) -> bool:
    """Waits until that rank has had its turn; whether all went well so far."""
    said = torch.zeros(1, dtype=torch.int64)
    dist.recv(said, rank)
    return bool(said.item())
