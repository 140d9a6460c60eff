"""The trainer's side of the environment workers: sessions over Unix sockets, asynchronous per episode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState, Task

LINE_LIMIT_BYTES = 1 << 24


class EnvironmentPool:
    """Plays games in worker processes (see `paw_hpc.envs.worker`).

    Args:
        factory: "module:callable" that builds an engine from a game in the worker.
        load: Task -> the game, as JSON-able data.
        workers: processes that load games; at most this many resets run at once. Episodes run in forks of their own.
        timeout_s: longest wait for one reset or step before the environment counts as failed.
        max_steps: an episode is done after this many steps.
        success_reward: reward of the step that wins.
    """

    def __init__(self, factory: str, load: Callable[[Task], Any], *, workers: int, timeout_s: float, max_steps: int, success_reward: float):
        self._factory, self._load = factory, load
        self._workers, self._timeout_s = workers, timeout_s
        self.max_steps, self.success_reward = max_steps, success_reward
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: asyncio.Server | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: asyncio.Queue[_Peer] = asyncio.Queue()
        self._arrivals: dict[tuple[str, int], asyncio.Future[_Peer]] = {}
        self._opened = 0
        self._dead_workers = 0

    async def open(self, task: Task, members: int) -> Sequence[PoolSession]:
        """Load and reset the task's game once and hand out one session per member.

        Raises:
            EnvironmentFailure: the game could not be loaded, or not in time.
        """
        await self._start()
        game = self._load(task)
        token = f"{self._opened}"
        self._opened += 1
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(members)]
        self._arrivals.update({(token, m): future for m, future in enumerate(futures)})
        worker = await self._idle.get()
        try:
            reply = await worker.ask({"token": token, "game": game, "members": members}, self._timeout_s)
            if "error" in reply:
                raise EnvironmentFailure(f"{task.task_id}: {reply['error'].strip().splitlines()[-1]}")
            self._idle.put_nowait(worker)
            peers = await asyncio.wait_for(asyncio.gather(*futures), self._timeout_s)
        except (EnvironmentFailure, TimeoutError) as error:
            for m, future in enumerate(futures):
                self._arrivals.pop((token, m), None)
                if future.done() and not future.cancelled():
                    future.result().close()
            await self._replace_if_dead(worker)
            raise EnvironmentFailure(f"{task.task_id}: {error or 'no answer in ' + str(self._timeout_s) + ' s'}") from None
        return [PoolSession(self, task, peer) for peer in peers]

    async def close(self) -> None:
        """End all workers and episodes that this pool started."""
        if self._server is not None:
            self._server.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        self._processes = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = self._server = None

    async def _start(self) -> None:
        if self._server is not None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="paw-env-")
        self._path = str(Path(self._folder.name) / "s")
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE_LIMIT_BYTES)
        for _ in range(self._workers):
            self._spawn()

    def _spawn(self) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "paw_hpc.envs.worker", self._path, self._factory]
        self._processes.append(subprocess.Popen(command, env={**os.environ, **one_thread}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))

    async def _replace_if_dead(self, worker: _Peer) -> None:
        if worker.alive:
            if worker not in self._idle._queue:  # type: ignore[attr-defined]
                self._idle.put_nowait(worker)
            return
        worker.close()
        self._dead_workers += 1
        if self._dead_workers > 3 * self._workers:
            raise EnvironmentFailure(f"{self._dead_workers} environment workers have died; see their errors above")
        self._spawn()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(reader, writer)
        try:
            hello = await peer.receive(self._timeout_s)
        except EnvironmentFailure:
            peer.close()
            return
        if "worker" in hello:
            self._idle.put_nowait(peer)
            return
        peer.pid, peer.start = hello["pid"], hello["state"]
        future = self._arrivals.pop((hello["token"], hello["member"]), None)
        if future is None or future.done():
            peer.close()
        else:
            future.set_result(peer)


class PoolSession:
    """One live episode. Implements `paw_hpc.envs.base.Session`."""

    def __init__(self, pool: EnvironmentPool, task: Task, peer: _Peer):
        self._pool, self._task, self._peer = pool, task, peer
        self.steps = 0

    async def reset(self) -> EnvironmentState:
        """The state that the shared reset produced."""
        return self._state(self._peer.start, first=True)

    async def step(self, action: str) -> EnvironmentState:
        try:
            reply = await self._peer.ask({"action": action}, self._pool._timeout_s)
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"{self._task.task_id}, step {self.steps + 1}, action {action!r}: {error}") from None
        self.steps += 1
        return self._state(reply)

    async def close(self) -> None:
        self._peer.close()

    def _state(self, reply: dict[str, Any], first: bool = False) -> EnvironmentState:
        won = bool(reply["won"]) and not first
        return EnvironmentState(
            observation=reply["observation"].strip(),
            admissible=tuple(reply["admissible"]),
            reward=self._pool.success_reward if won else 0.0,
            done=won or self.steps >= self._pool.max_steps,
            success=won,
            score=float(won),
        )


class _Peer:
    """One socket of a worker or an episode process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self.alive = True
        self.pid: int | None = None
        self.start: dict[str, Any] = {}

    async def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
        except ConnectionError:
            self.alive = False
            raise EnvironmentFailure("the environment process has died") from None
        return await self.receive(timeout_s)

    async def receive(self, timeout_s: float) -> dict[str, Any]:
        try:
            text = await asyncio.wait_for(self._reader.readline(), timeout_s)
        except TimeoutError:
            self.alive = False
            self._kill()
            raise EnvironmentFailure(f"no answer in {timeout_s:g} s") from None
        except (ConnectionError, ValueError):
            text = b""
        if not text.endswith(b"\n"):
            self.alive = False
            raise EnvironmentFailure("the environment process has died")
        return json.loads(text)

    def close(self) -> None:
        self._writer.close()

    def _kill(self) -> None:
        """A hung episode process does not see its socket close."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
