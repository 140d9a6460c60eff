"""Passages on disk: JSON lines with `id` and `contents`, read by number through a table of offsets, so that
21 million cost 168 MB of mapped memory.

`contents` is a title in quotes on the first line and the text after it, as in the public wiki-18 dump.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from paw_hpc.system.data_paths import atomic_file
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.text import require_text

OFFSETS, IDENTITY = "offsets.npy", "corpus.json"
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a corpus."""

    passage_id: str
    contents: str

    @property
    def title(self) -> str:
        return self.contents.partition("\n")[0].strip().strip('"') if "\n" in self.contents else ""

    @property
    def text(self) -> str:
        return self.contents.partition("\n")[2] if "\n" in self.contents else self.contents


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one corpus file from another: `sha256` of its bytes, size, number of passages."""

    passages: int
    size_bytes: int
    sha256: str


class Corpus:
    """The passages of a file, by number. The file and its table of offsets are memory-mapped; a fork or
    another process shares them.

    Args:
        path: the JSON-lines file.
        folder: where `index_corpus` wrote the table of offsets.

    Raises:
        DataError: file or table missing, or the file is not the one that was indexed (another size).
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.identity = path, read_identity(folder)
        if not path.is_file():
            raise DataError(
                f"{path}: no such corpus; the index in {folder} was built from it: put it back, or build "
                "the index anew"
            )
        if (size := path.stat().st_size) != self.identity.size_bytes:
            raise DataError(
                f"{path}: {size} bytes, but the index in {folder} is of a corpus of "
                f"{self.identity.size_bytes} bytes "
                "(changed or cut short); restore it, or build the index anew"
            )
        try:
            self._offsets = np.load(folder / OFFSETS, mmap_mode="r")
            whole = (
                self._offsets.dtype == np.int64
                and int(self._offsets[-1]) == size
                and len(self._offsets) == self.identity.passages + 1
            )
        except Exception:  # NumPy raises many kinds for what is no array
            whole = False
        if not whole:
            raise DataError(f"{folder / OFFSETS}: torn; build the index anew with `paw data search build`")
        self._file = path.open("rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return self.identity.passages

    def __getitem__(self, number: int) -> Passage:
        first, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return parse_passage(self._map[first:end], f"{self.path}:{number + 1}")

    def __iter__(self) -> Iterator[Passage]:
        return (self[number] for number in range(len(self)))


def index_corpus(path: Path, folder: Path) -> Identity:
    """Read a corpus once, check that every line is a passage, and write offsets and identity into `folder`.

    Raises:
        DataError: missing, empty, compressed or torn file; names the line.
    """
    if path.suffix in (".gz", ".xz", ".zst"):
        raise DataError(f"{path}: compressed; unpack it first (passages are read by their place in the file)")
    digest, offsets, where, blank = hashlib.sha256(), [0], 0, 0
    try:
        with path.open("rb", buffering=_BLOCK_BYTES) as lines:
            for number, line in enumerate(lines, 1):
                digest.update(line)
                where += len(line)
                if not line.strip():  # nothing may come after: passages are numbered as lines
                    blank = blank or number
                    offsets[-1] = where
                    continue
                if blank:
                    raise DataError(
                        f"{path}:{blank}: an empty line between passages; remove it, or restore the corpus"
                    )
                if not line.endswith(b"\n"):
                    _check_last(line, f"{path}:{number}")
                parse_passage(line, f"{path}:{number}")
                offsets.append(where)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a corpus in JSON lines with id and contents"
        ) from None
    if len(offsets) == 1:
        raise DataError(f"{path}: empty; a corpus has one passage a line")
    identity = Identity(len(offsets) - 1, where, digest.hexdigest())
    with atomic_file(folder / OFFSETS) as file:
        np.save(file, np.asarray(offsets, dtype=np.int64))
    with atomic_file(folder / IDENTITY) as file:
        file.write(json.dumps(asdict(identity)).encode())
    return identity


def read_identity(folder: Path) -> Identity:
    """What `index_corpus` said of the corpus of an index folder. Raises DataError."""
    try:
        return checked(Identity, read_json((folder / IDENTITY).read_bytes()))
    except (OSError, ValueError):
        raise DataError(
            f"{folder}: no whole index (its {IDENTITY} is missing or torn); run `paw data search build`"
        ) from None


def parse_passage(line: bytes, where: str) -> Passage:
    """One line of a corpus. Raises DataError that names `where`."""
    try:
        record = read_json(line)
        contents = record["contents"]
        if not isinstance(record.get("id"), str | int | float | None):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{where}: not a passage (expected a JSON object with id and contents); the corpus is torn or "
            "of another format"
        ) from None
    if not isinstance(contents, str) or not contents.strip():
        raise DataError(f"{where}: a passage without contents; remove the line or restore the corpus")
    passage = Passage(str(record.get("id", "")), contents)
    try:
        require_text(contents, "contents")
        require_text(passage.passage_id, "id")
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct the line or restore the corpus") from None
    return passage


def _check_last(line: bytes, where: str) -> None:
    try:
        read_json(line)
    except ValueError:
        raise DataError(
            f"{where}: the last line is cut short; restore the corpus (was its download or unpacking "
            "interrupted?)"
        ) from None


@functools.lru_cache(maxsize=8)
def open_corpus(path: Path, folder: Path) -> Corpus:
    """A corpus, opened once per process."""
    return Corpus(path, folder)
