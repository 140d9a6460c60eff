"""Runs one SGLang server and ends it with its owner. A script of its own, with the standard library and
system/children.py alone: it runs in SGLang's environment, perhaps on another node.

    python serve.py '{"arguments": [...], "key_config": PATH, "host": "127.0.0.1", "log": PATH, "environment":
    {...}}'

It picks free ports (unless `ports` names two), runs `sglang.launch_server` in a process group of its own, and
says where it is in one line of JSON on standard output. When standard input closes (the owner has let go of
it, or is dead), or on SIGTERM, the whole group is ended: asked first, then killed (`patience_s` later), which
also ends a frozen one. It ends itself, with the server's status, when the server does.

`key_config` names a file of arguments with the server's key, {"api-key": KEY}: a command line is everybody's
to read. SGLang writes all of its arguments into its log; what it says passes through here, and the key is
taken out of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

# the package, and what it needs, is not in this environment
sys.path.append(str(Path(__file__).resolve().parents[2] / "system"))
import children

SERVER = """
import runpy, signal, sys
from multiprocessing import resource_tracker
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
resource_tracker.ensure_running()
signal.pthread_sigmask(signal.SIG_SETMASK, mask)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""`python -m`, with the signals blocked that the owner has blocked: multiprocessing, when it first starts its
tracker, would unblock SIGTERM, which cluster/server.py keeps from servers."""
GRACE_S = 5.0
POLL_S = 0.2
LAST_WORDS_S = 5.0
"""How long an ended server's last words may take to come through."""
LONGEST_FOLDER = 60
"""Characters of the folder of temporary files: the system takes a socket's path of 107, and SGLang's own
names come behind."""
_PIECE_BYTES = 1 << 16


def main() -> int:
    order = json.loads(sys.argv[1])
    host = order["host"]
    port, internal = order.get("ports") or free_ports(host, 2)
    arguments = [*order["arguments"], "--host", host, "--port", str(port), "--nccl-port", str(internal)]
    secret = b""
    if order.get("key_config") is not None:
        arguments += ["--config", order["key_config"]]
        secret = json.loads(Path(order["key_config"]).read_text())["api-key"].encode()
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the owner's to obey
    with open(order["log"], "ab", buffering=0) as log, own_folder() as folder:
        server = children.start(
            [sys.executable, "-c", SERVER, "sglang.launch_server", *arguments],
            env={**os.environ, **order["environment"], "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o077,
            # so that a killed supervisor leaves no server behind, whose own children follow it in the same
            # way
            preexec_fn=children.die_with_parent,
        )
        assert server.stdout is not None
        writing = threading.Thread(target=pass_on, args=(server.stdout, log, secret), daemon=True)
        writing.start()
        try:
            print(json.dumps({"host": host, "port": port, "pid": server.pid}), flush=True)
            while server.poll() is None and not asked:
                ready, _, _ = select.select([0], [], [], POLL_S)
                if ready and not os.read(0, 4096):
                    break
        finally:
            children.end(server, order.get("patience_s", GRACE_S))
            server.wait()
            writing.join(LAST_WORDS_S)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def own_folder() -> tempfile.TemporaryDirectory[str]:
    """Where the server's processes meet: what they say to each other is pickled, so nobody else may reach
    their sockets."""
    usual = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(
        prefix="paw-server-",
        dir=usual if len(usual) <= LONGEST_FOLDER else "/tmp",
        ignore_cleanup_errors=True,
    )


def pass_on(said: BinaryIO, log: BinaryIO, secret: bytes) -> None:
    """Write what a server says into its log, as it comes and to its end, with stars in the place of the
    secret, which may come in two pieces."""
    rest = b""
    while piece := os.read(said.fileno(), _PIECE_BYTES):
        rest += piece
        if secret:
            rest = rest.replace(secret, b"*****")
        whole = len(rest) - beginning(rest, secret)
        # A full disk must not stop the server, which would wait for its words to be taken.
        with contextlib.suppress(OSError):
            log.write(rest[:whole])
        rest = rest[whole:]
    with contextlib.suppress(OSError):
        log.write(rest)


def beginning(text: bytes, secret: bytes) -> int:
    """How many bytes at the end of the text may be the beginning of the secret."""
    return next((n for n in range(min(len(text), len(secret) - 1), 0, -1) if secret.startswith(text[-n:])), 0)


def free_ports(host: str, count: int) -> list[int]:
    """Different ports that nobody listens on at `host` now. Another program may be faster: then the server
    fails to start, and is started anew."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    sys.exit(main())
