"""A worker process that plays text games for a trainer: `python -m paw_hpc.envs.worker SOCKET
MODULE:FACTORY`.

The worker never holds a game for long. For each group it forks a *game process*, which loads and resets the
game once; that process forks one *episode process* per member, or is that itself where there is one. So all
members share the reset work (copy on write) and nobody's memory grows: a process ends with its episode. Each
episode process talks to the trainer over its own Unix socket, one JSON object per line, and ends when that
socket closes. A game process and its episodes are one process group, which the worker kills when the game
does not load in time and when the trainer has gone: so not even a hung game outlives the trainer.

`FACTORY(game)` builds an engine with `reset()` and `step(command)`, both returning (observation, admissible
commands, won), or an `EnvironmentState` with a reward of its own. Two methods are called where it has them:
`warm()` once in the worker, for what every later fork should inherit, and `share()` before several episodes
are forked, for work of the first step that a reset puts off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from paw_hpc.system.children import signal_group

Factory = Callable[[Any], Any]
COLLECT_S = 1.0
"""How often a worker without orders looks for games that have ended."""


class Line:
    """A socket that speaks one JSON object per line. Raises ConnectionError when the trainer has gone."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except FileNotFoundError:
            raise ConnectionError(path) from None
        self._file = self._socket.makefile("r", encoding="utf-8")

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """None: the trainer has closed the socket."""
        text = self._file.readline()
        return json.loads(text) if text.endswith("\n") else None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def main(path: str, factory_name: str) -> None:
    # When to stop is the trainer's business, and a signal may reach every process of a job: it closes the
    # sockets when it has saved its work.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    module, _, attribute = factory_name.partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    with contextlib.suppress(ConnectionError):  # the trainer has gone
        _serve(path, factory, Line(path))


def _serve(path: str, factory: Factory, control: Line) -> None:
    games: set[int] = set()
    warm = False
    try:
        control.send({"worker": os.getpid()})
        while (order := _next_order(control, games)) is not None:
            reply = _open(path, order, factory, control, games)
            control.send(reply)
            _reap(games)
            if not warm and "ready" in reply:
                # Parse caches filled here are inherited by every later fork. Only a game that has just loaded
                # elsewhere is let into this process.
                engine = factory(order["game"])
                engine.reset()
                if hasattr(engine, "warm"):
                    engine.warm()
                del engine
                gc.collect()
                gc.freeze()
                warm = True
    finally:
        for game in games:
            signal_group(game, signal.SIGKILL)
        # a trainer that was killed leaves its socket, and the folder that it made for it
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))


def _next_order(control: Line, games: set[int]) -> dict[str, Any] | None:
    """Games that end meanwhile are collected, so that none stays behind as a zombie when nobody opens
    another."""
    while games and not select.select([control.fileno()], [], [], COLLECT_S)[0]:
        _reap(games)
    return control.receive()


def _open(
    path: str, order: dict[str, Any], factory: Factory, control: Line, games: set[int]
) -> dict[str, Any]:
    """Fork the game process of one group and wait until its members are being served, it has failed, or its
    time is up."""
    reader, writer = os.pipe()
    game = os.fork()
    if game == 0:
        os.setpgid(0, 0)
        os.close(reader)
        control.close()
        _as_process(lambda: _game_process(path, order, factory, writer))
    # whichever of the two processes comes first
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(game, game)
    games.add(game)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        # Before it is answered the trainer has nothing to say: a readable control line means that it has
        # gone.
        ready, _, _ = select.select([reader, control.fileno()], [], [], order["timeout_s"])
        if reader in ready:
            text = pipe.readline()
            return json.loads(text) if text else {"error": "the game process died while it loaded the game"}
    signal_group(game, signal.SIGKILL)
    return {"error": f"the game did not load in {order['timeout_s']:g} s"}


def _game_process(path: str, order: dict[str, Any], factory: Factory, writer: int) -> None:
    try:
        engine = factory(order["game"])
        start = _as_message(engine.reset())
        if order["members"] == 1:  # nobody to share with: it is the episode process itself
            _tell(writer, {"ready": order["token"]})
            os.close(writer)
            return _episode_process(path, order["token"], 0, engine, start)
        if hasattr(engine, "share"):
            engine.share()
        for member in range(order["members"]):
            if os.fork() == 0:
                os.close(writer)
                _as_process(lambda m=member: _episode_process(path, order["token"], m, engine, start))  # type: ignore[misc]
    except Exception as error:
        _tell(writer, {"error": f"{type(error).__name__}: {error}"})
        raise
    _tell(writer, {"ready": order["token"]})
    os.close(writer)
    for _ in range(order["members"]):
        os.wait()


def _episode_process(path: str, token: str, member: int, engine: Any, start: dict[str, Any]) -> None:
    line = Line(path)
    line.send({"token": token, "member": member, "pid": os.getpid(), "state": start})
    while (message := line.receive()) is not None:
        line.send(_as_message(engine.step(message["action"])))


def _as_message(state: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.asdict(state)
    observation, admissible, won = state
    return {"observation": observation, "admissible": admissible, "won": won}


def _as_process(job: Callable[[], None]) -> None:
    """Run `job` as all that this forked process does; never returns."""
    status = 1
    try:
        job()
        status = 0
    except ConnectionError:
        pass  # The trainer has gone: nobody is left to be told.
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _tell(writer: int, message: dict[str, Any]) -> None:
    os.write(writer, json.dumps(message).encode() + b"\n")


def _reap(games: set[int]) -> None:
    """Collect game processes that have ended, without waiting for those that live."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        games.discard(pid)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
