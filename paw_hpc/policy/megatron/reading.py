"""Reading a distributed checkpoint without running what is in it.

PyTorch reads two parts of its distributed format by unpickling without limits (2.12: the file `.metadata`,
and every object that is no tensor), so a checkpoint from another hand could run code as whoever loads it;
checksums do not help, since its manifest comes from the same hand. Inside `restricted()` the first may name
the classes of the format alone, and the second are read as `torch.load(weights_only=True)` does.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint import default_planner, filesystem

from paw_hpc.policy.megatron.patches import TORCH, patched

_PLANNER = default_planner.DefaultLoadPlanner
_METADATA = "torch.distributed.checkpoint.metadata"
_NAMES = {
    *(
        (_METADATA, name)
        for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING")
    ),
    *(
        (_METADATA, name)
        for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata")
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.planner", name)
        for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    ),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
"""(module, name) of what `.metadata` is made of, beside the names of dtypes."""
_DTYPES = {
    str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)
}


@contextlib.contextmanager
def restricted() -> Iterator[None]:
    """Inside, `torch.distributed.checkpoint` unpickles data only, and raises pickle.UnpicklingError for
    anything else."""
    with (
        patched(filesystem, "pickle", _DataOnly, written_for=TORCH),
        patched(_PLANNER, "load_bytes", _load_bytes, written_for=TORCH),
    ):
        yield


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # By whole names: a dotted one would walk from an allowed class to whatever its module has imported.
        if (module, name) in _NAMES or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which is no part of a checkpoint")


class _DataOnly:
    """Stands in for the module `pickle` where checkpoints are read (and not written)."""

    @staticmethod
    def load(file: io.BufferedIOBase) -> Any:
        return _MetadataUnpickler(file).load()


def _load_bytes(planner: Any, item: Any, value: io.BytesIO) -> None:
    """DefaultLoadPlanner.load_bytes, with `weights_only`."""
    loaded, name = torch.load(value, weights_only=True), item.dest_index.fqn
    if planner.flatten_state_dict:
        default_planner.set_element(planner.original_state_dict, planner.mappings[name], loaded)
    else:
        planner.state_dict[name] = loaded
