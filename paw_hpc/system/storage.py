"""Files that are whole or absent: written beside their place, synced, then renamed; and a full disk said in
one line."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paw_hpc.system.errors import StorageError

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
}
_ELSEWHERE = {
    errno.EACCES: "it may not be written (permission denied)",
    errno.EPERM: "it may not be written (not permitted)",
    errno.ENOTDIR: "a part of this path is a file and no folder",
    errno.EEXIST: "a file stands where a folder must be",
    errno.EISDIR: "a folder stands where a file must be",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Inside, what a disk may refuse (full, read-only, no permission, a file in the way) becomes a
    StorageError that names `path`; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "nothing that was whole is lost: make room, then start the same command again to resume"
            raise StorageError(f"{path}: {_FULL[error.errno]}; {advice}") from error
        if error.errno in _ELSEWHERE:
            raise StorageError(
                f"{path}: {_ELSEWHERE[error.errno]}; change that, or name another place"
            ) from error
        raise


def check_writable(folder: Path) -> None:
    """Make the folder where there is none, and see that a file can be written there: before the work whose
    result it is for.

    Raises:
        StorageError: it cannot.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) so that a reader, and a kill at any moment, sees the old content or
    the new, never a part.

    Raises:
        StorageError: the disk is full or read-only, or `path` may not be written; it keeps its old content.
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


def append(file: io.FileIO, data: bytes, *, durable: bool = False) -> None:
    """Write all of `data` at the end of an unbuffered file, or nothing of it.

    Args:
        durable: on the disk when this returns.

    Raises:
        OSError: the file is as it was.
    """
    before = file.seek(0, os.SEEK_END)
    try:
        rest = data
        while rest:  # a nearly full disk takes a part and refuses the next
            rest = rest[file.write(rest) :]
        if durable:
            os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), before)
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
