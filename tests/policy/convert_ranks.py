"""What each of four gloo ranks does in `test_convert`: a model of every family into every layout and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paw_hpc.policy.convert import names, transfer
from paw_hpc.policy.convert.architecture import read_architecture
from paw_hpc.policy.convert.transfer import export_hf, hf_tensors, load_hf, named_parameters
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.model import PackedGPT, build_model
from paw_hpc.system.errors import CheckpointError, UserError
from tests.factories import tiny_recipe
from tests.policy.models import word_tokenizer

LAYOUTS = {
    "TP2 x DP2": Layout(tensor=2, data=2),
    "PP2 x DP2": Layout(pipeline=2, data=2),
    "TP2 x PP2": Layout(tensor=2, pipeline=2),
    "PP2 interleaved x DP2": Layout(pipeline=2, virtual=2, data=2),
}


def loaded(folder: Path, layout: Layout, dtype: str = "float32") -> tuple[list[PackedGPT], int]:
    """Chunks with a folder's weights, and the bytes that were read for them. Parameters are not numbers
    before."""
    architecture, config = read_architecture(folder)
    chunks = build_model(config, layout, tiny_recipe(**{"model.dtype": dtype}))
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(torch.nan)
    return chunks, load_hf(chunks, folder, layout, architecture)


def models(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "models").iterdir())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def every_rank_gathers_the_folder_bit_for_bit(rank: int, folder: Path) -> None:
    for layout in LAYOUTS.values():
        layout.open()
        for source in models(folder):
            architecture, _ = read_architecture(source)
            chunks, _ = loaded(source, layout, "bfloat16" if "bfloat16" in source.name else "float32")
            for bucket_bytes in (1, 20_000, 1 << 30) if layout == LAYOUTS["TP2 x PP2"] else (20_000,):
                found = [
                    (name, tensor.clone())
                    for name, tensor in hf_tensors(chunks, layout, architecture, bucket_bytes)
                ]
                assert len(found) == len(dict(found)), "a tensor came twice"
                assert_same(dict(found), tensors_of(source))
        layout.close()


def a_rank_reads_and_holds_its_share_only(rank: int, folder: Path) -> None:
    layout = LAYOUTS["TP2 x PP2"]
    layout.open()
    for source in models(folder):
        architecture, _ = read_architecture(source)
        chunks, read = loaded(source, layout)
        item = torch.bfloat16.itemsize if "bfloat16" in source.name else torch.float32.itemsize
        own = named_parameters(chunks, layout, architecture)
        # one of 52 rows
        padding = sum(
            architecture.hidden
            for n in own
            if n in (names.EMBEDDING, names.OUTPUT) and layout.tensor_rank == 1
        )
        assert read == item * (sum(p.numel() for p in own.values()) - padding)
        whole = item * sum(torch.Size(shape).numel() for shape in names.hf_shapes(architecture).values())
        assert read < 0.45 * whole
    layout.close()


def the_padded_vocabulary_is_zero(rank: int, folder: Path) -> None:
    layout = LAYOUTS["TP2 x PP2"]
    layout.open()
    for source in models(folder):
        architecture, _ = read_architecture(source)
        own = named_parameters(loaded(source, layout)[0], layout, architecture)
        for name in {names.EMBEDDING, names.OUTPUT} & own.keys():
            assert own[name].shape[0] == 26
            assert own[name][-1].abs().sum() > 0 if layout.tensor_rank == 0 else not own[name][-1].any()
    layout.close()


def exported_folders_are_the_sources_and_load_in_transformers(rank: int, folder: Path) -> None:
    layout = LAYOUTS["TP2 x PP2"]
    layout.open()
    for source in models(folder):
        architecture, config = read_architecture(source)
        chunks, _ = loaded(source, layout, "bfloat16" if "bfloat16" in source.name else "float32")
        out = folder / "out" / source.name
        for max_file_bytes in (20_000, 1 << 30):  # the second replaces the first
            export_hf(
                chunks, out, layout, config, architecture, word_tokenizer(), max_file_bytes=max_file_bytes
            )
            files = sorted(path.name for path in out.glob("*.safetensors*"))
            assert (
                files == ["model.safetensors"]
                if max_file_bytes > 20_000
                else "model.safetensors.index.json" in files and len(files) > 3
            )
            assert_same(tensors_of(out), tensors_of(source))
            # our own folders are read, too
            chunks, _ = loaded(out, layout, "bfloat16" if "bfloat16" in source.name else "float32")
        if rank == 0:
            ours, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
            assert (
                not info["missing_keys"]
                and not info["unexpected_keys"]
                and ours.dtype == next(iter(tensors_of(source).values())).dtype
            )
            assert_same(
                dict(ours.state_dict()), dict(AutoModelForCausalLM.from_pretrained(source).state_dict())
            )
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        path.name for path in models(folder)
    ], "leftovers"
    layout.close()


def a_wrong_layout_is_seen(rank: int, folder: Path) -> None:
    source, layout = folder / "models" / "qwen2 tied", LAYOUTS["TP2 x DP2"]
    architecture, _ = read_architecture(source)
    gate_and_up = names.gate_and_up
    layout.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "gate_and_up", lambda layer: gate_and_up(layer)[::-1])
        chunks, _ = loaded(source, layout)
    with pytest.raises(AssertionError, match=r"gate_proj|up_proj"):
        assert_same(dict(hf_tensors(chunks, layout, architecture)), tensors_of(source))
    layout.close()


def an_error_of_the_writing_rank_is_raised_on_all(rank: int, folder: Path) -> None:
    source, layout = folder / "models" / "qwen2 tied", LAYOUTS["TP2 x DP2"]
    architecture, config = read_architecture(source)
    layout.open()
    chunks, _ = loaded(source, layout)
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="something that is no model folder is here"):
        export_hf(chunks, folder / "taken", layout, config, architecture)
    with pytest.raises(CheckpointError, match="the tokenizer has 60 tokens but the model only 51"):
        export_hf(chunks, folder / "other", layout, config, architecture, word_tokenizer(60))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(transfer.FolderWriter, "add", lambda *_: 1 / 0)
        with pytest.raises(UserError if rank else ZeroDivisionError, match="division by zero"):
            export_hf(chunks, folder / "other", layout, config, architecture, bucket_bytes=1)
    dist.barrier()
    assert not (folder / "other").exists() and not (folder / ".other.tmp").exists()
    layout.close()


def folders_of_other_models_are_refused(rank: int, folder: Path) -> None:
    layout = LAYOUTS["TP2 x DP2"]
    layout.open()
    source = folder / "models" / "qwen2 tied"
    architecture, config = read_architecture(source)
    chunks = build_model(config, layout, tiny_recipe())
    good = tensors_of(source)
    bad = folder / f"bad-{rank}"
    for change, message in (
        (
            {"model.layers.1.mlp.up_proj.weight": None},
            r"lacks 1 tensors .* such as model.layers.1.mlp.up_proj.weight",
        ),
        (
            {"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)},
            r"has 1 tensors that its config.json does not explain, such as .*o_proj.bias",
        ),
        (
            {"model.norm.weight": torch.ones(31)},
            r"model.norm.weight is \(31,\), but by its config.json it should be \(32,\)",
        ),
    ):
        bad.mkdir(exist_ok=True)
        save_file(
            {name: tensor for name, tensor in (good | change).items() if tensor is not None},
            bad / "model.safetensors",
        )
        with pytest.raises(CheckpointError, match=message):
            load_hf(chunks, bad, layout, architecture)
    (bad / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="its weights cannot be read"):
        load_hf(chunks, bad, layout, architecture)
    os.remove(bad / "model.safetensors")
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        load_hf(chunks, bad, layout, architecture)
    with pytest.raises(
        CheckpointError, match=r"the Megatron model and its configuration differ in \d+ parameters"
    ):
        load_hf(
            chunks,
            folder / "models" / "llama tied",
            layout,
            read_architecture(folder / "models" / "llama tied")[0],
        )
    layout.close()


CASES = [
    every_rank_gathers_the_folder_bit_for_bit,
    a_rank_reads_and_holds_its_share_only,
    the_padded_vocabulary_is_zero,
    exported_folders_are_the_sources_and_load_in_transformers,
    a_wrong_layout_is_seen,
    an_error_of_the_writing_rank_is_raised_on_all,
    folders_of_other_models_are_refused,
]
