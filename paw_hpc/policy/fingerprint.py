"""Which weights a run began with, in sixteen bytes: the same for every backend and layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

SAMPLE = 1024
"""About how many values of each tensor count."""


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of up to about `SAMPLE` exact values of every tensor of the Hugging Face layout, in any order."""
    parts: dict[str, bytes] = {}
    for name, tensor in tensors:
        values = tensor.detach().flatten()
        sample = values[:: max(1, values.numel() // SAMPLE)].float().cpu().contiguous()
        parts[name] = f"{name} {tuple(tensor.shape)} ".encode() + sample.numpy().tobytes()
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(parts):
        digest.update(parts[name])
    return digest.hexdigest()
