"""The life of one server of a fleet: started, watched, ended and started anew when it dies or hangs.

A server is *starting* until it is healthy, *waiting* until it has been given the current weights, *ready*, or
*gone* for good. Only ready ones play: one that missed a version, or came back without weights, cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from paw_hpc.recipe import FleetSection
from paw_hpc.rollout.sglang.client import Locked, ServerClient, ServerFault, each
from paw_hpc.rollout.sglang.process import Launch, ServerProcess
from paw_hpc.system.errors import UserError

_log = logging.getLogger(__name__)
POLL_S = 0.5
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
    released: frozenset[str] = frozenset()
    """What of its memory it has given to the trainer (`rollout.fleet.colocated`; SGLang's words): with
    anything here, it can generate nothing."""
    fault: str = ""
    """Why it was last given up on."""
    requests: set[asyncio.Task[Any]] = field(default_factory=set)
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def http(self) -> ServerClient:
        assert self.client is not None, "a server has a client once it has been started"
        return self.client

    @property
    def up(self) -> bool:
        return self.state in ("waiting", "ready")


@dataclass(eq=False)
class Common:
    """What the parts of a fleet share: its servers, the version they should have, and word of every
    change."""

    settings: FleetSection
    launch: Launch | None
    servers: list[Server]
    version: int | None = None
    """Of the weights that ready servers have; None before the first publication."""
    bring_up: Callable[[Server], Awaitable[int | None]] | None = None
    """Gives one waiting server the current weights, holding `publishing`; says their version. None: the
    server waits for the next publication."""
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock)
    failure: FleetError | None = None
    """Why nobody may play any more."""
    session: aiohttp.ClientSession | None = None
    counts: dict[str, float] = field(default_factory=dict)
    listeners: list[Callable[[], None]] = field(default_factory=list)
    """Told of every change."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, server: Server, state: State) -> None:
        server.state = state
        if server.up:
            server.fault = ""
        self.wake()

    def report(self, server: Server, fault: ServerFault) -> None:
        """Somebody found it unusable: it is ended and started anew."""
        if server.up and not server.failed.is_set():
            server.fault = fault.reason
            server.failed.set()
            self.become(server, "starting")

    def count(self, name: str, by: float = 1) -> None:
        """One more of an event that the fleet's metrics report."""
        self.counts[name] = self.counts.get(name, 0.0) + by

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self.listeners:
            listener()

    async def change(self) -> None:
        await self._changed.wait()

    def raise_if_hopeless(self) -> None:
        if self.failure is not None:
            raise self.failure
        if all(s.state == "gone" for s in self.servers):
            raise FleetError("no server is left: " + "; ".join(f"{s.name}: {s.fault}" for s in self.servers))


class Keeper:
    """Keeps one server alive, from `keep` to its cancellation."""

    def __init__(self, server: Server, common: Common):
        self._server, self._common, self._settings = server, common, common.settings

    async def keep(self) -> None:
        """Start, hand over, watch, end, start anew: until it is given up."""
        server = self._server
        while server.state != "gone":
            try:
                try:
                    await self._begin()
                    server.came_up = time.monotonic()
                    self._common.become(server, "waiting")
                    await self._watch()
                except ServerFault as fault:
                    await self.lose(fault)
            except FleetError as error:
                self._common.failure = error
                self._common.become(server, "gone")
            except Exception as error:
                _log.exception("%s: its keeper failed", server.name)
                self._common.failure = FleetError(f"{server.name}: {type(error).__name__}: {error}")
                self._common.become(server, "gone")

    async def _begin(self) -> None:
        """Start it (again), and wait until it is healthy. Raises ServerFault, and FleetError where waiting is
        of no use."""
        server, session = self._server, self._common.session
        assert session is not None
        server.version, server.failed, server.starts = None, asyncio.Event(), server.starts + 1
        server.released = frozenset()
        deadline = time.monotonic() + self._settings.start_timeout_s
        if self._common.launch is None:
            server.client = ServerClient(server.name, server.name, session)
            # a trainer that died in a publication left it paused, and a paused server is not healthy
            with contextlib.suppress(ServerFault):
                await self._with_key(server.http.resume(self._settings.health_timeout_s))
        else:
            await self._start_process(self._common.launch, session)
        while True:
            if server.process is not None and server.process.status is not None:
                raise ServerFault(
                    server.name,
                    f"ended with status {server.process.status} while it "
                    f"started:\n{server.process.last_words()}",
                )
            with contextlib.suppress(ServerFault):
                if await server.http.healthy(timeout_s=min(30.0, self._settings.health_timeout_s)):
                    # everybody may ask for a server's health: that says nothing of the key
                    if self._common.launch is None:
                        await self._with_key(server.http.weight_version(self._settings.health_timeout_s))
                    return
            if time.monotonic() > deadline:
                words = f":\n{server.process.last_words()}" if server.process else ""
                raise ServerFault(
                    server.name, f"not healthy {self._settings.start_timeout_s:g} s after its start{words}"
                )
            await asyncio.sleep(POLL_S)

    async def _with_key(self, asked: Awaitable[Any]) -> None:
        """Of a server that somebody else started: ask it. Raises ServerFault, and FleetError where it wants
        another key."""
        try:
            await asked
        except Locked as fault:
            raise FleetError(str(fault)) from None

    async def _start_process(self, launch: Launch, session: aiohttp.ClientSession) -> None:
        server = self._server
        try:
            starting = ServerProcess.start(launch, server.index, server.starts)
            server.process = await asyncio.wait_for(starting, self._settings.start_timeout_s)
        except (OSError, TimeoutError) as error:
            raise ServerFault(
                server.name, f"cannot be started: {error or 'its supervisor says nothing'}"
            ) from None
        server.client = ServerClient(
            f"server {server.index} ({server.process.url})", server.process.url, session
        )
        server.name = server.client.name

    async def _watch(self) -> None:
        """Until it fails: its process ends, it stops answering, or somebody reports it. Raises
        ServerFault."""
        server = self._server
        jobs: list[Coroutine[Any, Any, Any]] = [server.failed.wait(), self._probe(), self._bring_up()]
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

    async def _probe(self) -> None:
        """Raises ServerFault once it has been silent for too long. Nothing is asked during a publication, or
        while its memory is the trainer's: a health check is a token that the server generates."""
        publishing, silent_since = self._common.publishing, time.monotonic()
        while True:
            await asyncio.sleep(self._settings.health_every_s)
            if publishing.locked():
                silent_since = time.monotonic()
                continue
            try:
                answered = await self._server.http.healthy(self._settings.health_timeout_s)
            except ServerFault:
                answered = False
            if answered or publishing.locked():
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since >= self._settings.health_timeout_s:
                raise ServerFault(
                    self._server.name, f"stuck: no sign of life for {time.monotonic() - silent_since:.0f} s"
                )

    async def _bring_up(self) -> None:
        """Give a server that comes late the current weights, as soon as they are known. Raises
        ServerFault."""
        server, common = self._server, self._common
        while True:
            if server.state == "waiting" and common.version is not None and common.bring_up is not None:
                server.version = await common.bring_up(server)
                if server.version == common.version and server.state == "waiting":
                    common.become(server, "ready")
            await common.change()

    async def lose(self, fault: ServerFault) -> None:
        """End what is left of it; its turns are played by others. Given up when it cannot come back."""
        server = self._server
        _log.warning("%s", fault)
        server.fault = fault.reason
        # before anything is waited for: its turns may be over elsewhere before its process is
        self._common.count("lost")
        self._common.become(server, "starting")
        for request in server.requests:
            request.cancel()
        if server.process is not None:
            await server.process.end()
            server.process = None
        # A first start that fails would fail again, unless another program took the port.
        hopeless = (
            server.came_up is None
            and self._common.launch is not None
            and "address already in use" not in fault.reason.lower()
        )
        if server.came_up is not None and time.monotonic() - server.came_up > self._settings.start_timeout_s:
            server.restarts = 0
        if hopeless or server.restarts >= self._settings.max_restarts:
            _log.error("%s: given up", server.name)
            self._common.become(server, "gone")
            return
        server.restarts += 1
        self._common.count("restarts")
