"""Checkpoints from another hand: what is planted in them is refused, and does not run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from paw_hpc.policy.megatron import checkpoint as megatron_checkpoint
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.system.errors import CheckpointError
from tests.policy.checkpoint_ranks import policy, save
from tests.policy.test_megatron_checkpoint import write_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def planted(checkpoint: Path, part: str) -> None:
    """Put a bomb into a checkpoint, whose manifest then says that all is as it was written."""
    if part == "metadata":
        data = pickle.dumps(Bomb())
        (checkpoint / ".metadata").write_bytes(data)
    elif part == "dotted":
        (checkpoint / ".metadata").write_bytes(
            b"\x80\x04\x8c'torch.distributed.checkpoint.filesystem\x94\x8c\x08os.mkdir\x94\x93\x8c\x04BOMB\x85R."
        )
    elif part == "common":
        torch.save(Bomb(), checkpoint / "common.pt")
    else:
        plant_object(checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def plant_object(checkpoint: Path) -> None:
    """In the place of an object that is no tensor: appended to its file, where `.metadata` then says it
    is."""
    with open(checkpoint / ".metadata", "rb") as file:
        metadata = pickle.load(file)
    index, info = next((i, info) for i, info in metadata.storage_data.items() if i.fqn.startswith("random"))
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    with open(checkpoint / info.relative_path, "ab") as file:
        offset = file.tell()
        file.write(buffer.getvalue())
    metadata.storage_data[index] = dataclasses.replace(info, offset=offset, length=len(buffer.getvalue()))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("part", ["metadata", "dotted", "common", "object"])
def test_a_bomb_in_a_checkpoint_is_refused_and_does_not_go_off(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model", layers=2)
    layout = Layout()
    one = policy(layout, tmp_path)
    save(one, tmp_path / "own", 1)
    [checkpoint] = (tmp_path / "own").glob("update_*")
    assert one.resume(tmp_path / "own") == 1
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    planted(checkpoint, part)
    with pytest.raises(CheckpointError, match="it does not hold what the run asks for"):
        one.resume(tmp_path / "own")
    assert not (tmp_path / "exploded").exists()
    # Control: read as the libraries do by themselves, it would have gone off.
    if part in ("metadata", "object"):
        monkeypatch.setattr(megatron_checkpoint, "restricted", contextlib.nullcontext)
        with contextlib.suppress(CheckpointError):
            one.resume(tmp_path / "own")
        assert (tmp_path / "exploded").exists()
    layout.close()
