"""The servers of a run: started, watched, replaced when they die or hang, and only ever used with the current weights.

A server is *starting* until it is healthy, *waiting* until it has been given the current weights, *ready*, or *gone* for good. Only ready ones play:
one that missed a version, or came back without weights, cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from paw_hpc.errors import UserError
from paw_hpc.recipe import FleetSection
from paw_hpc.rollout.launch import Launch, ServerProcess, device_of
from paw_hpc.rollout.server import ServerClient, ServerFault, each, http_session

_log = logging.getLogger(__name__)
POLL_S = 0.5
PAUSE_S = 5.0
"""How long a publication waits for interrupted turns to come back."""
LOPSIDED = 8
"""Turns by which the server that holds a prompt's beginning may be busier than the idlest one before affinity gives way."""
State = Literal["starting", "waiting", "ready", "gone"]


class FleetError(UserError):
    """No server can play, and none will."""


@dataclass(eq=False)
class Server:
    """One place of the fleet; the process behind it may change."""

    index: int
    name: str
    state: State = "starting"
    version: int | None = None
    """Of the weights that it was seen to serve; None: unknown."""
    client: ServerClient | None = None
    process: ServerProcess | None = None
    """None: somebody else started it."""
    ranks: int = 1
    """Tensor-parallel ranks."""
    device: str = "cpu"
    in_flight: int = 0
    busy_s: float = 0.0
    starts: int = 0
    restarts: int = 0
    """In a row, without having been up for long."""
    came_up: float | None = None
    """When it was last found healthy (monotonic seconds); None: never."""
    fault: str = ""
    """Why it was last given up on."""
    requests: set[asyncio.Task[Any]] = field(default_factory=set)
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def http(self) -> ServerClient:
        assert self.client is not None, "a server has a client once it has been started"
        return self.client


