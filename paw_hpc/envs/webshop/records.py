"""JSON records in one file, read at random: NAME.jsonl, and the offsets of its lines in NAME.npy
(int64[n+1])."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np


class RecordFile:
    """Opened memory-mapped: a process pays for the records that it reads."""

    def __init__(self, folder: Path, name: str):
        self._offsets = np.load(folder / f"{name}.npy", mmap_mode="r")
        self._data = (
            np.memmap(folder / f"{name}.jsonl", dtype=np.uint8, mode="r")
            if self._offsets[-1]
            else np.zeros(0, np.uint8)
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Any:
        return json.loads(self._data[self._offsets[index] : self._offsets[index + 1]].tobytes())


class RecordWriter:
    """Writes a `RecordFile`; whole when the block has ended."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name, self._offsets = folder, name, [0]

    def __enter__(self) -> Self:
        self._file = (self._folder / f"{self._name}.jsonl").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            np.save(self._folder / f"{self._name}.npy", np.array(self._offsets, dtype=np.int64))

    def add(self, record: Any) -> None:
        line = (
            json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
            + b"\n"
        )
        self._offsets.append(self._offsets[-1] + self._file.write(line))
