"""The servers of a run together: which of them can be published to, and how weights change under those that
play.

The life of each is in `lifecycle.py`, who plays which turn in `routing.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from paw_hpc.recipe import FleetSection
from paw_hpc.rollout.sglang.client import ServerFault, all_well, each, http_session
from paw_hpc.rollout.sglang.lifecycle import Common, FleetError, Keeper, Server
from paw_hpc.rollout.sglang.process import Launch, device_of
from paw_hpc.rollout.sglang.routing import Routing

PAUSE_S = 5.0
"""How long a publication waits for interrupted turns to come back."""
_COUNTS = ("lost", "restarts", "missed_versions", "retried_turns", "paused_turns", "stale_answers")


class Fleet:
    """Used inside one event loop, from `start` to `close`.

    Args:
        settings: the recipe's `rollout.fleet`.
        launch: how to start servers; None with `settings.addresses`.
        key: of the servers; None: they have none.
    """

    def __init__(self, settings: FleetSection, launch: Launch | None, key: str | None = None):
        self.settings, self._key = settings, key
        names = settings.addresses or [f"server {i}" for i in range(settings.servers)]
        self.servers = [
            Server(i, name, ranks=settings.tensor_parallel, device=device_of(settings))
            for i, name in enumerate(names)
        ]
        self._common = Common(settings, launch, self.servers)
        self.routing = Routing(self._common)
        self.report, self.count = self._common.report, self._common.count
        self._keepers: list[asyncio.Task[None]] = []
        self._holds = False
        """Whether `publishing` is ours, from `hold` to `proceed`."""
        self._since = time.perf_counter()

    @property
    def version(self) -> int | None:
        """Of the weights that ready servers have; None before the first publication."""
        return self._common.version

    @property
    def publishing(self) -> asyncio.Lock:
        """Held while weights change, and while servers have none."""
        return self._common.publishing

    def give_late_servers(self, bring_up: Callable[[Server], Awaitable[int | None]]) -> None:
        """How a server that comes late gets the current weights (see `Common.bring_up`)."""
        self._common.bring_up = bring_up

    async def start(self) -> None:
        """Begin to start all servers; `healthy` waits for them."""
        self._common.session = http_session(self._key)
        self._since = time.perf_counter()
        self._keepers = [
            asyncio.create_task(Keeper(server, self._common).keep(), name=server.name)
            for server in self.servers
        ]

    async def close(self) -> None:
        """End the servers that this fleet started, all of their processes."""
        for keeper in self._keepers:
            keeper.cancel()
        await each(self._keepers)
        await each([server.process.end() for server in self.servers if server.process is not None])
        if self._common.session is not None:
            await self._common.session.close()

    async def healthy(self) -> list[Server]:
        """Servers that can be published to: all that are up, once every one is up or has failed to come up.

        Raises:
            FleetError: none is up and none will be; with the last lines of the log of the one that failed.
        """
        while any(s.state == "starting" and not s.fault for s in self.servers) or not (up := self._up()):
            self._common.raise_if_hopeless()
            await self._common.change()
        return up

    def _up(self) -> list[Server]:
        return [s for s in self.servers if s.up]

    async def hold(self) -> None:
        """No turn begins, and those that are running come back as far as they are: weights may change. Until
        `proceed`. Holds on where it holds already."""
        if self._holds:
            return
        await self.publishing.acquire()
        self._holds = True
        self.routing.open = False
        await self._all_of(self._up(), lambda s: s.http.pause(self.settings.health_timeout_s))
        # A request that reaches a server after the pause has not begun there: it waits at the door, and will
        # be played with the new weights.
        deadline = time.monotonic() + PAUSE_S
        while any(s.in_flight for s in self.servers) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def proceed(self, version: int, published: list[Server]) -> None:
        """These servers were seen to have `version`; play goes on with them. Others wait for theirs."""
        self._common.version = version
        await self._all_of(published, lambda s: s.http.resume(self.settings.health_timeout_s))
        for server in self._up():
            reached = server in published
            if not reached and server.state == "ready":
                self.count("missed_versions")
            server.version = version if reached else server.version
            server.state = "ready" if reached else "waiting"
        self.routing.open = True
        self._let_go()
        self._common.wake()

    def give_up(self, error: Exception) -> None:
        """A publication failed for good: nobody may play on with older weights."""
        self._common.failure = FleetError(f"weights were not published: {error}")
        if self._holds:
            self._let_go()
        self._common.wake()

    def _let_go(self) -> None:
        self._holds = False
        self.publishing.release()

    async def release_memory(self, tags: Sequence[str]) -> None:
        """Idle servers give up what `tags` name (SGLang's words), until `take_back`. A server that fails at
        it is started anew."""

        async def release(server: Server) -> None:
            # What paused servers were about to do may not be over yet, such as a health check's token:
            # flushing waits for it. A scheduler that is told to release while it generates ends.
            await server.http.flush_cache()
            await server.http.release_memory(tags)
            server.released = frozenset(tags)

        await self._all_of(self._up(), release)

    async def take_back(self, servers: Sequence[Server], tag: str) -> None:
        """Give servers this part of their memory, where they have released it. Each does so once, whatever
        becomes of the others: SGLang's scheduler ends when it is told twice. Raises ServerFault."""

        async def one(server: Server) -> None:
            await server.http.resume_memory([tag])
            server.released -= {tag}

        await all_well([one(server) for server in servers if tag in server.released])

    async def _all_of(self, servers: list[Server], ask: Callable[[Server], Coroutine[Any, Any, Any]]) -> None:
        for server, outcome in zip(servers, await each([ask(s) for s in servers]), strict=True):
            if isinstance(outcome, ServerFault):
                self.report(server, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome

    def drain_metrics(self) -> dict[str, float]:
        """What has happened since the last call."""
        now = time.perf_counter()
        busy = [s.busy_s + (now if s.in_flight else 0.0) for s in self.servers]
        elapsed, self._since = now - self._since, now
        for server in self.servers:
            server.busy_s = -now if server.in_flight else 0.0
        counts, self._common.counts = self._common.counts, {}
        return {f"fleet/{name}": counts.get(name, 0.0) for name in _COUNTS} | {
            "rollout/prefill_tokens": counts.get("prefill_tokens", 0.0),
            "rollout/kept_tokens": counts.get("kept_tokens", 0.0),
            "fleet/ready": float(sum(s.state == "ready" for s in self.servers)),
            "time/server_idle_share": 1.0 - sum(busy) / (len(busy) * elapsed) if elapsed > 0 else 0.0,
        }
