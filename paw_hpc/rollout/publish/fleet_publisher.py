"""Publication to a fleet: generation paused, weights delivered, every server checked, and only then play goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import torch

from paw_hpc.distributed import SaidElsewhere
from paw_hpc.errors import UserError
from paw_hpc.recipe import PublishSection
from paw_hpc.rollout.engines.sglang import check_limits
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.fleet import Fleet, Server
from paw_hpc.rollout.publish.buckets import NamedTensors, Tensors
from paw_hpc.rollout.publish.checks import Sample, cpu_checksum, gpu_checksum
from paw_hpc.rollout.publish.paths import DiskPath, PublishPath, all_well
from paw_hpc.rollout.server import CONTROL_TIMEOUT_S, ServerFault, each

_log = logging.getLogger(__name__)
ATTEMPTS = 4
"""Each goes to the servers that the ones before have left."""
RELEASED = ("kv_cache", "weights")


class PublishError(UserError):
    """Weights did not reach the servers, or not as they left."""


class FleetPublisher:
    """Implements `paw_hpc.rollout.publish.Publisher`.

    A server that fails, or is late, is reported to the fleet, which starts it anew; the others are published to again without it. Where other weights
    arrived than were sent, that is tried once more and is an error then, which names the server and the tensor.

    Args:
        dtype: of the servers' weights.
        kv_heads: of the model.
        longest: prompt and response tokens that servers must take; checked before the first publication.
        tell: tells the other processes that share the model to take part in a pass over the weights ("pass"), or how it ended ("" or an error).
    """

    def __init__(
        self,
        loop: EventLoop,
        fleet: Fleet,
        path: PublishPath,
        source: Tensors,
        settings: PublishSection,
        *,
        dtype: torch.dtype,
        kv_heads: int,
        tell: Callable[[str], None] | None = None,
        longest: tuple[int, int] | None = None,
    ):
        self._loop, self._fleet, self._path, self._source, self._settings = loop, fleet, path, source, settings
        self._dtype, self._kv_heads, self._tell = dtype, kv_heads, tell
        self._sample: Sample | None = None
        self._longest = longest
        self._busy = False
        self._released: set[str] = set()
        fleet.bring_up = self._bring_up

    def publish(self, version: int) -> None:
        """See `Publisher.publish`. Generation is paused meanwhile; turns that it interrupts go on afterwards, with the new weights.

        Raises:
            PublishError: names the server and, where one differs, the tensor.
            FleetError: no server could be started.
        """
        self._busy = True
        outcome = "publication failed"
        try:
            if self._longest is not None:
                self._loop.run(check_limits(self._fleet, *self._longest))
                self._longest = None
            self._loop.run(self._fleet.healthy(), errands=True)
            self._loop.run(self._fleet.hold(), errands=True)
            self._sample = self._new_sample(version)
            servers = self._until_well(version)
            self._loop.run(self._fleet.proceed(version, servers))
            outcome = ""
        except Exception as error:
            outcome = str(error)
            self._fleet.give_up(error)
            raise
        finally:
            self._busy = False
            if self._tell is not None:
                self._tell(outcome)

    def release_memory(self) -> None:
        """Colocated servers give up their weights and caches until the next publication. They must be idle."""
        servers = self._loop.run(self._fleet.healthy())
        self._loop.run(all_well([s.http.release_memory(RELEASED) for s in servers]))
        self._released = {s.http.url for s in servers}

    def close(self) -> None:
        self._path.close()

    def _until_well(self, version: int) -> list[Server]:
        """Servers that were seen to have the weights. Raises PublishError."""
        told = ""
        for attempt in range(ATTEMPTS):
            servers = self._loop.run(self._alive(), errands=True)
            try:
                self._to(servers, version)
                return servers
            except ServerFault as fault:
                again = isinstance(fault, _Mismatch) and attempt == 0
                _log.warning("publication of version %d, attempt %d: %s", version, attempt + 1, fault)
                told = str(fault)
                if isinstance(fault, _Mismatch) and not again:
                    break
                if not again:
                    self._loop.run(self._report(servers, fault))
        raise PublishError(f"version {version} was not published: {told}")

    async def _alive(self) -> list[Server]:
        """Servers that answer now. One that died or froze unnoticed would hold up all others for the time limit of a transfer."""
        while True:
            servers = await self._fleet.healthy()
            versions = await each([s.http.weight_version(self._fleet.settings.health_timeout_s) for s in servers])
            for server, outcome in zip(servers, versions, strict=True):
                if isinstance(outcome, ServerFault):
                    self._fleet.report(server, outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
            if alive := [s for s, outcome in zip(servers, versions, strict=True) if isinstance(outcome, str)]:
                return alive

    async def _report(self, servers: Sequence[Server], fault: ServerFault) -> None:
        for server in servers:
            if server.name == fault.server:
                self._fleet.report(server, fault)

    def _to(self, servers: Sequence[Server], version: int) -> None:
        """Deliver and check. Raises ServerFault."""
        started = time.perf_counter()
        released = [s for s in servers if s.http.url in self._released]
        self._loop.run(all_well([s.http.resume_memory(["weights"]) for s in released]))
        self._path.deliver(servers, self._pass, version)
        self._loop.run(all_well([s.http.resume_memory(["kv_cache"]) for s in released]))
        self._released -= {s.http.url for s in released}
        self._loop.run(all_well([self._check(s, version) for s in servers]))
        _log.info("version %d is on %d servers after %.2f s", version, len(servers), time.perf_counter() - started)

    def _pass(self) -> NamedTensors:
        """One pass over the weights, of all processes that share them."""
        if self._tell is not None:
            self._tell("pass")
        assert self._sample is not None
        return self._sample.watch(self._source())

    def _new_sample(self, version: int) -> Sample:
        server = self._fleet.servers[0]
        checksum = gpu_checksum if server.device == "cuda" else cpu_checksum
        return Sample(version, self._settings.sampled_tensors, server.ranks, self._dtype, self._kv_heads, checksum)

    async def _check(self, server: Server, version: int) -> None:
        """Cache flushed, version told, checksums of the sampled tensors equal. Raises ServerFault."""
        assert self._sample is not None
        await server.http.flush_cache(min(CONTROL_TIMEOUT_S, self._settings.timeout_s))
        found = await server.http.weight_version(CONTROL_TIMEOUT_S)
        if found != str(version):
            raise _Mismatch(server.name, f"it serves weights {found!r} after version {version} was published")
        ranks = await server.http.checksums(self._settings.timeout_s)
        if ranks is None:
            _log.warning("%s: its release reports no checksums; the version alone was checked", server.name)
            return
        if len(ranks) != server.ranks:
            raise _Mismatch(server.name, f"it reports the checksums of {len(ranks)} ranks, expected {server.ranks} (rollout.fleet.tensor_parallel)")
        for tensor, expected in self._sample.expected.items():
            for rank, (holds, wanted) in enumerate(zip(ranks, expected, strict=True)):
                if tensor not in holds:
                    raise _Mismatch(server.name, f"it has no tensor {tensor}, which was published")
                if holds[tensor] != wanted:
                    raise _Mismatch(server.name, f"tensor {tensor} (rank {rank}) has checksum {holds[tensor]}, published was {wanted}")

    async def _bring_up(self, server: Server) -> int | None:
        """The current weights for one server that comes late (see `Fleet.bring_up`). Raises ServerFault."""
        if isinstance(self._path, DiskPath):
            async with self._fleet.publishing:
                version = self._fleet.version
                if self._released or version is None:
                    return None
                await self._path.load([server], version)
                await self._check(server, version)
                return version
        if self._tell is not None:  # the other processes are not here to take part
            return None
        return await self._loop.errand(lambda: self._hand_over(server))

    def _hand_over(self, server: Server) -> int | None:
        """In the trainer's thread, while that waits for episodes: its weights are those that were published last."""
        if self._busy or self._released or self._fleet.version is None:  # it is about to publish: its weights are newer
            return None
        self._loop.run(self._fleet.publishing.acquire())
        try:
            self._to([server], self._fleet.version)
            return self._fleet.version
        finally:
            self._loop.run(_release(self._fleet.publishing))


async def _release(lock: asyncio.Lock) -> None:
    lock.release()


class FollowingPublisher:
    """The publisher of every process but the first, which publishes: takes part in its passes over the weights.

    Args:
        hear: what the first process tells (see `FleetPublisher`).
    """

    def __init__(self, source: Tensors, hear: Callable[[], str]):
        self._source, self._hear = source, hear

    def publish(self, version: int) -> None:
        """See `Publisher.publish`. Ends this process where the first one has met an error, which says it."""
        while (told := self._hear()) == "pass":
            for _ in self._source():
                pass
        if told:
            raise SaidElsewhere(2)


class _Mismatch(ServerFault):
    """The server works, and has other weights than were sent."""
