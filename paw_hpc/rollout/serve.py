"""Runs one SGLang server and ends it with its owner. A script of its own, standard library only: it runs in SGLang's environment, perhaps on another
node.

    python serve.py '{"arguments": [...], "host": "127.0.0.1", "log": PATH, "environment": {...}}'

It picks free ports (unless `ports` names two), starts `sglang.launch_server` in a process group of its own, and says where it is in one line of
JSON on standard output. When standard input closes (the owner has let go of it, or is dead), or on SIGTERM, the whole group is ended: asked first,
then killed (`patience_s` later), which also ends a frozen one. It ends itself, with the server's status, when the server does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

GRACE_S = 5.0
POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


def main() -> int:
    order = json.loads(sys.argv[1])
    host = order["host"]
    port, internal = order.get("ports") or free_ports(host, 2)
    arguments = [*order["arguments"], "--host", host, "--port", str(port), "--nccl-port", str(internal)]
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the owner's to obey
    with open(order["log"], "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *arguments],
            env={**os.environ, **order["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        print(json.dumps({"host": host, "port": port, "pid": server.pid}), flush=True)
        while server.poll() is None and not asked:
            ready, _, _ = select.select([0], [], [], POLL_S)
            if ready and not os.read(0, 4096):
                break
    finally:
        end_group(server, order.get("patience_s", GRACE_S))
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def free_ports(host: str, count: int) -> list[int]:
    """Different ports that nobody listens on at `host` now. Another program may be faster: then the server fails to start, and is started anew."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


def end_group(server: subprocess.Popen, asked_s: float) -> None:
    """End all processes of the server's group, killed when they were asked in vain for so long, and wait for the server itself."""
    for number, patience_s in ((signal.SIGTERM, asked_s), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        deadline = None if patience_s is None else time.monotonic() + patience_s
        while server.poll() is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """So that a killed supervisor leaves no server behind (the server's own children follow it in the same way)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
