"""Hugging Face -> Megatron -> Hugging Face on four ranks, and what its folders refuse. The ranks' cases are
in `convert_ranks`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from paw_hpc.policy.convert import folder as folders
from paw_hpc.policy.convert.architecture import read_architecture
from paw_hpc.policy.convert.folder import FolderReader, FolderWriter
from paw_hpc.policy.convert.names import Piece, hf_shapes
from paw_hpc.policy.convert.transfer import _buckets, _Entry, _offsets
from paw_hpc.system.errors import CheckpointError, StorageError
from tests.policy import convert_ranks
from tests.policy.models import SIZES, sharpen
from tests.policy.test_convert_names import CONFIGS
from tests.processes import run_ranks

LARGER: dict[str, Any] = {"vocab_size": 51, "num_hidden_layers": 4}
"""A vocabulary that two ranks must pad, and layers for two stages of two chunks."""


def model(name: str) -> PreTrainedModel:
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | LARGER | {"layer_types": None})
    torch.manual_seed(0)
    made = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM, "llama": LlamaForCausalLM}[
        config.model_type
    ](config).eval()
    sharpen(made)
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")
def test_round_trips_on_four_ranks(tmp_path: Path) -> None:
    for name in CONFIGS:
        # In several files with an index, or in one.
        model(name).save_pretrained(
            tmp_path / "models" / name, max_shard_size="50KB" if "untied" in name else "5GB"
        )
    model("qwen3 tied").bfloat16().save_pretrained(tmp_path / "models" / "qwen3 tied bfloat16")
    assert (tmp_path / "models" / "llama untied" / "model.safetensors.index.json").is_file()
    run_ranks(4, convert_ranks.CASES, tmp_path)


# --- folders ---


def test_slices_are_read_and_counted(tmp_path: Path) -> None:
    model("qwen2 tied").save_pretrained(tmp_path)
    architecture, _ = read_architecture(tmp_path)
    weight = "model.layers.1.mlp.down_proj.weight"
    expected = convert_ranks.tensors_of(tmp_path)[weight]
    with FolderReader(tmp_path, hf_shapes(architecture)) as reader:
        assert (
            torch.equal(reader.read(Piece(weight, 16, 48), 1), expected[:, 16:48])
            and reader.bytes_read == 32 * 32 * 4
        )
        assert torch.equal(reader.read(Piece(weight, 3, 5), 0), expected[3:5])


def test_a_folder_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    model("qwen2 tied").save_pretrained(tmp_path, max_shard_size="50KB")
    architecture, _ = read_architecture(tmp_path)
    os.remove(tmp_path / "model-00002-of-00004.safetensors")
    with (
        pytest.raises(
            CheckpointError, match=r"its weights cannot be read: .*model-00002-of-00004.safetensors"
        ),
        FolderReader(tmp_path, hf_shapes(architecture)),
    ):
        pass


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/model.safetensors", "half of a character \ud83d", "a\0b", "a\nb"]
)
def test_an_index_that_names_what_is_no_file_beside_it_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="cannot be understood"), FolderReader(tmp_path, {"a": (1,)}):
        pass


def test_unknown_architectures_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}'
    )
    with pytest.raises(
        CheckpointError,
        match=r"config.json: model_type 'mixtral' cannot be trained with Megatron; known: qwen2, qwen3, "
        r"llama",
    ):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a Hugging Face folder"):
        read_architecture(tmp_path)


def test_writing_leaves_nothing_half_written_and_says_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Qwen2Config(**SIZES)
    with FolderWriter(tmp_path / "model", max_file_bytes=100) as writer:
        for i in range(3):
            writer.add(f"w{i}", torch.full((4, 5), float(i)))
        assert not (tmp_path / "model").exists()
        writer.finish(config, None)
    whole = convert_ranks.tensors_of(tmp_path / "model")
    assert len(whole) == 3 and all((tensor == int(name[1])).all() for name, tensor in whole.items())
    mode = (tmp_path / "model" / "config.json").stat().st_mode
    assert all(path.stat().st_mode == mode for path in (tmp_path / "model").iterdir()), (
        "readable by whoever may read the folder"
    )

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folders, "save_file", full)
    with (
        pytest.raises(StorageError, match="no space left on the disk"),
        FolderWriter(tmp_path / "model") as writer,
    ):
        writer.add("w0", torch.ones(4, 5))
        writer.finish(config, None)
    assert convert_ranks.tensors_of(tmp_path / "model").keys() == whole.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_buckets_stay_within_their_bytes() -> None:
    entries = [
        _Entry(stage, f"w{i}", (i % 7 + 1, 3), torch.bfloat16) for stage in range(3) for i in range(20)
    ]
    for limit in (1, 50, 100, 1000):
        buckets = list(_buckets(entries, limit))
        assert [entry for bucket in buckets for entry in bucket] == entries
        for bucket in buckets:
            assert len({entry.stage for entry in bucket}) == 1
            assert len(bucket) == 1 or _offsets(bucket)[-1] + bucket[-1].nbytes <= limit
        assert len(buckets) == (60 if limit == 1 else 3 if limit == 1000 else len(buckets))
