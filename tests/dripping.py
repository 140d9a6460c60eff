"""A server that is alive and no use: its answers come byte by byte, each in time and the whole never."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EVERY_S = 0.2
"""Between two bytes."""
FORMS = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\nX-Dripping: ",
}
"""What is sent at once before the dripping begins."""


@contextmanager
def dripping_server(form: str) -> Iterator[str]:
    """Answers every request so, on the loopback, until the block ends. Hands out its address."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(1 << 16)
                connection.sendall(FORMS[form])
                while not over.wait(EVERY_S):
                    connection.sendall(b"x")
            except OSError:
                pass  # the client did not wait

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
