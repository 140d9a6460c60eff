"""Ending processes that this program started, with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

_ASKED_S = 5.0


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group of its own: asked first, then killed, which also ends a frozen one."""
    for number, patience_s in ((signal.SIGTERM, _ASKED_S), (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
