"""A worker process that plays text games for a trainer: `python -m paw_hpc.envs.worker SOCKET MODULE:FACTORY`.

The worker never holds a game for long. For each group it forks a *game process*, which loads and resets the game once; that process forks one
*episode process* per member, so all members share the reset work (copy on write) and nobody's memory grows: a process ends with its episode. Each
episode process talks to the trainer over its own Unix socket, one JSON object per line, and ends when that socket closes, so none can outlive a
trainer that died.

`FACTORY(game)` builds an engine with `reset()` and `step(command)`, both returning (observation, admissible commands, won).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

Factory = Callable[[Any], Any]


class Line:
    """A socket that speaks one JSON object per line."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("r", encoding="utf-8")

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """None: the trainer has closed the socket."""
        text = self._file.readline()
        return json.loads(text) if text.endswith("\n") else None

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def main(path: str, factory_name: str) -> None:
    module, _, attribute = factory_name.partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    control = Line(path)
    control.send({"worker": os.getpid()})
    warm = False
    while (order := control.receive()) is not None:
        if not warm:
            # Parse caches filled here are inherited by every fork.
            _warm_up(factory, order["game"])
            gc.collect()
            gc.freeze()
            warm = True
        control.send(_open(path, order, factory, control))
        _reap()


def _open(path: str, order: dict[str, Any], factory: Factory, control: Line) -> dict[str, Any]:
    """Fork the game process of one group and wait until its members are being served (or it has failed)."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        control.close()
        status = 0
        try:
            _game_process(path, order, factory, writer)
        except BaseException:
            _tell(writer, {"error": traceback.format_exc(limit=-3)})
            status = 1
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.readline()
    return json.loads(text) if text else {"error": "the game process died while it loaded the game"}


def _game_process(path: str, order: dict[str, Any], factory: Factory, writer: int) -> None:
    engine = factory(order["game"])
    observation, admissible, won = engine.reset()
    for member in range(order["members"]):
        if os.fork() == 0:
            os.close(writer)
            status = 0
            try:
                _episode_process(path, order["token"], member, engine, {"observation": observation, "admissible": admissible, "won": won})
            except (BrokenPipeError, ConnectionError, KeyboardInterrupt):
                pass  # The trainer has gone: nobody is left to be told.
            except BaseException:
                traceback.print_exc()
                status = 1
            os._exit(status)
    _tell(writer, {"ready": order["token"]})
    os.close(writer)
    for _ in range(order["members"]):
        os.wait()


def _episode_process(path: str, token: str, member: int, engine: Any, start: dict[str, Any]) -> None:
    line = Line(path)
    line.send({"token": token, "member": member, "pid": os.getpid(), "state": start})
    while (message := line.receive()) is not None:
        observation, admissible, won = engine.step(message["action"])
        line.send({"observation": observation, "admissible": admissible, "won": won})


def _tell(writer: int, message: dict[str, Any]) -> None:
    os.write(writer, json.dumps(message).encode() + b"\n")


def _reap() -> None:
    """Collect game processes that have ended, without waiting for those that live."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _warm_up(factory: Factory, game: Any) -> None:
    try:
        factory(game).reset()
    except Exception:  # A game that cannot be loaded is reported by its own process.
        traceback.print_exc()


if __name__ == "__main__":
    # Ctrl-C is the trainer's business: it closes the sockets when it has saved its work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1], sys.argv[2])
