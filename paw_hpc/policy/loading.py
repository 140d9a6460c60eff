"""From a recipe's `model` section to a model and its tokenizer, with one clear line when something is
missing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from paw_hpc.policy.tiny import build_tiny
from paw_hpc.recipe import FETCHED_POLICIES, SHIPPED_POLICIES, ModelSection, Recipe, policy_folder
from paw_hpc.system.errors import RecipeError

WARM_START = SHIPPED_POLICIES["warm-start"]
"""What `model.path: warm-start` means."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes whose tokenizer.json is the whole truth."""
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def resolve_device(model: ModelSection) -> torch.device:
    """Raises RecipeError where the recipe asks for a GPU that is not there."""
    if model.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("model.device: 'cuda' was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if model.device != "cpu" and torch.cuda.is_available() else "cpu")


def tokenizer_key(model: ModelSection) -> str:
    """The recipe key that names the tokenizer."""
    return "model.tokenizer" if model.tokenizer else "model.path"


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer in `model.tokenizer`, else in `model.path`. Raises RecipeError."""
    key, source = tokenizer_key(model), model.tokenizer or model.path
    assert source is not None  # Recipe: a model from scratch names its tokenizer
    folder = _locate(key, source)
    if isinstance(folder, Path) and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise RecipeError(
            f"{key}: {folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); give its folder "
            "as model.tokenizer"
        )
    try:
        return _tokenizer_class(folder).from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{key}: the tokenizer of '{source}' cannot be loaded: {_first_line(error)}"
        ) from None


def _tokenizer_class(folder: Path | str) -> Any:
    """AutoTokenizer puts the usual class of the model type beside it in place of a plain tokenizer.json
    (Qwen2's would split words anew), but a folder that declares a plain class means it."""
    declared = folder / "tokenizer_config.json" if isinstance(folder, Path) else None
    plain = (
        declared is not None
        and declared.is_file()
        and json.loads(declared.read_text()).get("tokenizer_class") in _PLAIN_CLASSES
    )
    return PreTrainedTokenizerFast if plain else AutoTokenizer


def load_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The initial policy on the CPU in `model.dtype`: the same weights at every call. Raises RecipeError."""
    section = recipe.model
    dtype = getattr(torch, section.dtype)
    if section.tiny is not None:
        model: PreTrainedModel = build_tiny(section.tiny, tokenizer, recipe.seed)
        for parameter in model.parameters():  # not model.to(): rotary frequencies stay in float32
            parameter.data = parameter.data.to(dtype)
        return model
    assert section.path is not None
    model = _load_pretrained(section.path, dtype)
    if len(tokenizer) > model.config.vocab_size:
        raise RecipeError(
            f"model.path: the tokenizer has {len(tokenizer)} tokens but the model only "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return model


def initial_folder(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> Path:
    """The folder of the initial policy, for backends that read weights piece by piece; a model from scratch
    is written to `scratch`.

    Raises RecipeError.
    """
    section = recipe.model
    if section.tiny is not None:
        load_model(recipe, tokenizer).save_pretrained(scratch)
        return scratch
    assert section.path is not None
    found = _locate("model.path", section.path)
    if isinstance(found, Path):
        return found
    try:
        return Path(snapshot_download(found, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise RecipeError(f"model.path: '{found}' cannot be downloaded: {_first_line(error)}") from None


def _load_pretrained(path: str, dtype: torch.dtype) -> PreTrainedModel:
    folder = _locate("model.path", path)
    if isinstance(folder, Path):
        if not (folder / "config.json").is_file():
            raise RecipeError(
                f"model.path: {folder} holds no config.json; give a folder in the Hugging Face layout"
            )
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
            raise RecipeError(f"model.path: {folder} holds no weights (no {' or '.join(_WEIGHT_FILES)})")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"model.path: '{path}' cannot be loaded as a causal language model: {_first_line(error)}"
        ) from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise RecipeError(
            f"model.path: '{path}' lacks {len(missing)} weights that its config asks for, such as "
            f"{missing[0]}; is it complete?"
        )
    return model


def _locate(key: str, source: str) -> Path | str:
    """A folder, or a hub name for `transformers` to find."""
    if (named := policy_folder(source)) is not None:
        if not named.is_dir() and source in FETCHED_POLICIES:
            raise RecipeError(
                f"{key}: {source} is not in the cache yet ({named}); paw data model {source} brings it there"
            )
        if not named.is_dir():
            raise RecipeError(
                f"{key}: the {source} policy is missing from this installation; reinstall the package or "
                "give a model folder"
            )
        return named
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.endswith(".gguf"):
        raise RecipeError(
            f"{key}: '{source}' is one file; paw data model {source} makes a folder of it and prints what "
            f"{key} is to be"
        )
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise RecipeError(
            f"{key}: no folder '{source}'; give a Hugging Face folder, a hub name such as "
            "Qwen/Qwen2.5-1.5B-Instruct, or warm-start"
        )
    return source


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
