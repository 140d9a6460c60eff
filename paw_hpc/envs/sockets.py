"""Sessions over websockets: clients that go, or say nothing, in the middle of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from paw_hpc.system.errors import UserError

T = TypeVar("T")
WITHOUT_SESSION = 4
"""Requests without a session that are answered at once; others wait."""
MESSAGES_AHEAD = 32
"""Of a session, taken from its websocket before they are answered."""

_GONE = ContextVar[asyncio.Event]("gone")
"""Of the client whose message is being answered: it has gone."""


async def unless_gone(work: Coroutine[Any, Any, T]) -> T:
    """Raises UserError when the client of this session goes before the work is done: hundreds that are killed
    would leave hundreds of resets."""
    if (gone := _GONE.get(None)) is None:
        return await work
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        # nobody else asks how it ended
        doing.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise UserError("the client has gone")
    finally:
        doing.cancel()
        waiting.cancel()


class Guard:
    """What OpenEnv's application leaves to its surroundings, around it. It goes on talking to a websocket
    whose client has gone, and working for it; one that says nothing it leaves open when it has ended the
    session; and requests without a session (POST /reset, /step) start an episode each, which no limit of
    sessions counts."""

    def __init__(self, app: Callable[..., Awaitable[None]], idle_s: float | None):
        self._app, self._idle_s, self._without_session = app, idle_s, asyncio.Semaphore(WITHOUT_SESSION)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            return await self._session(scope, receive, send)
        async with (
            self._without_session
            if scope["type"] == "http" and scope["method"] == "POST"
            else contextlib.nullcontext()
        ):
            await self._app(scope, receive, send)

    async def _session(self, scope: Any, receive: Any, send: Any) -> None:
        arrived, gone = asyncio.Queue[Any](MESSAGES_AHEAD), asyncio.Event()

        async def listen() -> None:
            while not gone.is_set():
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    gone.set()
                await arrived.put(message)

        async def receive_in_time() -> Any:
            try:
                async with asyncio.timeout(self._idle_s):
                    return await arrived.get()
            except TimeoutError:
                return {"type": "websocket.disconnect", "code": 1001}

        async def send_while_it_listens(message: Any) -> None:
            await asyncio.sleep(0)  # that its client has gone is heard of between two turns of the loop
            with contextlib.suppress(OSError):  # it has, as `receive` says next
                await send(message)

        _GONE.set(gone)
        listening = asyncio.create_task(listen())
        try:
            await self._app(scope, receive_in_time, send_while_it_listens)
        finally:
            listening.cancel()
