"""Programs side by side on this machine: the ranks of a run that neither torchrun nor srun started, the arms
of the quickstart.

Not torch.distributed.run: its agent kills the ranks thirty seconds after a signal and ends with an error,
whereas a stop that is asked for takes effect between two updates and is a success. The ranks meet as under
it, at a store that the parent holds (no port to guess).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from paw_hpc.system import children
from paw_hpc.system.keys import INHERITED_KEY, KEY_FILE, new_key, write_secret
from paw_hpc.system.meeting import open_store

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
GRACE_S = 10.0
"""How long the other ranks have to end by themselves once one has failed."""
_PATIENCE_S = 300.0
_STARTED_HERE = "PAW_STARTED_HERE"


@dataclass(frozen=True, slots=True)
class Program:
    """One of several that run side by side."""

    label: str
    """Stands before each of its lines."""
    command: Sequence[str]
    environment: Mapping[str, str]
    """Added to the parent's."""


def run_here(count: int, command: Sequence[str]) -> int:
    """Run a command as `count` ranks, labelled by their number (see `run_together`)."""
    store = open_store("127.0.0.1", 0, _PATIENCE_S)
    with _key_file() as key_file:
        return run_together(
            [
                Program(str(rank), command, _of_rank(rank, count, store.port) | {INHERITED_KEY: key_file})
                for rank in range(count)
            ]
        )


def run_together(programs: Sequence[Program]) -> int:
    """Run programs and wait for all; their lines come out as `[label] ...`, errors that several say, once.

    SIGTERM, SIGUSR1 and Ctrl-C go to every one. When one fails, the others are ended, with all that they
    started.

    Returns:
        0 when all ended with 0, else the status of the first that did not (128 + signal where one killed it).
    """
    said: set[str] = set()
    running: list[subprocess.Popen[str]] = []
    relays: list[threading.Thread] = []

    def forward(number: int, _: object) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        for program in programs:
            environment = {**os.environ, **program.environment, "PYTHONUNBUFFERED": "1", _STARTED_HERE: "1"}
            # The terminal's Ctrl-C comes once, by `forward`.
            process = children.start(
                program.command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            running.append(process)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert source is not None
                relays.append(
                    threading.Thread(target=_relay, args=(program.label, source, target, said), daemon=True)
                )
                relays[-1].start()
        return _wait(running)
    finally:
        for process in running:
            children.end(process, 0)
        for relay in relays:
            relay.join(GRACE_S)
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


def threads_each(count: int) -> str:
    """OMP_NUM_THREADS of each of `count` programs that share this machine's cores."""
    return str(max(1, (os.cpu_count() or 1) // count))


def end_with_parent() -> None:
    """Called by a program that `run_together` may have started: should the process that started it die, it is
    asked to stop (Linux)."""
    if _STARTED_HERE in os.environ:
        children.die_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def _key_file() -> Iterator[str]:
    """The file by which the ranks know each other (see meeting.py): the surrounding job's, or one for these
    ranks alone."""
    if given := os.environ.get(INHERITED_KEY):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="paw-ranks-") as folder:
        write_secret(Path(folder) / KEY_FILE, new_key())
        yield str(Path(folder) / KEY_FILE)


def _of_rank(rank: int, count: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or threads_each(count),
    }


def _relay(label: str, source: IO[str], target: TextIO, said: set[str]) -> None:
    for line in source:
        if line.startswith("paw: "):
            if line in said:
                continue
            said.add(line)
            target.write(line)
        else:
            target.write(f"[{label}] {line}")
        target.flush()


def _wait(ranks: Sequence[subprocess.Popen[str]]) -> int:
    deadline: float | None = None
    status = 0
    while None in [rank.poll() for rank in ranks]:
        failed = next((rank.returncode for rank in ranks if rank.returncode not in (None, 0)), None)
        if failed is not None and deadline is None:
            status, deadline = failed, time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    status = status or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return status if status >= 0 else 128 - status
