"""Gradients of the head's inputs, summed over chunks of rows; a weight's may go to Megatron's own buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from paw_hpc.kernels import dispatch
from paw_hpc.kernels.dispatch import BackendName, Head
from paw_hpc.kernels.parallel import Shard
from paw_hpc.kernels.reference import statistics_dtype

CHUNK_BYTES = {False: 8 << 20, True: 640 << 20}
"""Logits of one chunk: what a CPU's cache holds, and on a GPU (True) what keeps the products efficient and
the peak low."""
GEMM_TILE = 128
"""Chunks are a multiple of this many rows where that many fit: a product with a few rows more costs a whole
tile."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a call knows beside hidden and weight."""

    shard: Shard
    target: torch.Tensor  # int64[R], column on this rank or -1
    inv_temperature: float
    chunk_rows: int | None
    reduce_hidden_grad: bool
    backend: BackendName

    def columns(self, matrix: torch.Tensor) -> torch.Tensor:
        """The rows of weight[V, H] (or its gradient) that are real columns of the vocabulary."""
        return matrix[: self.shard.columns]

    def chunks(self, hidden: torch.Tensor) -> Iterator[slice]:
        rows, step = len(hidden), self.chunk_size(hidden)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def chunk_size(self, hidden: torch.Tensor) -> int:
        row_bytes = max(1, self.shard.widest) * statistics_dtype(hidden.dtype).itemsize
        fit = CHUNK_BYTES[hidden.is_cuda] // row_bytes
        fit -= fit % GEMM_TILE if fit > GEMM_TILE else 0
        return max(1, min(self.chunk_rows or fit, len(hidden)))

    def head(self, hidden: torch.Tensor, weight: torch.Tensor) -> Head:
        return dispatch.head(
            self.backend, self.columns(weight), self.chunk_size(hidden), self.inv_temperature
        )


@dataclass(slots=True)
class Gradients:
    """Gradients in the making: hidden's in its own dtype, weight's in the statistics dtype or in
    `main_grad`."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    into_main_grad: bool
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(int64[L] rows of hidden, their dlogits[L, V]) that are still to be added."""

    @classmethod
    def allocate(cls, hidden: torch.Tensor, weight: torch.Tensor, needs: tuple[bool, bool]) -> Gradients:
        main_grad = getattr(weight, "main_grad", None) if needs[1] else None
        # Contiguous also where hidden is not: it goes through collectives.
        hidden_grad = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needs[0] else None
        dtype = statistics_dtype(weight.dtype)
        if main_grad is not None and main_grad.dtype == dtype:
            return cls(hidden_grad, main_grad, True)
        return cls(
            hidden_grad,
            torch.zeros(weight.shape, dtype=dtype, device=weight.device) if needs[1] else None,
            False,
        )

    def add(self, head: Head, dlogits: torch.Tensor, hidden: torch.Tensor, chunk: slice, call: Call) -> None:
        if self.hidden is not None:
            head.hidden_gradient(dlogits, self.hidden[chunk])
        if self.weight is not None:
            head.add_weight_gradient(dlogits, hidden[chunk], call.columns(self.weight))

    def add_live(
        self,
        head: Head,
        dlogits: torch.Tensor,
        hidden: torch.Tensor,
        chunk: slice,
        live: torch.Tensor,
        call: Call,
    ) -> None:
        """`add` of the rows `live` (int64[L]) of a chunk, from their dlogits[L, V]; those of the others are
        0.

        Each product reads or writes a whole matrix of the size of the weight, so it waits until there are as
        many rows as a chunk has.
        """
        if self.hidden is not None:
            self.hidden[chunk].zero_()
        self.waiting.append((live + chunk.start, dlogits))
        if sum(len(rows) for rows, _ in self.waiting) >= call.chunk_size(hidden):
            self.flush(head, hidden, call)

    def flush(self, head: Head, hidden: torch.Tensor, call: Call) -> None:
        """Adds what `add_live` has put by."""
        rows, dlogits = (
            (torch.cat(parts) for parts in zip(*self.waiting, strict=True)) if self.waiting else (None, None)
        )
        self.waiting.clear()
        if rows is None or dlogits is None or not len(rows):
            return
        if self.hidden is not None:
            part = torch.empty(len(rows), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
            head.hidden_gradient(dlogits, part)
            self.hidden.index_copy_(0, rows, part)
        if self.weight is not None:
            head.add_weight_gradient(dlogits, hidden[rows], call.columns(self.weight))

    def finish(self, weight: torch.Tensor, call: Call) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(hidden's, weight's) as autograd wants them; None for the weight's once it is in `main_grad`."""
        if self.hidden is not None and call.reduce_hidden_grad:
            call.shard.sum_(self.hidden)
        if self.weight is None or self.into_main_grad:
            return self.hidden, None
        if getattr(weight, "main_grad", None) is not None:
            weight.main_grad.add_(self.weight)  # type: ignore[attr-defined]
            return self.hidden, None
        return self.hidden, self.weight.to(weight.dtype)


def scaled(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient * factor.to(gradient.dtype)


def main_grad_placeholder(weight: torch.Tensor, grad_loss: torch.Tensor) -> torch.Tensor | None:
    """What autograd gets for a gradient that is already in `main_grad`: zeros where Megatron's hooks on the
    weight wait for one, else nothing."""
    if grad_loss.device.type == "cpu" and grad_loss.item() != 1:
        raise ValueError(
            "the weight gradient is already in main_grad, so the loss needs factor 1, not "
            f"{grad_loss.item()}: use grad_scale"
        )
    if grad_loss.device.type != "cpu":
        torch._assert_async(grad_loss == 1)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.zeros_like(weight)
