"""Checkpoints of one process, whole or absent (see checkpoint_folder.py).

DIRECTORY/update_000030/state.pt          nested tensors, numbers, random states (torch.save, weights_only)
DIRECTORY/update_000030/manifest.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from paw_hpc.policy.checkpoint_folder import (
    begin,
    check_content,
    check_recipe,
    checkpoints,
    commit,
    none_whole,
    read_manifest,
    write_manifest,
)
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import CheckpointError
from paw_hpc.system.storage import storage_errors

FORMAT = "paw_hpc checkpoint 1"
_ARRAY = "__numpy__"
_log = logging.getLogger(__name__)


def save(
    directory: str | Path, update: int, state: Mapping[str, Any], meta: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    Args:
        update: updates that are done, so the next one to play.
        state: nested mappings, lists and tuples of tensors (any device; saved as CPU), NumPy arrays, numbers,
            strings, None. Mapping keys are strings or integers.
        meta: JSON values; `meta["recipe"]` (`Recipe.model_dump(mode="json")`) lets `load` refuse the
            checkpoint of another recipe.

    Returns:
        The folder of the checkpoint.

    Raises:
        StorageError: the disk is full; the earlier checkpoints stay and nothing half-written is left.
        TypeError: something in `state` that is none of the above, with its path.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} would remove the checkpoint just written")
    directory = Path(directory)
    plain = encode(state, "state")
    described = json.dumps(meta)
    with storage_errors(directory):
        temporary = begin(directory, update)
        try:
            _write_folder(temporary, update, plain, json.loads(described))
            return commit(temporary, update, keep)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def latest(directory: str | Path) -> Path | None:
    """The newest whole checkpoint; None where there is none at all. A torn one is passed over with a logged
    warning that says what is wrong with it.

    Raises:
        CheckpointError: there are checkpoints and none of them is whole, or the directory cannot be read.
    """
    reasons = []
    for _, _, path in reversed(checkpoints(Path(directory))):
        try:
            _read_manifest(path)
        except CheckpointError as error:
            _log.warning("%s; passed over", error)
            reasons.append(str(error))
        else:
            return path
    if reasons:
        raise none_whole(Path(directory), reasons)
    return None


def load(
    path: str | Path, recipe: Recipe | None = None, may_differ: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, meta) of a checkpoint, tensors on the CPU; `meta["update"]` is the number of updates that are
    done.

    Args:
        recipe: refuse a checkpoint that another recipe made.
        may_differ: see `check_recipe`.

    Raises:
        CheckpointError: torn, not a checkpoint of paw_hpc, or made by another recipe (the differing keys are
            named).
    """
    path = Path(path)
    manifest = _read_manifest(path)
    meta = manifest["meta"]
    if recipe is not None:
        check_recipe(path, meta, recipe, may_differ)
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises many kinds; the checksum is right, so the file was never one of ours
        raise CheckpointError(
            f"{path}/state.pt: not a state that paw_hpc wrote ({type(error).__name__})"
        ) from error
    return decode(state), meta | {"update": manifest["update"]}


def _write_folder(folder: Path, update: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
    with open(folder / "state.pt", "wb") as raw:
        file = _HashedFile(raw)
        try:
            torch.save(state, cast(BinaryIO, file))
        except RuntimeError:
            # torch hides what stopped the writing (a full disk, Ctrl-C) behind an error of its own
            if file.error is not None:
                raise file.error from None
            raise
        raw.flush()
        os.fsync(raw.fileno())
    entry = {"bytes": file.written, "sha256": file.digest.hexdigest()}
    write_manifest(folder, FORMAT, update, {"state.pt": entry}, meta)


class _HashedFile:
    """What torch.save writes through: the checksum is of what was meant, so that a disk which stored
    something else is found out."""

    def __init__(self, raw: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.written = 0
        self.error: BaseException | None = None
        self._raw = raw

    def write(self, data: Any) -> int:
        try:
            self._raw.write(data)
        except BaseException as error:
            self.error = error
            raise
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def flush(self) -> None:
        self._raw.flush()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, once every file has the size and checksum that it says."""
    manifest = read_manifest(path, FORMAT)
    check_content(path, manifest["files"])
    if "state.pt" not in manifest["files"]:
        raise CheckpointError(f"{path}: not a checkpoint of paw_hpc: it holds no state.pt")
    return manifest


def encode(value: Any, where: str) -> Any:
    """Only what torch.load(weights_only=True) reads back. A tensor that is a part of a larger storage is
    copied, so that only the part is saved."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return (
            tensor
            if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            else tensor.clone()
        )
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value).copy()).clone()}
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, (str, int))]
        if strange or _ARRAY in value:
            raise TypeError(
                f"{where}: mapping keys are strings or integers, found {strange[0]!r}"
                if strange
                else f"{where}: {_ARRAY} is reserved"
            )
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(encode(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"{where}: a checkpoint holds tensors, arrays, numbers, strings, lists and mappings, not "
        f"{type(value).__name__}"
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, dict):
        return (
            value[_ARRAY].numpy() if _ARRAY in value else {key: decode(item) for key, item in value.items()}
        )
    if isinstance(value, (list, tuple)):
        return type(value)(decode(item) for item in value)
    return value
