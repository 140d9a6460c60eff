"""GGUF files: one that becomes a folder, and one clear line for each that does not."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.policy import gguf_file
from paw_hpc.system.errors import DataError
from tests.policy.gguf_files import END, SHAPES, TOKENS, Made, tensors, write

pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("accelerate", reason="the extra gguf is not installed")

WEIGHTS = sum(math.prod(shape) for shape in SHAPES.values())


def refusal(file: Path) -> str:
    """What is said of a file; nothing of it may be left beside."""
    with pytest.raises(DataError) as raised:
        gguf_file.convert(file, file.parent / "folder")
    said = str(raised.value)
    assert said.startswith(f"{file}: ") and "\n" not in said
    assert not (file.parent / "folder").exists()
    return said.removeprefix(f"{file}: ")


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_whole_file_becomes_the_same_model(quantization: str, tmp_path: Path) -> None:
    """The control of all refusals below. Query and key rows are interleaved in a GGUF file of a Llama, so
    other matrices are compared."""
    made = Made(quantization=quantization)
    gguf_file.convert(write(tmp_path / "a.gguf", made), folder := tmp_path / "folder", torch.float32)
    assert gguf_file.damage(folder) is None
    loaded, expected = load_file(folder / "model.safetensors"), tensors(made)
    assert sum(tensor.numel() for tensor in loaded.values()) == sum(
        tensor.size for tensor in expected.values()
    )
    tolerance = 0.0 if quantization == "F32" else 0.03  # half of 1/127 of a block's largest
    for name, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        ("model.norm", "output_norm"),
    ):
        torch.testing.assert_close(
            loaded[f"{name}.weight"], torch.from_numpy(expected[f"{theirs}.weight"]), rtol=0.0, atol=tolerance
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == END
    assert tokenizer.encode("ab1", add_special_tokens=False) == [TOKENS.index("ab"), TOKENS.index("1")]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            Made(architecture="rwkv6"),
            "cannot be read as a causal language model: GGUF model with architecture rwkv6 is not supported",
        ),
        (
            Made(architecture="clip"),
            "cannot be read as a causal language model: GGUF model with architecture clip is not supported",
        ),
        (
            Made(quantization="Q8_1"),
            "cannot be read as a causal language model: Dequantization for Q8_1 is not yet implemented; "
            "take the",
        ),
        (Made(tokenizer=False), "it holds no tokenizer (tokenizer.ggml.model)"),
        (Made(chat_template=None), "it has no chat template"),
        (Made(ends=False), "it names no token that ends a turn"),
        (
            Made(words="deepseek-llm"),
            "text is cut into words in a way that is not known here (tokenizer.ggml.pre = deepseek-llm)",
        ),
        (Made(rotary_scaling="yarn"), "its rotary frequencies are scaled (rope.scaling.type = yarn)"),
        (Made(also=(("rope_freqs.weight", (4,)),)), "its rotary frequencies are scaled (rope_freqs.weight)"),
        (Made(parts=3), "one of 3 parts of a model"),
        (
            Made(without=("blk.0.attn_q.weight",)),
            "weights are missing (model.layers.0.self_attn.q_proj.weight)",
        ),
        (Made(without=("output_norm.weight",)), "weights are missing (model.norm.weight)"),
        (
            Made(also=(("blk.0.attn_q.bias", (32,)),)),
            f"it holds {WEIGHTS + 32} weights, and LlamaForCausalLM takes {WEIGHTS} of them",
        ),
    ],
)
def test_what_would_be_another_model_is_refused(made: Made, expected: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.gguf", made)).startswith(expected)


def newer_version(whole: bytes) -> bytes:
    return whole[:4] + struct.pack("<I", 99) + whole[8:]


def newer_quantization(whole: bytes) -> bytes:
    """The kind stands behind a tensor's name, its number of dimensions and their sizes."""
    at = whole.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    assert whole[at : at + 4] == struct.pack("<I", 0)
    return whole[:at] + struct.pack("<I", 99) + whole[at + 4 :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda whole: b"", "not a GGUF file"),
        (lambda whole: b"PK\x03\x04" + whole[4:], "not a GGUF file"),
        *[
            (lambda whole, kept=kept: whole[:kept], "torn, or of a newer kind")
            for kept in (4, 8, 20, 200, 1500)
        ],
        (lambda whole: whole[: len(whole) // 2], "torn, or of a newer kind"),
        (lambda whole: whole[:-40], "torn, or of a newer kind"),
        (
            newer_version,
            "torn, or of a newer kind than the gguf package here can read (Sorry, file appears to be "
            "version 99",
        ),
        (newer_quantization, "torn, or of a newer kind than the gguf package here can read ("),
    ],
)
def test_what_is_no_whole_file_is_refused(
    change: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    """Some of what the readers say of a torn file means nothing to anybody, so the line says what it comes
    to."""
    file = write(tmp_path / "a.gguf")
    file.write_bytes(change(file.read_bytes()))
    assert refusal(file).startswith(expected)


def test_the_command_says_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a.gguf", Made(without=("output_norm.weight",)))
    for name, expected in (
        ("a.gguf", "weights are missing"),
        ("none.gguf", "cannot be read (No such file or directory)"),
    ):
        done = CliRunner().invoke(app, ["data", "model", str(tmp_path / name)])
        assert isinstance(done.exception, DataError) and str(done.exception).startswith(
            f"{tmp_path / name}: {expected}"
        )
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []
    done = CliRunner().invoke(app, ["data", "model", str(write(tmp_path / "b.gguf"))])
    assert done.exit_code == 0 and gguf_file.damage(Path(done.stdout.strip())) is None, done.output
