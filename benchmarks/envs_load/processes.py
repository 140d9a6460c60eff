"""The server under load, and the processes beside it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from paw_hpc.system.keys import new_key, write_secret

PANELS = {"alfworld": "valid_seen", "webshop": "test", "search": "test"}
GONE_WITHIN_S = 60.0
"""What is not gone then, stays."""


@dataclass(frozen=True)
class Sample:
    """Of the server and all that it started."""

    at_s: float
    memory_mib: float
    """Proportional set size."""
    processes: int
    descriptors: int
    """Of the server itself."""


class Server:
    """`python -m paw_hpc.envs.openenv`, as a process.

    Args:
        folder: for its key, its log and its temporary files.
        keys: of the env section.
        sessions: at most so many at once.
    """

    def __init__(self, folder: Path, benchmark: str, keys: dict[str, Any], sessions: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.sessions = f"http://127.0.0.1:{self.port}", sessions
        self.key, self.key_file = new_key(), folder / "key"
        write_secret(self.key_file, self.key)
        self._log, self._temporary = folder / "server.log", folder / "tmp"
        self._temporary.mkdir()
        options = [
            "--panel",
            PANELS[benchmark],
            "--port",
            str(self.port),
            "--sessions",
            str(sessions),
            "--key-file",
            str(self.key_file),
        ]
        self._command = [sys.executable, "-m", "paw_hpc.envs.openenv", benchmark, *dotlist(keys), *options]
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stderr=log, env=os.environ | {"TMPDIR": str(self._temporary)}
            )
        self._own = psutil.Process(self._process.pid)
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {self._log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/health", trust_env=False, timeout=60).status_code == 200:
                    return
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        """Itself, its workers, and what these have forked."""
        return [self._own, *self._own.children(recursive=True)]

    def sample(self, at_s: float) -> Sample:
        family = self.family()
        return Sample(at_s, sum(map(_pss_kib, family)) / 1024, len(family), self._own.num_fds())

    def connected(self) -> set[int]:
        """Ports at the other ends of its connections."""
        return {
            c.raddr.port
            for c in self._own.net_connections("tcp")
            if c.laddr.port == self.port and c.status != "LISTEN" and c.raddr
        }

    def kill(self) -> tuple[float, int]:
        """SIGKILL, for the server alone. Seconds until all that it started has gone, and how many files it
        left in TMPDIR."""
        family, started = self.family(), time.perf_counter()
        self._process.kill()
        self._process.wait()
        return until(lambda: not any(map(_lives, family)), started), self._left()

    def stop(self) -> tuple[float, int]:
        """The same, by SIGTERM."""
        family, started = self.family(), time.perf_counter()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE_WITHIN_S)
        return until(lambda: not any(map(_lives, family)), started), self._left()

    def log(self) -> list[str]:
        return self._log.read_text().splitlines()

    def end(self) -> None:
        """Whatever has happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _left(self) -> int:
        return sum(1 for _ in self._temporary.rglob("*"))


class Helper:
    """A process beside the server, which sends reports through the pipe that is its last argument."""

    def __init__(self, job: Callable[..., None], *arguments: Any):
        # importing OpenEnv and all that it brings takes seconds
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([job.__module__])
        self._reports, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=job, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._last: Any = None
        self._killed = False

    @property
    def last(self) -> Any:
        """What it reported last; None: nothing yet. Raises RuntimeError: it has ended, and nobody killed
        it."""
        with contextlib.suppress(EOFError, OSError):
            while self._reports.poll():
                self._last = self._reports.recv()
        if not self._killed and self._process.exitcode is not None:
            raise RuntimeError(
                f"a process beside the server ended by itself, status {self._process.exitcode}; see above"
            )
        return self._last

    def ports(self) -> set[int]:
        """Of its connections."""
        return {c.laddr.port for c in psutil.Process(self._process.pid).net_connections("tcp")}

    def kill(self) -> None:
        """SIGKILL."""
        self._killed = True
        self._process.kill()
        self._process.join()


def until(so: Callable[[], bool], started: float | None = None, patience_s: float = GONE_WITHIN_S) -> float:
    """Seconds since `started` (default: now) when it is so. Raises TimeoutError."""
    started = time.perf_counter() if started is None else started
    while not so():
        if time.perf_counter() - started > patience_s:
            raise TimeoutError(f"still not so after {patience_s:g} s")
        time.sleep(0.05)
    return time.perf_counter() - started


def dotlist(keys: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys of an env section as words of a command line."""
    found = []
    for name, value in keys.items():
        if isinstance(value, dict):
            found += dotlist(value, f"{prefix}{name}.")
        else:
            found.append(
                f"{prefix}{name}={'[' + ','.join(value) + ']' if isinstance(value, list | tuple) else value}"
            )
    return found


def _pss_kib(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
