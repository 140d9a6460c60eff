"""Optional packages: which extra of paw-hpc brings each, and what it is for. The command line says so in one
line where one is missing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paw_hpc.system.errors import UserError


@dataclass(frozen=True, slots=True)
class Extra:
    """`pip install 'paw-hpc[name]'`."""

    name: str
    use: str


_SEARCH = Extra("search", "search-augmented QA")
_WEBSHOP = Extra("webshop", "WebShop")
_ALFWORLD = Extra("alfworld", "ALFWorld (builds with a C++ compiler)")
_TRAIN = Extra("train", "every policy (to train, play or be judged)")
EXTRAS: Mapping[str, Extra] = {
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "tensorboard"), _TRAIN),
    "alfworld": _ALFWORLD,
    "textworld": _ALFWORLD,
    "triton": Extra("kernels", "the fused LM head on GPUs"),
    "megatron": Extra("megatron", "tensor, pipeline and data parallel training"),
    **dict.fromkeys(("gguf", "accelerate"), Extra("gguf", "reading GGUF files")),
    "gymnasium": Extra("gym", "environments as Gymnasium environments"),
    "openenv": Extra("openenv", "environments behind an OpenEnv server"),
    "aiohttp": Extra("sglang", "generation by SGLang servers"),
    **dict.fromkeys(("textblob", "nltk", "rapidfuzz"), _WEBSHOP),
    **dict.fromkeys(
        ("bm25s", "Stemmer", "numba", "faiss", "fastapi", "uvicorn", "httpx", "tenacity"), _SEARCH
    ),
}
"""Top-level module -> the extra that installs it. The same as in pyproject.toml (tested)."""


def explained(error: ModuleNotFoundError) -> UserError | None:
    """What to tell a user of a module that is not there; None where no extra brings it."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    if extra is None:
        return None
    return UserError(
        f"the package {module} is missing, which {extra.use} needs; pip install 'paw-hpc[{extra.name}]'"
    )


@contextlib.contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Inside, these packages look as if they were not installed: for a library that takes along whatever it
    finds. Afterwards all is as before."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in packages}
    for name in before:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        yield
    finally:
        for name in packages:
            sys.modules.pop(name, None)
        sys.modules.update(before)
