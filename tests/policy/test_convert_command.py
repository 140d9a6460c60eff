"""`paw convert` both ways in one process, for any target layout, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paw_hpc.policy.convert.transfer import load_hf
from paw_hpc.policy.megatron.conversion import Target, convert
from paw_hpc.system.errors import CheckpointError, RecipeError
from tests.policy.convert_ranks import tensors_of
from tests.policy.models import model_folder, word_tokenizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="conversion is on the CPU")


@pytest.mark.parametrize("name", ["qwen2 tied", "qwen2 untied", "qwen3", "llama"])
def test_there_and_back_is_the_same_folder(tmp_path: Path, name: str) -> None:
    source = Path(model_folder(tmp_path / "source", name))
    assert convert(source, tmp_path / "checkpoint", Target(tensor=2, pipeline=2)).endswith(
        "a Megatron checkpoint for any layout"
    )
    # By the directory, then by the checkpoint itself.
    for i, place in enumerate((tmp_path / "checkpoint", tmp_path / "checkpoint" / "update_000000")):
        convert(place, tmp_path / f"back-{i}", Target())
        expected, found = tensors_of(source), tensors_of(tmp_path / f"back-{i}")
        assert found.keys() == expected.keys() and all(
            torch.equal(found[key], expected[key]) for key in expected
        )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back-0")
    assert again.config.to_diff_dict() == AutoModelForCausalLM.from_pretrained(source).config.to_diff_dict()


def test_the_weights_that_are_read_are_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A negative control: what is exported must come from the distributed files, not from memory or the
    # source.
    source = Path(model_folder(tmp_path / "source"))

    def doubled(chunks, *arguments):
        read = load_hf(chunks, *arguments)
        for parameter in chunks[0].parameters():
            parameter.data.mul_(2)
        return read

    monkeypatch.setattr("paw_hpc.policy.megatron.conversion.load_hf", doubled)
    convert(source, tmp_path / "checkpoint", Target())
    monkeypatch.undo()
    convert(tmp_path / "checkpoint", tmp_path / "back", Target())
    expected, found = tensors_of(source), tensors_of(tmp_path / "back")
    assert all(torch.equal(found[key], 2 * expected[key]) for key in expected)


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    source = Path(model_folder(tmp_path / "source"))
    with pytest.raises(
        RecipeError, match=r"megatron.tensor_parallel: 3 does not divide the model's 4 attention heads"
    ):
        convert(source, tmp_path / "out", Target(tensor=3))
    with pytest.raises(CheckpointError, match="neither a Hugging Face folder"):
        convert(tmp_path, tmp_path / "out", Target())
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", Target())
    with pytest.raises(CheckpointError, match="it is not empty; give a new folder"):
        convert(source, tmp_path / "out", Target())
    checkpoint = tmp_path / "out" / "update_000000"
    file = next(checkpoint.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"torn: __0_0.distcp has \d+ bytes of \d+"):
        convert(checkpoint, tmp_path / "back", Target())
    word_tokenizer(60).save_pretrained(source)
    with pytest.raises(CheckpointError, match="the tokenizer has 60 tokens but the model only 50"):
        convert(source, tmp_path / "another", Target())
