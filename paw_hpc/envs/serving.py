"""An application behind a port, for clients of which some say nothing.

uvicorn waits without an end for the rest of a request, and anybody who reaches the port may begin one:
whoever opens connections and says no more would take all the descriptors that the server's own sessions need.
So a connection whose request is not whole in time is broken off, and where very many wait, the one that has
waited longest. How long a body may be, it does not ask either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

PATIENCE_S = 20.0
"""For a whole request, its body included."""
MOST_WAITED_FOR = 512
"""Connections whose request is not whole."""


def serve(app: Any, host: str, port: int, **more: Any) -> None:
    """Serve an ASGI application until a signal ends it; `more` is told uvicorn, too."""
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, http=impatient(), **more)


class WholeBody:
    """An ASGI application that asks another only when a request's body has come, and is short enough.

    Args:
        longest: bytes; a longer body is status 413, and is not read to its end.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], longest: int):
        self._app, self._longest = app, longest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced = [
            value for name, value in scope["headers"] if name == b"content-length" and value.isdigit()
        ]
        body, more = bytearray(), True
        too_long = any(int(value) > self._longest for value in announced)
        while more and not too_long:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more, too_long = message.get("more_body", False), len(body) > self._longest
        if too_long:
            said = b'{"detail": "the body is too long"}'
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(said)).encode()),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            return await send({"type": "http.response.body", "body": said})
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        await self._app(scope, lambda: _first(whole, receive), send)


async def _first(waiting: list[Any], receive: Callable[[], Awaitable[Any]]) -> Any:
    return waiting.pop() if waiting else await receive()


def impatient(patience_s: float = PATIENCE_S, most: int = MOST_WAITED_FOR) -> type[asyncio.Protocol]:
    """uvicorn's protocol of HTTP for one server, which does not wait for ever.

    Args:
        patience_s: for a whole request, its body included.
        most: connections that may be waited for; of more, the one that has waited longest is broken off.
    """
    waiting: dict[Impatient, asyncio.TimerHandle] = {}

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()
            self._look()

        def connection_lost(self, error: Exception | None) -> None:
            self._no_longer()
            super().connection_lost(error)

        def _wait(self) -> None:
            self._no_longer()
            waiting[self] = self.loop.call_later(patience_s, self._break_off)
            if len(waiting) > most:
                next(iter(waiting))._break_off()

        def _look(self) -> None:
            upgraded = self not in self.connections  # to a websocket, which has rules of its own
            if upgraded or (
                self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
            ):
                self._no_longer()

        def _break_off(self) -> None:
            self._no_longer()
            self.transport.abort()

        def _no_longer(self) -> None:
            if timer := waiting.pop(self, None):
                timer.cancel()

    return Impatient
