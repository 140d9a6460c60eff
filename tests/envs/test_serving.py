"""What those who say nothing, or too much, can do to a server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from paw_hpc.envs.serving import WholeBody, impatient

PATIENCE_S = 0.5
WHOLE = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n."
SLOW = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n."
NOT_WHOLE = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost:",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n.",
    "half a second request": WHOLE + b"GET / HT",
}


class Echo:
    """Says how long a body was. /slow takes thrice the patience."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.asked += 1
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            length, more = length + len(message["body"]), message["more_body"]
        if scope["path"] == "/slow":
            await asyncio.sleep(3 * PATIENCE_S)
        said = str(length).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(len(said)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": said})


@contextmanager
def served(app: Any, **settings: Any) -> Iterator[tuple[str, int]]:
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", **settings)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield "127.0.0.1", server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@contextmanager
def connections(address: tuple[str, int], *sent: bytes) -> Iterator[list[socket.socket]]:
    opened = [socket.create_connection(address) for _ in sent]
    try:
        for one, text in zip(opened, sent, strict=True):
            one.sendall(text)
            one.settimeout(10)
        yield opened
    finally:
        for one in opened:
            one.close()


def heard(one: socket.socket) -> bytes:
    """All that comes until it is closed, by whichever way."""
    said = b""
    try:
        while some := one.recv(4096):
            said += some
    except ConnectionResetError:
        pass
    return said


def test_who_says_half_a_request_and_no_more_is_broken_off() -> None:
    with (
        served(Echo(), http=impatient(PATIENCE_S)) as address,
        connections(address, *NOT_WHOLE.values(), SLOW) as opened,
    ):
        *silent, slow = opened
        assert [heard(one).count(b"200 OK") for one in silent] == [0, 0, 0, 1]
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 OK"), "a slow answer is none of the client's doing"


def test_uvicorn_itself_waits_for_ever() -> None:
    """The control: as long as it was looked at."""
    with served(Echo()) as address, connections(address, *NOT_WHOLE.values()) as opened:
        time.sleep(3 * PATIENCE_S)
        for kind, one in zip(NOT_WHOLE, opened, strict=True):
            one.settimeout(0.05)
            with pytest.raises(TimeoutError):
                print(kind, heard(one))


def test_of_very_many_the_one_that_has_waited_longest_is_broken_off() -> None:
    with (
        served(Echo(), http=impatient(3600.0, most=2)) as address,
        connections(address, b"", b"GET /") as waiting,
    ):
        with connections(address, WHOLE) as [quick]:
            assert quick.recv(4096).startswith(b"HTTP/1.1 200 OK")
            assert heard(waiting[0]) == b""
        with connections(address, b""):
            waiting[1].settimeout(0.2)
            with pytest.raises(TimeoutError):
                heard(waiting[1])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"Content-Length: 8\r\n\r\n12345678", b"\r\n\r\n8"),
        (b"Content-Length: 9\r\n\r\n", b"the body is too long"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n4\r\n5678\r\n0\r\n\r\n", b"\r\n\r\n8"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n", b"the body is too long"),
    ],
)
def test_a_body_is_short_enough_or_refused_unread(request_: bytes, said: bytes) -> None:
    echo = Echo()
    with (
        served(WholeBody(echo, longest=8)) as address,
        connections(address, b"POST / HTTP/1.1\r\nHost: x\r\n" + request_) as [one],
    ):
        answer = b""
        while not answer.endswith((said, b'"}')):
            answer += one.recv(4096)
        refused = answer.startswith(b"HTTP/1.1 413 ")
        assert said in answer and refused == (said != b"\r\n\r\n8") and echo.asked == (not refused)
