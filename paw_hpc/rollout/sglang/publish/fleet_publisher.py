"""Publication to a fleet: generation paused, weights delivered, every server checked, and only then play goes
on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from paw_hpc.recipe import PublishSection
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import CONTROL_TIMEOUT_S, ServerFault, all_well, each
from paw_hpc.rollout.sglang.engine import check_limits
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import Weights
from paw_hpc.rollout.sglang.publish.checks import WeightSample, cpu_checksum, gpu_checksum
from paw_hpc.rollout.sglang.publish.paths import DiskPath, PublishPath
from paw_hpc.rollout.sglang.publish.traversal import Ended, Order, Passes
from paw_hpc.system.errors import UserError

_log = logging.getLogger(__name__)
ATTEMPTS = 4
"""Each goes to the servers that the ones before have left."""
RELEASED = ("kv_cache", "weights")


class PublishError(UserError):
    """Weights did not reach the servers, or not as they left."""


class FleetPublisher:
    """Implements `paw_hpc.rollout.sglang.publish.Publisher`.

    A server that fails, or is late, is reported to the fleet, which starts it anew; the others are published
    to again without it. Where other weights arrived than were sent, that is tried once more and is an error
    then, which names the server and the tensor.

    Args:
        dtype: of the servers' weights.
        kv_heads: of the model.
        longest: prompt and response tokens that servers must take; checked before the first publication.
        give_order: says to the other processes that share the model what they take part in; None: there are
            none.
    """

    def __init__(
        self,
        loop: EventLoop,
        fleet: Fleet,
        path: PublishPath,
        weights: Weights,
        settings: PublishSection,
        *,
        dtype: torch.dtype,
        kv_heads: int,
        give_order: Callable[[Order], None] | None = None,
        longest: tuple[int, int] | None = None,
    ):
        self._loop, self._fleet, self._path, self._weights, self._settings = (
            loop,
            fleet,
            path,
            weights,
            settings,
        )
        self._dtype, self._kv_heads, self._give_order = dtype, kv_heads, give_order
        self._passes: Passes | None = None
        self._names: frozenset[str] = frozenset()
        self._longest = longest
        self._busy = False
        self._listening = give_order is None
        """Whether the other processes would take part in a pass now."""
        fleet.give_late_servers(self._bring_up)

    def publish(self, version: int) -> None:
        """See `Publisher.publish`. Generation is paused meanwhile; turns that it interrupts go on afterwards,
        with the new weights.

        Raises:
            PublishError: names the server and, where one differs, the tensor.
            FleetError: no server could be started.
        """
        self._busy, outcome = True, "publication failed"
        try:
            if self._longest is not None:
                self._loop.run(check_limits(self._fleet, *self._longest))
                self._longest = None
            self._loop.run(self._fleet.healthy(), serve=True)
            self._loop.run(self._fleet.hold(), serve=True)
            self._passes = Passes(self._weights, self._give_order, self._new_sample(version))
            servers = self._until_well(version)
            self._loop.run(self._fleet.proceed(version, servers))
            outcome = ""
        except Exception as error:
            outcome = str(error)
            self._fleet.give_up(error)
            raise
        finally:
            self._busy = False
            if self._give_order is not None:
                self._give_order(Ended(outcome))

    @contextmanager
    def while_players_play(self) -> Iterator[None]:
        """Inside, the other processes wait for passes: a server that comes back while episodes are played
        gets the weights from all of them."""
        self._listening = True
        try:
            yield
        finally:
            if self._give_order is not None:
                self._listening = False
                self._give_order(Ended())

    def release_memory(self) -> None:
        """Colocated servers give up their weights and caches until the next publication, and nothing is
        asked of them before it: no turn, no sign of life."""
        self._loop.run(self._fleet.healthy())
        self._loop.run(self._fleet.hold())
        self._loop.run(self._fleet.release_memory(RELEASED))

    def close(self) -> None:
        self._path.close()

    def _until_well(self, version: int) -> list[Server]:
        """Servers that were seen to have the weights. Raises PublishError."""
        told = ""
        for attempt in range(ATTEMPTS):
            servers = self._loop.run(self._alive(), serve=True)
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
        """Servers that answer now. One that died or froze unnoticed would hold up all others for the time
        limit of a transfer."""
        while True:
            servers = await self._fleet.healthy()
            versions = await each(
                [s.http.weight_version(self._fleet.settings.health_timeout_s) for s in servers]
            )
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
        assert self._passes is not None, "weights were published before"
        started = time.perf_counter()
        self._loop.run(self._fleet.take_back(servers, "weights"))
        try:
            self._path.deliver(servers, self._passes, version)
        finally:
            self._passes.finish()
        self._names = frozenset(self._passes.sample.names)
        self._loop.run(self._fleet.take_back(servers, "kv_cache"))
        self._loop.run(all_well([self._check(s, version) for s in servers]))
        _log.info(
            "version %d is on %d servers after %.2f s", version, len(servers), time.perf_counter() - started
        )

    def _new_sample(self, version: int) -> WeightSample:
        server, count = self._fleet.servers[0], self._settings.sampled_tensors
        checksum = gpu_checksum if server.device == "cuda" else cpu_checksum
        return WeightSample(
            version,
            None if count == "all" else count,
            server.ranks,
            self._dtype,
            self._kv_heads,
            checksum,
            self._names,
        )

    async def _check(self, server: Server, version: int) -> None:
        """Cache flushed, version told, checksums of the sampled tensors equal. Raises ServerFault."""
        assert self._passes is not None
        sample = self._passes.sample
        await server.http.flush_cache(min(CONTROL_TIMEOUT_S, self._settings.timeout_s))
        found = await server.http.weight_version(CONTROL_TIMEOUT_S)
        if found != str(version):
            raise _Mismatch(server.name, f"it serves weights {found!r} after version {version} was published")
        ranks = await server.http.checksums(sample.unwanted(), self._settings.timeout_s)
        if ranks is None:
            _log.warning("%s: its release reports no checksums; the version alone was checked", server.name)
            return
        if len(ranks) != server.ranks:
            raise _Mismatch(
                server.name,
                f"it reports the checksums of {len(ranks)} ranks, expected {server.ranks} "
                "(rollout.fleet.tensor_parallel)",
            )
        for tensor, expected in sample.expected.items():
            for rank, (holds, wanted) in enumerate(zip(ranks, expected, strict=True)):
                if tensor not in holds:
                    raise _Mismatch(server.name, f"it has no tensor {tensor}, which was published")
                if holds[tensor] != wanted:
                    raise _Mismatch(
                        server.name,
                        f"tensor {tensor} (rank {rank}) has checksum {holds[tensor]}, published was {wanted}",
                    )

    async def _bring_up(self, server: Server) -> int | None:
        """The current weights for one server that comes late (see `Fleet.bring_up`). Raises ServerFault."""
        if isinstance(self._path, DiskPath):
            async with self._fleet.publishing:
                version = self._fleet.version
                if server.state != "waiting" or version is None:  # or it was published to meanwhile
                    return None
                await self._path.load([server], version)
                await self._check(server, version)
                return version
        return await self._loop.in_waiting_thread(lambda: self._hand_over(server))

    def _hand_over(self, server: Server) -> int | None:
        """In the trainer's thread, while that waits for episodes: its weights are those that were published
        last."""
        # About to publish, its weights are newer.
        if self._busy or not self._listening or self._fleet.version is None:
            return None
        if self._fleet.publishing.locked():  # since memory was released: by this thread
            return None
        self._loop.run(self._fleet.publishing.acquire())
        try:
            self._to([server], self._fleet.version)
            return self._fleet.version
        finally:
            self._loop.run(_release(self._fleet.publishing))


async def _release(lock: asyncio.Lock) -> None:
    lock.release()


class _Mismatch(ServerFault):
    """The server works, and has other weights than were sent."""
