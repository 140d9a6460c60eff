"""Retrieval servers as real processes: the project's own, and one that misbehaves on demand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

DOCUMENT = {"id": "p0", "contents": '"Oslo"\nOslo is the capital of Norway.'}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def own_server(index: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`paw data search serve INDEX`, up and healthy; killed at the end if it still runs."""
    command = [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "data",
        "search",
        "serve",
        str(index),
        "--port",
        str(port),
        *options,
    ]
    with _running(command, port) as process:
        yield process


@contextmanager
def strange_server(folder: Path, port: int) -> Iterator[Path]:
    """A server that behaves as the word in the file that is handed out says (see `answer`); it can be changed
    at any time."""
    mode = folder / "mode"
    mode.write_text("well")
    with _running([sys.executable, __file__, str(mode), str(port)], port):
        yield mode


@contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        _wait_until_healthy(process, port)
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise RuntimeError(f"no healthy server at port {port} (exit status {process.poll()})")


def answer(mode: str, queries: list[str]) -> tuple[int, bytes]:
    """(status, body) of POST /retrieve."""
    entry = {"document": DOCUMENT, "score": 1.5}
    well = {"result": [[entry] * 3 for _ in queries]}
    bodies = {
        "well": well,
        "without scores": {"result": [[DOCUMENT] for _ in queries]},
        "one result too few": {"result": well["result"][1:]},
        "no result": {"answers": []},
        "null contents": {
            "result": [[{"document": {"id": "1", "contents": None}, "score": 1.0}] for _ in queries]
        },
        "half a character": {
            "result": [
                [{"document": {"id": "\ud83d", "contents": "Os\ud83dlo"}, "score": 1.0}] for _ in queries
            ]
        },
        "text for documents": {"result": [["Oslo"] for _ in queries]},
        "null": None,
    }
    if mode == "html":
        return 200, b"<html>the proxy says no</html>"
    if mode == "half":
        return 200, json.dumps(well).encode()[:-40]
    if mode.startswith("status "):
        return int(mode.removeprefix("status ")), b"{}"
    if mode == "refuses poison" and any("poison" in query for query in queries):
        return 422, b'{"detail": "no"}'
    return 200, json.dumps(bodies.get(mode, well)).encode()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send(200, b"{}")

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        mode = Path(sys.argv[1]).read_text()
        if mode == "slow":
            time.sleep(1.0)
        if mode == "hangs up":
            self.connection.close()
            return
        self._send(*answer(mode, queries))

    def _send(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client did not wait

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler).serve_forever()
