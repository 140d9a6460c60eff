"""The key on its way: carried by every call, to nobody but the server, and a wrong one said in a line. A
program stands in for the server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from paw_hpc.recipe import FleetSection
from paw_hpc.rollout.sglang.client import Locked, ServerClient, ServerFault, http_session
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.lifecycle import FleetError

KEY = "the-right-one"


class Door(ThreadingHTTPServer):
    """Open to whoever asks for its health, and to whoever has the key; sends everybody else away, or
    elsewhere."""

    def __init__(self, elsewhere: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.elsewhere = elsewhere
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Door)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, key = self.path.partition("?")[0], self.headers.get("Authorization")
        self.server.asked.append((path, key))
        if self.server.elsewhere:
            return self._send(307, b"", ("Location", self.server.elsewhere + path))
        if path != "/health" and key != f"Bearer {KEY}":
            return self._send(401, b'{"error": "Unauthorized"}')
        return self._send(200, json.dumps({"weight_version": "3", "ranks": []}).encode())

    do_POST = do_GET

    def _send(self, status: int, body: bytes, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *more):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def door(elsewhere: str = "") -> Iterator[Door]:
    with Door(elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


async def every_call(url: str, key: str | None) -> None:
    """Each method of the client; what the stand-in answers is nonsense to some of them."""
    async with http_session(key) as session:
        client = ServerClient("server", url, session)
        ids = np.array([1], dtype=np.int32)
        calls = [
            client.generate("r", ids, {}, 5.0),
            client.healthy(5.0),
            client.info(),
            client.weight_version(),
            client.pause(),
            client.resume(),
            client.flush_cache(5.0),
            client.begin_update(5.0),
            client.end_update(5.0),
            client.checksums(["a"], 5.0),
            client.release_memory(["weights"]),
            client.resume_memory(["weights"]),
            client.post("/update_weights_from_disk", {}),
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert (
                outcome is None or not isinstance(outcome, BaseException) or isinstance(outcome, ServerFault)
            ), outcome


def test_is_on_every_call() -> None:
    with door() as server:
        asyncio.run(every_call(server.url, KEY))
        assert len({path for path, _ in server.asked}) == 13 and {key for _, key in server.asked} == {
            f"Bearer {KEY}"
        }


def test_is_on_none_where_there_is_none() -> None:
    with door() as server:
        asyncio.run(every_call(server.url, None))
        assert {key for _, key in server.asked} == {None}


def test_goes_nowhere_that_a_server_sends_it() -> None:
    """A server sends nobody elsewhere; what does may be anybody's program at its port."""
    with door() as other, door(elsewhere=other.url) as server:
        asyncio.run(every_call(server.url, KEY))
        assert len(server.asked) >= 13 and other.asked == []


def test_of_another_server_is_refused_as_such() -> None:
    async def ask(url: str) -> None:
        async with http_session("wrong") as session:
            await ServerClient("server 3", url, session).pause()

    with (
        door() as server,
        pytest.raises(
            Locked, match=r"server 3: it does not take this run's key \(/pause_generation: status 401\)"
        ) as found,
    ):
        asyncio.run(ask(server.url))
    assert "wrong" not in str(found.value)


@pytest.mark.parametrize("key", ["wrong", None])
def test_that_somebody_elses_server_does_not_take_ends_the_run_at_once(key: str | None) -> None:
    """Its health is for everybody, so it looks well."""

    async def healthy(url: str, key: str | None) -> None:
        fleet = Fleet(FleetSection(addresses=(url,), health_timeout_s=5.0), None, key)
        await fleet.start()
        try:
            await asyncio.wait_for(fleet.healthy(), 30)
        finally:
            await fleet.close()

    with door() as server:
        began = time.monotonic()
        with pytest.raises(
            FleetError, match=r"^http://127.*: it does not take this run's key .* rollout\.fleet\.key_file$"
        ):
            asyncio.run(healthy(server.url, key))
        assert time.monotonic() - began < 10
        asyncio.run(healthy(server.url, KEY))
