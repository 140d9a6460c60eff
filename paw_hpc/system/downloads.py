"""A file from the web, block by block, from a server that may be dead, or alive and no use."""

from __future__ import annotations

import queue
import threading
import time
import urllib.request
from collections.abc import Iterator

PATIENCE_S = 60.0
BYTES_PER_S = 10_000.0
_BLOCK = 1 << 20


def blocks(url: str, *, patience_s: float = PATIENCE_S, bytes_per_s: float = BYTES_PER_S) -> Iterator[bytes]:
    """The content at an address, as it comes.

    An answer of N bytes has a deadline of `patience_s + N / bytes_per_s`, so that a server that sends a byte
    now and then is given up (it keeps a limit on each read for ever).

    Raises:
        OSError: the address cannot be reached, too slow (TimeoutError), or cut short.
        http.client.HTTPException: what answers does not speak HTTP.
    """
    # A thread, because opening can be slow in ways that no socket timeout bounds: names to resolve, headers
    # that come byte by byte.
    arrived: queue.Queue[bytes | Exception] = queue.Queue(maxsize=4)
    given_up = threading.Event()
    threading.Thread(
        target=_read, args=(url, patience_s, arrived, given_up), daemon=True, name="download"
    ).start()
    received, deadline = 0, time.monotonic() + patience_s
    try:
        while True:
            try:
                block = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(
                    f"{received} bytes in {patience_s + received / bytes_per_s:.0f} s: too slow"
                ) from None
            if isinstance(block, Exception):
                raise block
            if not block:
                return
            received += len(block)
            deadline += len(block) / bytes_per_s
            yield block
    finally:
        given_up.set()
        while not arrived.empty():  # the reader may wait for room
            arrived.get_nowait()


def _read(
    url: str, patience_s: float, arrived: queue.Queue[bytes | Exception], given_up: threading.Event
) -> None:
    received = 0
    try:
        with urllib.request.urlopen(url, timeout=patience_s) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            while not given_up.is_set() and (block := response.read1(_BLOCK)):
                received += len(block)
                arrived.put(block)
        arrived.put(
            b"" if received >= expected else OSError(f"cut short after {received} of {expected} bytes")
        )
    except Exception as error:
        arrived.put(error)
