"""The processes beside the server: clients that play what has been played before, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.openenv import LONGEST_MESSAGE_BYTES, TextAction, TextClient, TextObservation
from paw_hpc.system.keys import bearer, read_key
from tests.envs.walks import Walk

PATIENCE_S = 600.0
"""For an answer: the first resets of all sessions at once take a minute of two cores."""
PATIENCE_OF_HARM_S = 15.0
"""For an answer to a hostile client."""
WALKS_OF_A_CONNECTION = 8
"""At most; so sessions come and go."""


@dataclass
class Played:
    """By one process of clients, up to now."""

    steps: int = 0
    walks: int = 0
    differences: list[str] = field(default_factory=list)
    """Where something else was said than to the walk when it was played on the bare interface."""
    lost: list[float] = field(default_factory=list)
    """When a connection broke, seconds since the epoch."""
    full: int = 0
    """How often the server had no place."""
    errors: list[str] = field(default_factory=list)
    connected: int = 0
    """Sessions now."""
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    """For steps, the last ones."""


def play(
    url: str, key_file: str, walks_file: str, sessions: int, think_s: float, seed: int, report: Any
) -> None:
    """A process of clients, until it is killed; `report` is sent what it has `Played`, every second.

    Args:
        think_s: mean time between an answer and the next step, as a model needs it.
    """
    key, walks = read_key(key_file, "key"), pickle.loads(Path(walks_file).read_bytes())
    asyncio.run(_play(url, key, walks, sessions, think_s, seed, report))


async def _play(
    url: str, key: str, walks: Sequence[Walk], sessions: int, think_s: float, seed: int, report: Any
) -> None:
    played = Played()

    async def session(number: int) -> None:
        rng = Random(f"{seed}/{number}")
        while True:
            try:
                async with TextClient(
                    url, key=key, message_timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
                ) as client:
                    await client.state()  # it has a place
                    played.connected += 1
                    try:
                        for _ in range(rng.randint(1, WALKS_OF_A_CONNECTION)):
                            await walk_along(
                                client,
                                rng.choice(walks),
                                played,
                                lambda: asyncio.sleep(rng.uniform(0, 2 * think_s)),
                            )
                    finally:
                        played.connected -= 1
            except (OSError, ConnectionClosed, TimeoutError):
                played.lost.append(time.time())
            except Exception as error:
                if "CAPACITY_REACHED" in str(error):
                    played.full += 1
                else:
                    played.errors.append(f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(rng.uniform(0.05, 0.5))

    async with asyncio.TaskGroup() as group:
        for number in range(sessions):
            group.create_task(session(number))
        while True:
            # A full pipe may not hold up the sessions. (What is sent is what `recv` reads.)
            await asyncio.to_thread(report.send_bytes, pickle.dumps(played))
            await asyncio.sleep(1)


async def walk_along(
    client: TextClient, walk: Walk, played: Played, think: Callable[[], Awaitable[None]]
) -> None:
    """One walk in one session, compared state by state."""
    said = await client.reset(task_id=walk.task.task_id, repeat=walk.repeat)
    for step in range(len(walk.states)):
        if step:
            await think()
            asked = time.perf_counter()
            said = await client.step(TextAction(action=walk.actions[step - 1]))
            played.waits_s.append(time.perf_counter() - asked)
            played.steps += 1
        if difference := differs(said.observation, walk, step):
            played.differences.append(difference)
            return
    played.walks += 1


def differs(seen: TextObservation, walk: Walk, step: int) -> str | None:
    """How what was seen is not the walk's state after so many steps."""
    state = EnvironmentState(
        seen.observation,
        tuple(seen.admissible),
        float(seen.reward or 0.0),
        seen.done,
        seen.success,
        seen.score,
    )
    if (seen.task_id, seen.repeat, seen.steps, state) == (
        walk.task.task_id,
        walk.repeat,
        step,
        walk.states[step],
    ):
        return None
    return (
        f"{walk.task.task_id}, episode {walk.repeat}, step {step}: {seen.task_id}, {seen.repeat}, "
        f"{seen.steps}, {state}"
    )[:500]


HALF_OPEN = (
    b"",
    b"GET /ws HTTP/1.1\r\nHost: x\r\n",
    b"POST /reset HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer KEY\r\nContent-Length: 900\r\n\r\n{",
)
"""What is sent by those who then say no more."""


