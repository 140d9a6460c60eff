"""Where data is looked for, and where what was fetched or generated is kept.

Looked for, in this order: the folder `$PAW_DATA`, `../shared/data` beside the checkout (a nicety of a source
checkout, never a requirement), the cache. The cache is `$PAW_CACHE`, or `~/.cache/paw_hpc`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from paw_hpc.system.errors import DataError


def cache_root() -> Path:
    """The cache folder (it need not exist yet)."""
    return Path(os.environ.get("PAW_CACHE") or Path.home() / ".cache" / "paw_hpc").expanduser()


def cache_dir(*parts: str) -> Path:
    """A folder of the cache, made if missing. Raises DataError when it cannot be made."""
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the cache folder cannot be made ({error.strerror}); set PAW_CACHE to a writable "
            "folder"
        ) from None
    return folder


def data_roots() -> list[Path]:
    """The folders that exist and may hold data, first choice first. Raises DataError when $PAW_DATA is set
    but is no folder."""
    roots: list[Path] = []
    if named := os.environ.get("PAW_DATA"):
        if not Path(named).expanduser().is_dir():
            raise DataError(f"PAW_DATA={named}: no such folder; set it to a folder with data, or unset it")
        roots.append(Path(named).expanduser())
    roots += [base.parent / "shared" / "data" for base in _checkouts()]
    roots.append(cache_root())
    return list(dict.fromkeys(root.resolve() for root in roots if os.path.isdir(root)))


def _checkouts() -> list[Path]:
    source = Path(__file__).resolve().parents[2]
    # os.path's questions are answered no, not with an error, where a folder above is another user's: what is
    # only looked for may be out of reach.
    editable = [source] if os.path.isfile(source / "pyproject.toml") else []
    return [*editable, Path.cwd()]


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write `path` whole or not at all: a temporary file beside it, moved into place when the block ends
    without an exception.

    Raises:
        DataError: the folder is not writable or the disk is full.
    """
    try:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # not through tempfile, whose files are for their owner alone whatever the umask
        with open(temporary, "xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or set PAW_CACHE to "
            "another folder"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock named after `path` between processes; the system drops it when the holder dies. Raises
    DataError in a read-only folder."""
    try:
        file = (path.parent / f".{path.name}.lock").open("w")
    except OSError as error:
        raise DataError(
            f"{path.parent}: the cache cannot be written ({error.strerror}); set PAW_CACHE to a writable "
            "folder"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
