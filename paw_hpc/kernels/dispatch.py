"""Which implementation runs where: the one place that knows."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, Protocol

import torch

from paw_hpc.kernels.reference import ReferenceHead, ReferenceRows, RowScores, Statistics

BackendName = Literal["auto", "reference", "triton"]


class Rows(Protocol):
    """Passes over a chunk's logits; `ReferenceRows` says what each does."""

    def load(self, logits: torch.Tensor) -> torch.Tensor: ...
    def statistics(self, z: torch.Tensor, target: torch.Tensor) -> Statistics: ...
    def shift(self, z: torch.Tensor, shift: torch.Tensor) -> torch.Tensor: ...
    def dlogits(
        self,
        u: torch.Tensor,
        target: torch.Tensor,
        scores: RowScores,
        c: torch.Tensor,
        e: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


class Head(Rows, Protocol):
    """`Rows` with the three products of the head; `ReferenceHead` says what each does."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...
    def hidden_gradient(self, dlogits: torch.Tensor, out: torch.Tensor) -> None: ...
    def add_weight_gradient(self, dlogits: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None: ...


def head(backend: BackendName, weight: torch.Tensor, chunk_rows: int, inv_temperature: float) -> Head:
    """The passes and products for this rank's weight[V, H], with the workspace of one chunk."""
    if resolve(backend, weight) == "reference":
        return ReferenceHead(weight, chunk_rows, inv_temperature)
    from paw_hpc.kernels.triton_rows import TritonHead

    return TritonHead(weight, chunk_rows, inv_temperature)


def rows(backend: BackendName, logits: torch.Tensor, chunk_rows: int, inv_temperature: float) -> Rows:
    """The passes over logits[R, V] that exist already."""
    if resolve(backend, logits) == "reference":
        return ReferenceRows(chunk_rows, logits.shape[1], inv_temperature, logits)
    from paw_hpc.kernels.triton_rows import TritonRows

    return TritonRows(inv_temperature)


def resolve(backend: BackendName, like: torch.Tensor) -> Literal["reference", "triton"]:
    """`auto`: Triton for float32, bfloat16 and float16 on CUDA where it is installed, else the reference.

    Raises:
        ValueError: an unknown name, or `triton` where it cannot run.
    """
    if backend == "auto":
        return (
            "triton" if like.is_cuda and like.dtype != torch.float64 and triton_installed() else "reference"
        )
    if backend not in ("reference", "triton"):
        raise ValueError(f"backend is {backend!r}: one of auto, reference, triton is needed")
    if backend == "triton":
        if not triton_installed():
            raise ValueError(
                "backend 'triton' was asked for and Triton is not installed: pip install 'paw-hpc[kernels]'"
            )
        if not like.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"backend 'triton' needs a GPU, the input is on {like.device}: use 'auto', or "
                "TRITON_INTERPRET=1 for tests"
            )
        if like.dtype == torch.float64:
            raise ValueError("backend 'triton' computes in float32, the input is float64: use 'auto'")
    return backend


@cache
def triton_installed() -> bool:
    return find_spec("triton") is not None
