"""A folder for the files of one test process, gone when the process ends."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = "/dev/shm"
_ROOTS: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def folder(name: str) -> Path:
    """The same at every call."""
    if not _ROOTS:
        _ROOTS.append(
            tempfile.TemporaryDirectory(
                prefix="paw-fuzz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
            )
        )
    path = Path(_ROOTS[0].name) / name
    path.mkdir(parents=True)
    return path


def emptied(name: str) -> Path:
    """The folder, with nothing in it."""
    path = folder(name)
    for inside in path.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    return path
