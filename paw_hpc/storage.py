"""Files that are whole or absent: written beside their place, synced, then renamed; and a full disk said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paw_hpc.errors import StorageError

_REASONS = {errno.ENOSPC: "no space left on the disk", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the file system is read-only"}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Inside, a full or read-only disk becomes a StorageError that names `path`; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise StorageError(
            f"{path}: {_REASONS[error.errno]}; nothing that was whole is lost: make room, then start the same command again to resume"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) so that a reader, and a kill at any moment, sees the old content or the new, never a part.

    Raises:
        StorageError: the disk is full or read-only; `path` keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def sync_file(file: Path) -> None:
    """Make the content of a file durable."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
