"""The page, served on loopback: a random port, and a random token in its address that nobody else knows.

Whoever can read the address (this user's terminal, the browser's history) can see the page; other users of
the machine, and pages of other sites that this browser has open, cannot: every request must name the token
and this very host.
"""

from __future__ import annotations

import functools
import json
import secrets
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from paw_hpc.study.view import assets
from paw_hpc.study.view.library import Library
from paw_hpc.system.errors import DataError

HOST = "127.0.0.1"
Answer = tuple[str, bytes]
"""(content type, body)."""
_HEADERS = {
    "Content-Security-Policy": assets.SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer:
    """Serves until it is closed. Use as a context manager.

    Args:
        library: what is shown.
    """

    def __init__(self, library: Library) -> None:
        self._library, self._token, self._lock = library, secrets.token_urlsafe(24), threading.Lock()
        self._server = ThreadingHTTPServer((HOST, 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        self.host = f"{HOST}:{self._server.server_address[1]}"
        self.address = f"http://{self.host}/{self._token}/"

    def __enter__(self) -> PageServer:
        threading.Thread(target=self._server.serve_forever, name="paw-view", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, host: str, path: str) -> Answer | None:
        """What a GET gets; None: nothing is there, or whoever asks does not know the token.

        Raises:
            DataError: what was asked for is not kept (any more), or cannot be read.
            KeyError, ValueError: a question that the page does not ask.
        """
        asked = urlsplit(path)
        _, token, *rest = asked.path.split("/")
        if (
            host != self.host
            or not secrets.compare_digest(token.encode(), self._token.encode())
            or len(rest) != 1
        ):
            return None
        match rest[0]:
            case "":
                page = assets.document(
                    '<link rel="stylesheet" href="page.css">', '<script src="page.js"></script>'
                )
                return "text/html; charset=utf-8", page.encode()
            case "page.css":
                return "text/css; charset=utf-8", assets.style().encode()
            case "page.js":
                return "text/javascript; charset=utf-8", assets.script().encode()
            case name if name in QUESTIONS:
                with self._lock:  # one reader of a file at a time
                    found = QUESTIONS[name](
                        self._library, dict(parse_qsl(asked.query, keep_blank_values=True))
                    )
                return "application/json", json.dumps(found, allow_nan=False).encode()
        return None


Question = Callable[[Library, Mapping[str, str]], Any]
QUESTIONS: Mapping[str, Question] = {
    "index": lambda library, _: library.index(),
    "episodes": lambda library, q: library.episodes(q["run"], q["file"]),
    "steps": lambda library, q: library.steps(q["run"], q["file"], int(q["group"]), int(q["member"])),
    "same": lambda library, q: library.same_task(q["run"], q["file"], int(q["group"]), int(q["member"])),
    "surprises": lambda library, q: library.file(q["run"], q["file"]).surprises,
    "search": lambda library, q: library.file(q["run"], q["file"]).search(q["text"]),
}
"""What the page asks its server: single.py puts the same answers into a file."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "paw", ""

    def __init__(self, page: PageServer, *arguments: Any) -> None:
        self._page = page
        super().__init__(*arguments)

    def do_GET(self) -> None:
        try:
            found = self._page.answer(self.headers.get("Host", ""), self.path)
        except DataError as error:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", str(error).encode())
        except (KeyError, ValueError):
            return self._send(
                HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", b"not a question of this page"
            )
        if found is None:
            return self._send(
                HTTPStatus.FORBIDDEN,
                "text/plain; charset=utf-8",
                b"the address that paw view printed has a token in it",
            )
        return self._send(HTTPStatus.OK, *found)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the token stands in every line."""


def serve(library: Library, *, browser: bool = True) -> None:
    """Serve the page until Ctrl-C."""
    with PageServer(library) as page:
        print(page.address, flush=True)
        print(
            "paw view: this address opens the page, on this machine only; Ctrl-C ends it. To send a page: "
            "--out FILE.html",
            file=sys.stderr,
        )
        if browser:
            webbrowser.open(page.address)
        threading.Event().wait()
