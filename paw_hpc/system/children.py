"""Child processes, and how their owner starts, asks and ends them.

A child leads a process group of its own, so that all that it started ends with it, and a terminal's Ctrl-C is
its owner's to pass on. Its owner may hold its standard input, whose end asks it to end; a child whose owner
is killed is told by the system.

Standard library only: rollout/sglang/serve.py reads this file in another environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
_ASKED_S = 5.0
_KILLED_S = 10.0
"""How long a killed process may take: one that waits for a dead disk takes longer, and nothing can be done
about it."""


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program as the leader of a session and group of its own. `options` are Popen's."""
    return subprocess.Popen(command, start_new_session=True, **options)


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """In a child, as early as can be: it is to get this signal when its parent dies (Linux), at once where
    that has happened already.

    Args:
        parent: id of the process that started it, to notice that; none: it is not noticed.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def wait(process: subprocess.Popen[Any], patience_s: float) -> bool:
    """Whether it has ended within that time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, patience_s))
    return process.poll() is not None


def let_go(*processes: subprocess.Popen[Any], patience_s: float) -> bool:
    """Close the standard inputs of processes that end when that happens. Returns whether all have, within
    that time."""
    for process in processes:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
    deadline = time.monotonic() + patience_s
    return all(wait(process, deadline - time.monotonic()) for process in processes)


def end(process: subprocess.Popen[Any], asked_s: float = _ASKED_S) -> None:
    """End the leader of a group with its group: asked first (SIGTERM), then killed, which also ends a frozen
    one. Nothing of the group is left.

    Args:
        asked_s: how long it is waited for before it is killed; 0: it is not asked.
    """
    if asked_s and process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)
        wait(process, asked_s)
    signal_group(process.pid, signal.SIGKILL)
    wait(process, _KILLED_S)


def signal_group(leader: int, number: int) -> None:
    """To all processes of a group, where any are left."""
    # macOS denies it for a group of which nothing but the dead is left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
