"""What another user of the same machine can do, for tests: a process without privileges that tries.

Root runs this file as a script, which takes on the identity of nobody; its modules are loaded before, since
nobody may not read them where they lie.
"""

from __future__ import annotations

import datetime
import http.client
import importlib
import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

NOBODY = 65534
REQUIRED = os.environ.get("PAW_REQUIRE_SECOND_USER") == "1"
PATIENCE_S = 10.0


def somebody_else(job: str, *items: Any) -> list[Any]:
    """The outcome of a job for each item: `call` ([method, url, headers]) -> status, or the name of an error;
    `read` (path), `connect` (path of a socket), `store` ([port, name, value] of a store of torch) -> whether
    that is possible; `find` (text) -> processes whose arguments or environment show it."""
    if os.geteuid() != 0:
        if REQUIRED:
            pytest.fail("PAW_REQUIRE_SECOND_USER is set, but only root can act as another user")
        pytest.skip("only root can act as another user")
    order = json.dumps([job, items])
    done = subprocess.run(
        [sys.executable, __file__], input=order, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def call(item: tuple[str, str, dict[str, str]]) -> int | str:
    method, url, headers = item
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=PATIENCE_S)
    try:
        # Paths go out as they are: no library puts dots and slashes right first.
        connection.request(
            method,
            url[url.index(parts.netloc) + len(parts.netloc) :],
            body=None if method == "GET" else "{}",
            headers=headers,
        )
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def read(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def store(item: tuple[int, str, str]) -> bool:
    port, name, value = item
    try:
        sys.modules["torch.distributed"].TCPStore(
            "127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=1)
        ).set(name, value)
    except RuntimeError:
        return False
    return True


def find(text: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) in (os.getpid(), os.getppid()):
            continue
        for part in ("cmdline", "environ", "comm"):
            try:
                with open(f"/proc/{name}/{part}", "rb") as file:
                    if text.encode() in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found


if __name__ == "__main__":
    # What is loaded late else.
    socket.getaddrinfo("127.0.0.1", 80)
    re.compile("idna".encode("idna").decode())
    job, items = json.load(sys.stdin)
    if job == "store":
        importlib.import_module("torch.distributed")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with ThreadPoolExecutor(8) as pool:
        print(
            json.dumps(
                list(
                    pool.map(
                        {"call": call, "read": read, "connect": connect, "find": find, "store": store}[job],
                        items,
                    )
                )
            )
        )
