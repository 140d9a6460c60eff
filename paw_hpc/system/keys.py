"""Keys of servers: whoever holds a run's key may use its servers, and only the run's owner can read it.

Every attempt of a run has a key of its own. It travels in files of mode 0600 and in the header
`Authorization: Bearer KEY`, never in arguments or variables of the environment, which other users of a node
can see or programs write into logs. See docs/security.md.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from paw_hpc.system.errors import UserError
from paw_hpc.system.storage import storage_errors

KEY_FILE = ".key"
"""Name of the file with the key of a launched run's attempt, in the attempt's folder."""
INHERITED_KEY = "PAW_KEY_FILE"
"""Environment variable: path of the file with the key of the surrounding job, which its servers ask for and
its processes know each other by."""
_LONGEST = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def new_key() -> str:
    """256 random bits in hexadecimal digits: no shell, YAML file or argument list takes them for anything
    else."""
    return secrets.token_hex(32)


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key; nothing without one."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def write_secret(path: Path, text: str) -> None:
    """Write (or replace) a file that only its owner can read, at no moment anybody else.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def read_key(path: str | Path, where: str) -> str:
    """The key in a file: one line of visible ASCII characters.

    Args:
        where: the recipe key or option that names the file, for messages.

    Raises:
        UserError: there is no such file, others than this user could have read or written it, or it holds no
            key. The key itself is never shown.
    """
    try:
        # Not a named pipe, at which opening would wait for ever.
        with open(os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK), encoding="ascii") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{where}: {path} is no file")
            if found.st_uid not in (os.geteuid(), 0):
                raise UserError(
                    f"{where}: {path} belongs to another user, who knows what is in it; copy it to a file "
                    "of your own, mode 0600"
                )
            if found.st_mode & _OTHERS:
                mode = f"{stat.S_IMODE(found.st_mode):04o}"
                raise UserError(
                    f"{where}: {path} can be used by others than you (mode {mode}), so its key is none; "
                    "run chmod 600 on it"
                )
            key = file.read(_LONGEST + 2).strip()
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        key = ""
    if not key or len(key) > _LONGEST or not all("!" <= character <= "~" for character in key):
        raise UserError(
            f"{where}: {path} holds no key: one line of at most {_LONGEST} visible ASCII characters, "
            "without blanks"
        )
    return key


_Message = MutableMapping[str, Any]


class KeyDoor:
    """An ASGI application that lets through to another only what carries a key. Headers decide: no byte of a
    stranger's body is read.

    Args:
        app: the one behind the door.
        key: what `Authorization: Bearer` must say, once.
        health: the one path at which everybody hears that the server lives, and nothing else.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str, health: str):
        self._app, self._carried, self._health = app, bearer(key)["Authorization"].encode(), health

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan" or self._opens(scope):
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # a websocket that is closed before it is accepted: status 403
            return await send({"type": "websocket.close", "code": 1008})
        alive = scope["path"] == self._health and scope["method"] in ("GET", "HEAD")
        status, body = (
            (200, b'{"status": "ok"}') if alive else (401, b'{"detail": "this server asks for a key"}')
        )
        if scope["method"] == "HEAD":
            body = b""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _opens(self, scope: _Message) -> bool:
        sent = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(sent) == 1 and hmac.compare_digest(sent[0], self._carried)
