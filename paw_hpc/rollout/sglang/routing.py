"""Which server plays a turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from paw_hpc.rollout.sglang.client import ServerFault
from paw_hpc.rollout.sglang.lifecycle import Common, Server

LOPSIDED = 8
"""Turns by which the server that holds a prompt's beginning may be busier than the idlest one before affinity
gives way."""


class Routing:
    """Gives turns to servers that are ready, have the current weights, and have room.

    Args:
        common: of the fleet.
    """

    def __init__(self, common: Common):
        self._common = common
        self.open = False
        """Whether turns may begin."""
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._last_server: dict[int, Server] = {}
        common.listeners.append(self._wake)

    @contextlib.asynccontextmanager
    async def server_for(self, episode: int) -> AsyncIterator[Server]:
        """A ready server with room, for one turn of an episode; waits for one.

        Raises:
            FleetError: none is left.
        """
        while (server := self._choose(episode)) is None:
            self._common.raise_if_hopeless()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake(1)  # the place that this one was called for
                raise
        server.in_flight += 1
        if server.in_flight == 1:
            server.busy_s -= time.perf_counter()
        try:
            yield server
        finally:
            server.in_flight -= 1
            if server.in_flight == 0:
                server.busy_s += time.perf_counter()
            self._wake(1)

    async def ask(self, server: Server, request: Coroutine[Any, Any, Any]) -> Any:
        """The result of a request to `server`. Raises ServerFault at once when the server is lost
        meanwhile."""
        task = asyncio.ensure_future(request)
        server.requests.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                task.cancel()
                raise
            raise ServerFault(server.name, server.fault or "lost") from None
        finally:
            server.requests.discard(task)

    def forget(self, episode: int) -> None:
        """The episode has ended."""
        self._last_server.pop(episode, None)

    def _choose(self, episode: int) -> Server | None:
        if not self.open:
            return None
        version, settings = self._common.version, self._common.settings
        free = [
            s
            for s in self._common.servers
            if s.state == "ready" and s.version == version and s.in_flight < settings.concurrency
        ]
        if not free:
            return None
        chosen = min(free, key=lambda s: s.in_flight)
        if settings.routing == "prefix":
            last = self._last_server.get(episode)
            if last in free and last is not None and last.in_flight <= chosen.in_flight + LOPSIDED:
                chosen = last
            self._last_server[episode] = chosen
        return chosen

    def _wake(self, waiters: int | None = None) -> None:
        """Let turns that wait for a server look again: all, or as many as there is room for."""
        while self._waiters and (waiters is None or waiters > 0):
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
                waiters = None if waiters is None else waiters - 1
