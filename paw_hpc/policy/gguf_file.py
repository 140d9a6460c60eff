"""A model in one GGUF file (llama.cpp's format), as a Hugging Face folder that this project and everything
else can load.

`transformers` reads the tensors, undoes their quantization and knows the names. What it does not read, and
what would change the model unnoticed, is put right here (how text is cut before byte pairs are merged) or
refused (rotary scalings, weights that are missing or that nothing takes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from paw_hpc.system.errors import DataError
from paw_hpc.system.storage import storage_errors, sync_file

CHECKSUMS = "SHA256SUMS"
"""The file of a folder that says what its other files hold, in the form that `sha256sum --check` reads."""
_UNPACKED: dict[str, Any] = (
    {"quantization_config": transformers.GgufConfig(dequantize=True)}
    if hasattr(transformers, "GgufConfig")
    else {}
)
"""Newer versions of `transformers` may keep the file's blocks as they are."""
_MAGIC = b"GGUF"
_UNREADABLE = (ValueError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError)
"""What the readers of `gguf` and `transformers` raise for a file that they cannot read."""
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
"""What a GGUF file calls these tokens; some versions of `transformers` (5.17, say) take one for another."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| "
    r"?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights, configuration, tokenizer with chat template, and their checksums into a new folder.

    Args:
        folder: must not exist; whoever calls gives it its name when it is whole.
        dtype: of the weights, whatever their quantization was.

    Raises:
        DataError: no GGUF file, one that is torn, an architecture that `transformers` does not read, or a
            file that would become another model.
        StorageError: the disk is full.
        ModuleNotFoundError: the extra `gguf` is not installed.
    """
    import accelerate  # noqa: F401  transformers asks for it when it reads a GGUF file
    import gguf

    with storage_errors(file), file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise DataError(f"{file}: not a GGUF file")
    try:
        reader = gguf.GGUFReader(file)
    except _UNREADABLE as error:
        raise DataError(
            f"{file}: torn, or of a newer kind than the gguf package here can read ({_one_line(error)}); "
            "fetch it again, or upgrade gguf"
        ) from None
    try:
        facts = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith(("tokenizer.ggml.tok", "tokenizer.ggml.merges"))
        }
        _refuse_parts(file, facts)
        _refuse_rotary_scaling(file, facts, {tensor.name for tensor in reader.tensors})
        tokenizer = _tokenizer(file, facts)
        read: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True, **_UNPACKED
        )
    except _UNREADABLE as error:
        raise DataError(
            f"{file}: cannot be read as a causal language model: {_one_line(error)}; take the model's own "
            "folder, or a file of another quantization"
        ) from None
    loaded, told = read
    _refuse_other_weights(
        file,
        {tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
        loaded,
        sorted(told["missing_keys"]),
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        # the weights are plain numbers now, and a model that says otherwise refuses to be saved
        del config.quantization_config
    model: Any = type(loaded)(config)
    model.to(dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = config.max_position_embeddings
    with storage_errors(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Of every file in the folder, which is durable then."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    for path in files:
        path.chmod(0o644)  # safetensors are written for their owner alone
        sync_file(path)
    lines = [f"{_digest(path)}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    sync_file(folder / CHECKSUMS)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder by its own checksums; None: nothing."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        for line in lines:
            expected, _, name = line.partition("  ")
            if _digest(folder / name) != expected:
                return f"{name} has the wrong checksum"
    except (OSError, ValueError) as error:  # no text, or a name that no file can have
        return f"its files cannot be read ({error})"
    return None if lines else f"{CHECKSUMS} is empty"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _refuse_parts(file: Path, facts: Mapping[str, Any]) -> None:
    parts = int(facts.get("split.count", 1))
    if parts > 1:
        raise DataError(
            f"{file}: one of {parts} parts of a model; join them first (llama-gguf-split --merge)"
        )


def _refuse_other_weights(file: Path, sizes: Mapping[str, int], loaded: Any, missing: list[str]) -> None:
    """`transformers` makes up what a file lacks and leaves out what it does not know, with a warning or
    without a word."""
    if missing:
        raise DataError(
            f"{file}: weights are missing ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); "
            "fetch it again"
        )
    held, taken = sum(sizes.values()), sum(parameter.numel() for parameter in loaded.parameters())
    if held != taken:
        raise DataError(
            f"{file}: it holds {held} weights, and {type(loaded).__name__} takes {taken} of them, so it "
            "would become another model; take the model's"
            " own folder"
        )


def _refuse_rotary_scaling(file: Path, facts: Mapping[str, Any], tensors: set[str]) -> None:
    """`transformers` reads the base frequency alone."""
    kind = facts.get(f"{facts.get('general.architecture')}.rope.scaling.type", "none")
    if kind != "none" or "rope_freqs.weight" in tensors:
        named = "rope_freqs.weight" if kind == "none" else f"rope.scaling.type = {kind}"
        raise DataError(
            f"{file}: its rotary frequencies are scaled ({named}), which would be lost; take the model's "
            "Hugging Face folder"
        )


def _tokenizer(file: Path, facts: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    if "tokenizer.ggml.model" not in facts:
        raise DataError(f"{file}: it holds no tokenizer (tokenizer.ggml.model); take the model's own folder")
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for name, key in _SPECIAL.items():
        if (index := facts.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(index)))
    if facts.get("tokenizer.ggml.model") == "gpt2":
        kind = facts.get("tokenizer.ggml.pre", "default")
        words = _word_splitter(kind)
        if words is None:
            raise DataError(
                f"{file}: text is cut into words in a way that is not known here (tokenizer.ggml.pre = "
                f"{kind}); take the model's own folder"
            )
        tokenizer.backend_tokenizer.pre_tokenizer = words
    if tokenizer.chat_template is None:
        raise DataError(
            f"{file}: it has no chat template; take an instruct model, or add one to the folder of the "
            "model it was made of"
        )
    if tokenizer.eos_token_id is None:
        raise DataError(f"{file}: it names no token that ends a turn (tokenizer.ggml.eos_token_id)")
    return tokenizer


def _word_splitter(kind: str) -> PreTokenizer | None:
    """How text is cut before byte pairs are merged, by llama.cpp's name for it; None for names that are not
    known here.

    `transformers` ignores the name and takes GPT-2's rule, which joins "\\n\\n" and a digit otherwise than a
    model was trained on. The patterns are those of the models' own tokenizer.json.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind in ("default", "gpt-2"):
        return byte_level
    if kind == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}.get(kind)
    if digits is None:
        return None
    split = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
