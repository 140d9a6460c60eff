"""The trainer's side of the environment workers: sessions over Unix sockets, asynchronous per episode."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
from paw_hpc.system import children

LINE_LIMIT_BYTES = 1 << 24
SOCKET_PATH_BYTES = 100
"""The kernel's limit on the path of a Unix socket is 104 to 108 bytes."""
GRACE_S = 10.0
"""How much longer than a game's own time limit a worker may be silent before it counts as hung."""
POLL_S = 0.25
"""How often an `open` that waits for a free worker looks whether one has died."""
ENDING_S = 5.0
"""How long a worker may take to see that its socket is closed."""
DEATHS_PER_WORKER = 3
"""Worker deaths without a single game loaded in between, per worker, before the pool gives up."""


class EnvironmentPool:
    """Plays games in worker processes (see `paw_hpc.envs.worker`). Used from one event loop, from the first
    `open` to `close`.

    Args:
        factory: "module:callable" that builds an engine from a game in the worker.
        load: Task -> the game, as JSON-able data.
        workers: processes that load games; at most this many resets run at once. Episodes run in forks of
            their own.
        timeout_s: longest wait for one reset or step before the environment counts as failed.
        max_steps: an episode is done after this many steps.
        success_reward: reward of the step that wins, where an engine only says whether it is won.
    """

    def __init__(
        self,
        factory: str,
        load: Callable[[Task], Any],
        *,
        workers: int,
        timeout_s: float,
        max_steps: int,
        success_reward: float,
    ):
        self._factory, self._load = factory, load
        self._workers, self._timeout_s = workers, timeout_s
        self.max_steps, self.success_reward = max_steps, success_reward
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: asyncio.Queue[_Peer] = asyncio.Queue()
        self._peers: set[_Peer] = set()
        self._orders: set[asyncio.Task[None]] = set()
        self._arrivals: dict[tuple[str, int], asyncio.Future[_Peer]] = {}
        self._opened = 0
        self._deaths = 0

    async def open(self, task: Task, members: int) -> Sequence[PoolSession]:
        """Load and reset the task's game once and hand out one session per member.

        Raises:
            EnvironmentFailure: the game could not be loaded, or not in time; names the task.
        """
        game = self._load(task)
        await self._start()
        token = str(self._opened)
        self._opened += 1
        arrivals = {(token, m): asyncio.get_running_loop().create_future() for m in range(members)}
        self._arrivals.update(arrivals)
        # An order goes on when its `open` is cancelled: the worker is in the middle of it, and is free again
        # only when it has answered.
        order = asyncio.create_task(
            self._order({"token": token, "game": game, "members": members, "timeout_s": self._timeout_s})
        )
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)
        try:
            await asyncio.shield(order)
            peers = await asyncio.wait_for(asyncio.gather(*arrivals.values()), self._timeout_s)
        except BaseException as error:
            for future in arrivals.values():
                if not future.cancel() and not future.cancelled():
                    future.result().close()
            if isinstance(error, EnvironmentFailure | TimeoutError):
                raise EnvironmentFailure(
                    f"{task.task_id}: {str(error) or f'no answer in {self._timeout_s:g} s'}"
                ) from None
            raise
        finally:
            for key in arrivals:
                self._arrivals.pop(key, None)
        return [PoolSession(self, task, peer) for peer in peers]

    async def close(self) -> None:
        """End all workers and episodes that this pool started."""
        if self._server is None:
            return
        self._server.close()
        closing = [*self._orders, *(asyncio.ensure_future(peer.closed()) for peer in self._peers)]
        for order in self._orders:
            order.cancel()
        for peer in list(self._peers):
            peer.close()
        await asyncio.gather(*closing, return_exceptions=True)
        # Every process ends when its socket closes.
        await asyncio.gather(*(asyncio.to_thread(_end, process) for process in self._processes))
        self._processes, self._peers, self._idle = [], set(), asyncio.Queue()
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = self._server = None

    async def _start(self) -> None:
        async with self._starting:
            if self._server is not None:
                return
            self._folder = _socket_folder()
            self._path = str(Path(self._folder.name) / "s")
            self._server = await asyncio.start_unix_server(self._accept, self._path, limit=LINE_LIMIT_BYTES)
            for _ in range(self._workers):
                self._spawn()

    def _spawn(self) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "paw_hpc.envs.worker", self._path, self._factory]
        self._processes.append(
            subprocess.Popen(
                command, env={**os.environ, **one_thread}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        )

    async def _order(self, order: dict[str, Any]) -> None:
        """Have a game loaded by whichever worker is free next. A worker that died or hung over it is not put
        back."""
        worker = await self._free_worker()
        if (order["token"], 0) not in self._arrivals:  # given up while it waited for a worker
            self._idle.put_nowait(worker)
            return
        reply = await worker.ask(order, self._timeout_s + GRACE_S)
        self._idle.put_nowait(worker)
        self._deaths = 0
        if "error" in reply:
            raise EnvironmentFailure(" ".join(reply["error"].split()))

    async def _free_worker(self) -> _Peer:
        while True:
            self._replace_dead()
            try:
                worker = await asyncio.wait_for(self._idle.get(), POLL_S)
            except TimeoutError:
                continue  # perhaps because workers have died
            if not worker.gone:
                return worker
            worker.close()

    def _replace_dead(self) -> None:
        alive = [process for process in self._processes if process.poll() is None]
        dead, self._processes = len(self._processes) - len(alive), alive
        self._deaths += dead
        if self._deaths > DEATHS_PER_WORKER * self._workers:
            raise EnvironmentFailure(
                f"{self._deaths} environment workers have died without loading a game; see their errors above"
            )
        for _ in range(dead):
            self._spawn()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(reader, writer, self._peers)
        try:
            hello = await peer.receive(self._timeout_s)
        except EnvironmentFailure:
            peer.close()
            return
        if "worker" in hello:
            peer.pid = hello["worker"]
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
            raise EnvironmentFailure(
                f"{self._task.task_id}, step {self.steps + 1}, action {action!r}: {error}"
            ) from None
        self.steps += 1
        return self._state(reply)

    async def close(self) -> None:
        self._peer.close()

    def _state(self, reply: dict[str, Any], first: bool = False) -> EnvironmentState:
        if "won" not in reply:  # a state with a reward of its own
            own = EnvironmentState(**{**reply, "admissible": tuple(reply["admissible"])})
            return dataclasses.replace(own, done=own.done or self.steps >= self._pool.max_steps)
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
    """One socket of a worker or an episode process; in `register` as long as it is open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, register: set[_Peer]):
        self._reader, self._writer, self._register = reader, writer, register
        self.pid: int | None = None
        self.start: dict[str, Any] = {}
        register.add(self)

    @property
    def gone(self) -> bool:
        """Whether the process has closed its end."""
        return self._reader.at_eof()

    async def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        with contextlib.suppress(ConnectionError):  # then there is nothing to receive either
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
        return await self.receive(timeout_s)

    async def receive(self, timeout_s: float) -> dict[str, Any]:
        """Raises EnvironmentFailure, and ends the peer, when it is silent for too long, dead, or talks
        nonsense."""
        try:
            text = await asyncio.wait_for(self._reader.readline(), timeout_s)
        except TimeoutError:
            self._kill()
            raise EnvironmentFailure(f"no answer in {timeout_s:g} s") from None
        except ConnectionError:
            text = b""
        except ValueError:
            self._kill()
            raise EnvironmentFailure(f"an answer of more than {LINE_LIMIT_BYTES} bytes") from None
        if not text.endswith(b"\n"):
            self.close()
            raise EnvironmentFailure("the environment process has died")
        return json.loads(text)

    def close(self) -> None:
        self._register.discard(self)
        self._writer.close()

    async def closed(self) -> None:
        await self._writer.wait_closed()

    def _kill(self) -> None:
        """A hung process does not see its socket close."""
        self.close()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="paw-env-")
    if len(os.fsencode(folder.name)) + len("/s") > SOCKET_PATH_BYTES:
        folder.cleanup()
        folder = tempfile.TemporaryDirectory(prefix="paw-env-", dir="/tmp")
    return folder


def _end(process: subprocess.Popen[bytes]) -> None:
    if not children.wait(process, ENDING_S):
        process.kill()
        process.wait()