def harm(url: str, key_file: str, places: int, half_open: int, report: Any) -> None:
    """A process of hostile clients, until it is killed; every round sends (kind, what came of it) -> how
    often.

    Args:
        places: so many more sessions than these are asked for at once.
        half_open: so many connections stay half-open.
    """
    asyncio.run(_harm(url, read_key(key_file, "key"), places, half_open, report))


async def _harm(url: str, key: str, places: int, half_open: int, report: Any) -> None:
    found, open_ones = Counter[tuple[str, str]](), list[socket.socket]()
    address = url.replace("http", "ws") + "/ws"
    host, port = url.removeprefix("http://").split(":")

    async def once(kind: str, attempt: Callable[[], Awaitable[str]]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_OF_HARM_S):
                came = await attempt()
        except InvalidStatus as error:
            came = f"status {error.response.status_code}"
        except ConnectionClosed as error:
            came = f"closed, {error.rcvd.code if error.rcvd else 'broken off'}"
        except ConnectionRefusedError:  # the server is dead just now
            return await asyncio.sleep(0.2)
        except (OSError, TimeoutError, WebSocketException) as error:
            came = type(error).__name__
        found[kind, came] += 1

    async def session(*messages: str | bytes, headers: dict[str, str]) -> str:
        async with connect(
            address, additional_headers=headers, open_timeout=PATIENCE_OF_HARM_S, close_timeout=5
        ) as websocket:
            said = ""
            for message in messages:
                with contextlib.suppress(ConnectionClosed):  # why, is what is received next
                    await websocket.send(message)
                said = json.loads(await websocket.recv())
            return str(said["data"].get("code", "an answer")) if isinstance(said, dict) else "let in"

    async def request(text: str) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(text.encode())
        line = await reader.readline()
        writer.close()
        return f"status {line.split()[1].decode()}" if line else "closed"

    async def gone_amid_a_step() -> str:
        """Many steps are sent, no answer is read, and the connection is reset."""
        async with connect(
            address, additional_headers=bearer(key), open_timeout=PATIENCE_OF_HARM_S
        ) as websocket:
            await websocket.send('{"type": "reset", "data": {}}')
            for _ in range(16):
                await websocket.send('{"type": "step", "data": {"action": "look"}}')
            underlying = websocket.transport.get_extra_info("socket")
            underlying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            websocket.transport.abort()
        return "gone"

    reset, gigabyte = (
        '{"type": "reset", "data": {}}',
        "POST /reset HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n",
    )
    while True:
        for kind, headers in (("no key", {}), ("a wrong key", bearer("0123456789abcdef"))):
            await once(kind + ", /ws", lambda h=headers: session(reset, headers=h))  # type: ignore[misc]
        await once("no key, POST /reset of a gigabyte", lambda: request(gigabyte + "\r\n"))
        await once(
            "POST /reset of a gigabyte",
            lambda: request(f"{gigabyte}Authorization: {bearer(key)['Authorization']}\r\n\r\n"),
        )
        for kind, message in (
            ("a message too long", '"' + "x" * LONGEST_MESSAGE_BYTES + '"'),
            ("garbage", "{"),
            ("deep garbage", "[" * 100_000),
            ("bytes", b"\xff\xfe\x00"),
            ("an unknown task", '{"type": "reset", "data": {"task_id": "nowhere"}}'),
        ):
            await once(kind, lambda m=message: session(m, headers=bearer(key)))  # type: ignore[misc]
        await once("gone amid steps", gone_amid_a_step)
        await asyncio.gather(
            *(
                once("more sessions than places", lambda: session(reset, headers=bearer(key)))
                for _ in range(places)
            )
        )
        await _stay_half_open(open_ones, half_open, host, int(port), key, found)
        await asyncio.to_thread(report.send_bytes, pickle.dumps(found))
        await asyncio.sleep(1)


async def _stay_half_open(
    open_ones: list[socket.socket],
    wanted: int,
    host: str,
    port: int,
    key: str,
    found: Counter[tuple[str, str]],
) -> None:
    """Replaces those that the server has closed."""
    for one in list(open_ones):
        with contextlib.suppress(BlockingIOError):
            try:
                if one.recv(4096):
                    found["half-open", "answered"] += 1
            except ConnectionError:
                pass
            found["half-open", "closed"] += 1
            one.close()
            open_ones.remove(one)
    for number in range(wanted - len(open_ones)):
        with contextlib.suppress(OSError):
            one = socket.create_connection((host, port), timeout=5)
            one.sendall(HALF_OPEN[number % len(HALF_OPEN)].replace(b"KEY", key.encode()))
            one.setblocking(False)
            open_ones.append(one)
        await asyncio.sleep(0)
