"""Tensors into safetensors files as they come.

The library's writer wants a whole file's tensors at once, and copies each of them twice. Here the header,
which comes first and names everything, has room left for it and is written last.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from paw_hpc.rollout.sglang.publish.buckets import NamedTensors

_ROOM_BYTES = 1 << 20
"""Of a file's header, its own length included."""
_LENGTH_BYTES = 8
_ENTRY_BYTES = 512
"""More than one tensor takes in the header."""
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class WeightFiles:
    """Writes model-00001.safetensors and so on, of at most `limit_bytes`, or of one tensor that is larger. A
    context manager: leaving it ends the last file. `places` tells which file has which tensor.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        self._folder, self._limit = folder, limit_bytes
        self.weight_map: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._header: dict[str, Any] = {}
        self._size = self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def add_all(self, tensors: NamedTensors) -> None:
        for name, tensor in tensors:
            self.add(name, tensor)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        full = (
            self._size + tensor.nbytes > self._limit or (len(self._header) + 1) * _ENTRY_BYTES > _ROOM_BYTES
        )
        if self._file is None or full:
            self._begin()
        assert self._file is not None
        self._file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        offsets = [self._size, self._size + tensor.nbytes]
        self._header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        self._size = offsets[1]
        self.weight_map[name] = Path(self._file.name).name

    def _begin(self) -> None:
        self._end()
        self._count += 1
        self._file = open(self._folder / f"model-{self._count:05d}.safetensors", "wb")  # noqa: SIM115 (ended by _end)
        self._header, self._size = {"__metadata__": {"format": "pt"}}, 0
        self._file.seek(_ROOM_BYTES)

    def _end(self) -> None:
        if self._file is None:
            return
        with self._file:
            self._file.seek(0)
            room = _ROOM_BYTES - _LENGTH_BYTES
            self._file.write(struct.pack("<Q", room) + json.dumps(self._header).encode().ljust(room))
        self._file = None