class Fleet:
    """Used inside one event loop, from `start` to `close`.

    Args:
        settings: the recipe's `rollout.fleet`.
        launch: how to start servers; None with `settings.addresses`.
    """

    def __init__(self, settings: FleetSection, launch: Launch | None):
        self.settings, self._launch = settings, launch
        names = settings.addresses or [f"server {i}" for i in range(settings.servers)]
        self.servers = [Server(i, name, ranks=settings.tensor_parallel, device=device_of(settings)) for i, name in enumerate(names)]
        self.version: int | None = None
        """Of the weights that ready servers have; None before the first publication."""
        self.bring_up: Callable[[Server], Awaitable[int | None]] | None = None
        """Gives one waiting server the current weights, holding `publishing`; says their version. None: the server waits for the next publication."""
        self.publishing = asyncio.Lock()
        self._open = False
        self._failure: FleetError | None = None
        self._changed = asyncio.Event()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._keepers: list[asyncio.Task[None]] = []
        self._last_server: dict[int, Server] = {}
        self._counts: dict[str, float] = {}
        self._since = time.perf_counter()
        self._session: aiohttp.ClientSession | None = None

    # ---------------------------------------------------------------------------------------------------------------------- life of servers

    async def start(self) -> None:
        """Begin to start all servers; `healthy` waits for them."""
        self._session = http_session()
        self._since = time.perf_counter()
        self._keepers = [asyncio.create_task(self._keep(server), name=server.name) for server in self.servers]

    async def close(self) -> None:
        """End the servers that this fleet started, all of their processes."""
        for keeper in self._keepers:
            keeper.cancel()
        await each(self._keepers)
        await each([server.process.end() for server in self.servers if server.process is not None])
        if self._session is not None:
            await self._session.close()

    async def healthy(self) -> list[Server]:
        """Servers that can be published to: all that are up, once every one is up or has failed to come up.

        Raises:
            FleetError: none is up and none will be; with the last lines of the log of the one that failed.
        """
        while any(s.state == "starting" and not s.fault for s in self.servers) or not (up := self._up()):
            self._raise_if_hopeless()
            await self._change()
        return up

    def _up(self) -> list[Server]:
        return [s for s in self.servers if s.state in ("waiting", "ready")]

    async def _keep(self, server: Server) -> None:
        """The life of one place: start, hand over, watch, end, start anew."""
        while server.state != "gone":
            try:
                try:
                    await self._begin(server)
                    server.came_up = time.monotonic()
                    self._become(server, "waiting")
                    await self._watch(server)
                except ServerFault as fault:
                    await self._lose(server, fault)
            except Exception as error:
                _log.exception("%s: its keeper failed", server.name)
                self._failure = FleetError(f"{server.name}: {type(error).__name__}: {error}")
                self._become(server, "gone")

    async def _begin(self, server: Server) -> None:
        """Start it (again), and wait until it is healthy. Raises ServerFault."""
        assert self._session is not None
        server.version, server.failed, server.starts = None, asyncio.Event(), server.starts + 1
        deadline = time.monotonic() + self.settings.start_timeout_s
        if self._launch is None:
            server.client = ServerClient(server.name, server.name, self._session)
            with contextlib.suppress(ServerFault):  # a trainer that died in a publication left it paused, and a paused server is not healthy
                await server.http.resume(self.settings.health_timeout_s)
        else:
            try:
                starting = ServerProcess.start(self._launch, server.index, server.starts)
                server.process = await asyncio.wait_for(starting, self.settings.start_timeout_s)
            except (OSError, TimeoutError) as error:
                raise ServerFault(server.name, f"cannot be started: {error or 'its supervisor says nothing'}") from None
            server.client = ServerClient(f"server {server.index} ({server.process.url})", server.process.url, self._session)
            server.name = server.client.name
        while True:
            if server.process is not None and server.process.status is not None:
                raise ServerFault(server.name, f"ended with status {server.process.status} while it started:\n{server.process.last_words()}")
            with contextlib.suppress(ServerFault):
                if await server.http.healthy(timeout_s=min(30.0, self.settings.health_timeout_s)):
                    return
            if time.monotonic() > deadline:
                words = f":\n{server.process.last_words()}" if server.process else ""
                raise ServerFault(server.name, f"not healthy {self.settings.start_timeout_s:g} s after its start{words}")
            await asyncio.sleep(POLL_S)

    async def _watch(self, server: Server) -> None:
        """Until it fails: its process ends, it stops answering, or somebody reports it. Raises ServerFault."""
        jobs: list[Coroutine[Any, Any, Any]] = [server.failed.wait(), self._probe(server), self._bring_up(server)]
        jobs += [server.process.ended()] if server.process is not None else []
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks[1:3]:
                if task.done():
                    task.result()
            if server.failed.is_set():
                raise ServerFault(server.name, server.fault)
            status = server.process.status if server.process is not None else None
            raise ServerFault(server.name, f"its process ended with status {status}")
        finally:
            for task in tasks:
                task.cancel()
            await each(tasks)

    async def _probe(self, server: Server) -> None:
        """Raises ServerFault once it has been silent for too long. Nothing is asked during a publication: a paused server generates nothing."""
        silent_since = time.monotonic()
        while True:
            await asyncio.sleep(self.settings.health_every_s)
            if self.publishing.locked():
                silent_since = time.monotonic()
                continue
            try:
                answered = await server.http.healthy(self.settings.health_timeout_s)
            except ServerFault:
                answered = False
            if answered or self.publishing.locked():
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since >= self.settings.health_timeout_s:
                raise ServerFault(server.name, f"stuck: no sign of life for {time.monotonic() - silent_since:.0f} s")

    async def _bring_up(self, server: Server) -> None:
        """Give a server that comes late the current weights, as soon as they are known. Raises ServerFault."""
        while True:
            if server.state == "waiting" and self.version is not None and self.bring_up is not None:
                server.version = await self.bring_up(server)
                if server.version == self.version and server.state == "waiting":
                    self._become(server, "ready")
            await self._change()

    async def _lose(self, server: Server, fault: ServerFault) -> None:
        """End what is left of it; its turns are played by others. Given up when it cannot come back."""
        _log.warning("%s", fault)
        server.fault = fault.reason
        self.count("lost")  # before anything is waited for: its turns may be over elsewhere before its process is
        self._become(server, "starting")
        for request in server.requests:
            request.cancel()
        if server.process is not None:
            await server.process.end()
            server.process = None
        # A first start that fails would fail again, unless another program took the port.
        hopeless = server.came_up is None and self._launch is not None and "address already in use" not in fault.reason.lower()
        if server.came_up is not None and time.monotonic() - server.came_up > self.settings.start_timeout_s:
            server.restarts = 0
        if hopeless or server.restarts >= self.settings.max_restarts:
            _log.error("%s: given up", server.name)
            self._become(server, "gone")
            return
        server.restarts += 1
        self.count("restarts")

    def report(self, server: Server, fault: ServerFault) -> None:
        """Somebody found it unusable: it is ended and started anew."""
        if server.state in ("waiting", "ready") and not server.failed.is_set():
            server.fault = fault.reason
            server.state = "starting"
            server.failed.set()
            self._wake()

    def _become(self, server: Server, state: State) -> None:
        server.state = state
        if state in ("waiting", "ready"):
            server.fault = ""
        self._wake()

    def _raise_if_hopeless(self) -> None:
        if self._failure is not None:
            raise self._failure
        if all(s.state == "gone" for s in self.servers):
            raise FleetError("no server is left: " + "; ".join(f"{s.name}: {s.fault}" for s in self.servers))

    # ------------------------------------------------------------------------------------------------------------------------------- turns

    @contextlib.asynccontextmanager
    async def server_for(self, episode: int) -> AsyncIterator[Server]:
        """A ready server with room, for one turn of an episode; waits for one.

        Raises:
            FleetError: none is left.
        """
        while (server := self._choose(episode)) is None:
            self._raise_if_hopeless()
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
        """The result of a request to `server`. Raises ServerFault at once when the server is lost meanwhile."""
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

    def _choose(self, episode: int) -> Server | None:
        if not self._open:
            return None
        free = [s for s in self.servers if s.state == "ready" and s.version == self.version and s.in_flight < self.settings.concurrency]
        if not free:
            return None
        chosen = min(free, key=lambda s: s.in_flight)
        if self.settings.routing == "prefix":
            last = self._last_server.get(episode)
            if last in free and last is not None and last.in_flight <= chosen.in_flight + LOPSIDED:
                chosen = last
            self._last_server[episode] = chosen
        return chosen

    def forget(self, episode: int) -> None:
        """The episode has ended."""
        self._last_server.pop(episode, None)

    # ------------------------------------------------------------------------------------------------------------------------- publication

    async def hold(self) -> None:
        """No turn begins, and those that are running come back as far as they are: weights may change. Until `proceed`."""
        await self.publishing.acquire()
        self._open = False
        await self._all_of(self._up(), lambda s: s.http.pause(self.settings.health_timeout_s))
        # A request that reaches a server after the pause has not begun there: it waits at the door, and will be played with the new weights.
        deadline = time.monotonic() + PAUSE_S
        while any(s.in_flight for s in self.servers) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def proceed(self, version: int, published: list[Server]) -> None:
        """These servers were seen to have `version`; play goes on with them. Others wait for theirs."""
        self.version = version
        await self._all_of(published, lambda s: s.http.resume(self.settings.health_timeout_s))
        for server in self._up():
            reached = server in published
            if not reached and server.state == "ready":
                self.count("missed_versions")
            server.version = version if reached else server.version
            server.state = "ready" if reached else "waiting"
        self._open = True
        self.publishing.release()
        self._wake()

    def give_up(self, error: Exception) -> None:
        """A publication failed for good: nobody may play on with older weights."""
        self._failure = FleetError(f"weights were not published: {error}")
        if self.publishing.locked():
            self.publishing.release()
        self._wake()

    async def _all_of(self, servers: list[Server], ask: Callable[[Server], Coroutine[Any, Any, Any]]) -> None:
        for server, outcome in zip(servers, await each([ask(s) for s in servers]), strict=True):
            if isinstance(outcome, ServerFault):
                self.report(server, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome

    # ------------------------------------------------------------------------------------------------------------------------------ signals

    def _wake(self, waiters: int | None = None) -> None:
        """Let those who wait look again: everybody, or as many turns as there is room for."""
        if waiters is None:
            self._changed.set()
            self._changed = asyncio.Event()
        while self._waiters and (waiters is None or waiters > 0):
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
                waiters = None if waiters is None else waiters - 1

    async def _change(self) -> None:
        await self._changed.wait()

    def count(self, name: str, by: float = 1) -> None:
        """One more of an event that `drain_metrics` reports."""
        self._counts[name] = self._counts.get(name, 0.0) + by

    def drain_metrics(self) -> dict[str, float]:
        """What has happened since the last call."""
        now = time.perf_counter()
        busy = [s.busy_s + (now if s.in_flight else 0.0) for s in self.servers]
        elapsed, self._since = now - self._since, now
        for server in self.servers:
            server.busy_s = -now if server.in_flight else 0.0
        counts, self._counts = self._counts, {}
        names = ("lost", "restarts", "missed_versions", "retried_turns", "paused_turns", "stale_answers")
        return {f"fleet/{name}": counts.get(name, 0.0) for name in names} | {
            "fleet/ready": float(sum(s.state == "ready" for s in self.servers)),
            "time/server_idle_share": 1.0 - sum(busy) / (len(busy) * elapsed) if elapsed > 0 else 0.0,
        }
