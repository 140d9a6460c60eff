"""Hugging Face folders: read slice by slice, written file by file under a temporary name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from paw_hpc.policy.convert.architecture import KNOWN
from paw_hpc.policy.convert.names import Piece
from paw_hpc.system.errors import CheckpointError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors, sync_file, sync_folder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 4 << 30
"""Weights of one file; larger models are spread over several, with an index."""
_ALSO_THERE = ("lm_head.weight", ".rotary_emb.inv_freq")
"""Tensors that some folders hold beyond what their configuration asks for: a copy of the tied embedding,
buffers of old releases."""


class _Index(TypedDict):
    weight_map: dict[str, str]


class FolderReader:
    """The safetensors of a folder, opened together and read in slices: nothing is held but what `read`
    returns. Use as a context manager.

    Raises:
        CheckpointError: no safetensors, a file of the index that is missing or torn, tensors that are
            missing, unexpected or not of the shape that the configuration says.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.folder, self.shapes = folder, shapes
        self.bytes_read = 0
        """Of all slices so far."""
        self._files = contextlib.ExitStack()
        self._slices: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            for name in self._file_names():
                file = self._files.enter_context(safe_open(self.folder / name, framework="pt"))
                self._slices |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            self._check()
        except (OSError, SafetensorError) as error:
            self._files.close()
            raise CheckpointError(
                f"{self.folder}: its weights cannot be read: {' '.join(str(error).split())}"
            ) from None
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._slices.clear()
        self._files.close()

    @property
    def dtypes(self) -> set[str]:
        """Of the tensors, as safetensors names them (BF16, F32, ...)."""
        return {self._slices[name].get_dtype() for name in self.shapes}

    def read(self, piece: Piece, dim: int) -> torch.Tensor:
        """The slices of a piece along a dimension, on the CPU in the folder's dtype."""
        view = self._slices[piece.name]
        tensor = view[piece.start : piece.stop] if dim == 0 else view[:, piece.start : piece.stop]
        self.bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def _file_names(self) -> list[str]:
        if (self.folder / INDEX).is_file():
            try:
                names = sorted(
                    set(checked(_Index, read_json((self.folder / INDEX).read_bytes()))["weight_map"].values())
                )
                # Beside the index, and nowhere else; and no name that no file can have (half of a character,
                # a zero byte).
                if any(name != Path(name).name or not name.isprintable() for name in names):
                    raise ValueError
                return names
            except (OSError, ValueError):
                raise CheckpointError(
                    f"{self.folder}/{INDEX}: cannot be understood; copy the folder again"
                ) from None
        if not (self.folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{self.folder}: holds no {WEIGHTS} and no {INDEX}; only safetensors are read"
            )
        return [WEIGHTS]

    def _check(self) -> None:
        missing = sorted(self.shapes.keys() - self._slices.keys())
        odd = sorted(
            name for name in self._slices.keys() - self.shapes.keys() if not name.endswith(_ALSO_THERE)
        )
        for names, what in (
            (missing, "lacks {} tensors that its config.json asks for"),
            (odd, "has {} tensors that its config.json does not explain"),
        ):
            if names:
                raise CheckpointError(f"{self.folder}: {what.format(len(names))}, such as {names[0]}")
        for name, shape in self.shapes.items():
            found = tuple(self._slices[name].get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{self.folder}: {name} is {found}, but by its config.json it should be {shape}"
                )


class FolderWriter:
    """Writes a folder that `transformers` and SGLang load. It appears under its name, whole, in `finish`; an
    earlier model folder there is replaced.

    At most `max_file_bytes` of weights are held at a time. Use as a context manager: leaving it without
    `finish` leaves nothing behind.

    Raises:
        CheckpointError: the name is taken by something that is no model folder.
        StorageError: the disk is full.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self.folder, self.max_file_bytes = folder, max_file_bytes
        self._temporary = folder.with_name(f".{folder.name}.tmp")
        self._held: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []
        self._bytes = 0
        self._dtype = torch.float32

    def __enter__(self) -> Self:
        if (
            self.folder.exists()
            and not (self.folder / "config.json").is_file()
            and (self.folder.is_file() or any(self.folder.iterdir()))
        ):
            raise CheckpointError(
                f"{self.folder}: something that is no model folder is here; give another name"
            )
        with storage_errors(self.folder):
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """A copy of the tensor goes into the current file."""
        if self._held and _size(self._held) + tensor.numel() * tensor.element_size() > self.max_file_bytes:
            self._flush()
        self._held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._dtype = tensor.dtype

    def finish(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write what else belongs to the folder, and give it its name."""
        self._flush()
        with storage_errors(self.folder):
            self._name_files()
            described = {
                "architectures": [KNOWN[config.model_type]],
                "dtype": str(self._dtype).removeprefix("torch."),
            }
            config = type(config).from_dict(config.to_dict() | described)
            config.save_pretrained(self._temporary)
            GenerationConfig.from_model_config(config).save_pretrained(self._temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(self._temporary)
            for file in self._temporary.iterdir():
                # safetensors makes files that only their owner can read
                shutil.copymode(self._temporary / "config.json", file)
                sync_file(file)
            sync_folder(self._temporary)
            earlier = self.folder.with_name(f".{self.folder.name}.old.tmp")
            shutil.rmtree(earlier, ignore_errors=True)
            if self.folder.exists():
                os.replace(self.folder, earlier)
            os.replace(self._temporary, self.folder)
            sync_folder(self.folder.parent)
            shutil.rmtree(earlier, ignore_errors=True)

    def _flush(self) -> None:
        if not self._held:
            return
        with storage_errors(self.folder):
            try:
                save_file(self._held, self._temporary / f"part-{len(self._files)}", metadata={"format": "pt"})
            except SafetensorError as error:  # it hides the error number of a full disk in its text
                raise OSError(_errno(error), str(error)) from error
        self._files.append(list(self._held))
        self._bytes += _size(self._held)
        self._held = {}

    def _name_files(self) -> None:
        count = len(self._files)
        if count == 1:
            os.replace(self._temporary / "part-0", self._temporary / WEIGHTS)
            return
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._files):
            file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self._temporary / f"part-{i}", self._temporary / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self._temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _errno(error: SafetensorError) -> int | None:
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
