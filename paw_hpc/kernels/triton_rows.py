"""The row passes of the head as two Triton kernels: statistics of a row, and logits into their own gradient.
float32 inside, whatever the logits.

One program reads one row, block by block. A vocabulary that no block divides is treated by one mask: columns
from `columns` on count as -inf, which is probability 0. `readable` >= `columns` is how far a row's memory
goes: if that is a multiple of 16, loads are wide for any vocabulary. Imported only where it is used
(`dispatch`): Triton is optional.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

from paw_hpc.kernels.reference import RowScores, Statistics, no_columns

BLOCK = 4096
"""Columns that a program holds at a time (fewer where the vocabulary is smaller); a power of 2."""
COLUMN_ALIGNMENT = 64
"""Rows of the logits buffer start at a multiple of this, so that cuBLAS may use its fast kernels for any
vocabulary."""


@triton.jit
def _statistics_kernel(
    z_ptr, z_stride, target_ptr, out_ptr, rows, columns, readable, inv_temperature, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    maximum = tl.full((), float("-inf"), tl.float32)
    shift = tl.full((), 0.0, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = (
            tl.load(z_row + column, mask=column < readable, other=float("-inf")).to(tl.float32)
            * inv_temperature
        )
        z = tl.where(column < columns, z, float("-inf"))
        larger = tl.maximum(maximum, tl.max(z, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        lower = tl.where(maximum == float("-inf"), 0.0, maximum - shift)
        u = z - shift
        exp = tl.exp(u)
        weighted = (weighted + total * lower) * tl.exp(lower) + tl.sum(exp * tl.where(exp == 0.0, 0.0, u), 0)
        total = total * tl.exp(lower) + tl.sum(exp, 0)
        maximum = larger
    target = tl.load(target_ptr + row)
    at_target = tl.load(z_row + tl.maximum(target, 0)).to(tl.float32) * inv_temperature - shift
    tl.store(out_ptr + row, maximum)
    tl.store(out_ptr + rows + row, total)
    tl.store(out_ptr + 2 * rows + row, weighted)
    tl.store(out_ptr + 3 * rows + row, at_target)


@triton.jit
def _dlogits_kernel(
    z_ptr,
    z_stride,
    out_ptr,
    out_stride,
    target_ptr,
    shift_ptr,
    normalizer_ptr,
    entropy_ptr,
    c_ptr,
    e_ptr,
    columns,
    readable,
    inv_temperature,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    out_row = out_ptr + row * out_stride
    target = tl.load(target_ptr + row)
    shift = tl.load(shift_ptr + row)
    normalizer = tl.load(normalizer_ptr + row)
    c = tl.load(c_ptr + row)
    if HAS_ENTROPY:
        e = tl.load(e_ptr + row)
        entropy = tl.load(entropy_ptr + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = (
            tl.load(z_row + column, mask=column < readable, other=float("-inf")).to(tl.float32)
            * inv_temperature
        )
        z = tl.where(column < columns, z, float("-inf"))
        logp = (z - shift) - normalizer
        p = tl.exp(logp)
        if HAS_ENTROPY:  # noqa: SIM108  (decided when the kernel is compiled)
            gradient = -p * (c + e * (tl.where(p == 0.0, 0.0, logp) + entropy))
        else:
            gradient = -p * c
        gradient += tl.where(column == target, c, 0.0)
        # A 16-bit gradient overwrites the front half of its own float32 row. It never reaches a block that is
        # still to be read, but the first block lies in its own way: all of it must be read before any of it
        # is written.
        tl.debug_barrier()
        tl.store(
            out_row + column,
            (gradient * inv_temperature).to(out_ptr.dtype.element_ty),
            mask=column < readable,
        )


class TritonRows:
    """`ReferenceRows`, launched. Logits stay as they are (any float dtype, last stride 1) until `dlogits`
    overwrites them or writes to `out`."""

    padding = 0
    """Columns behind those of z that may be read, and in the gradient written (zeros)."""

    def __init__(self, inv_temperature: float) -> None:
        self.inv_temperature = inv_temperature

    def load(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if logits.stride(1) == 1 else logits.contiguous()

    def statistics(self, z: torch.Tensor, target: torch.Tensor) -> Statistics:
        rows, columns = z.shape
        if columns == 0:
            return no_columns(rows, z)
        out = torch.empty(4, rows, dtype=torch.float32, device=z.device)
        with _on(z):
            sizes = (rows, columns, columns + self.padding)
            _statistics_kernel[(rows,)](
                z, z.stride(0), target, out, *sizes, self.inv_temperature, **_launch(columns)
            )
        return Statistics(*out)

    def shift(self, z: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return z

    def dlogits(
        self,
        u: torch.Tensor,
        target: torch.Tensor,
        scores: RowScores,
        c: torch.Tensor,
        e: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = u.shape
        out = u if out is None else out
        if columns == 0:
            return out
        per_row = [target, scores.shift, scores.normalizer, scores.entropy, c, c if e is None else e]
        with _on(u):
            _dlogits_kernel[(rows,)](
                u,
                u.stride(0),
                out,
                out.stride(0),
                *(vector.contiguous() for vector in per_row),
                columns,
                columns + self.padding,
                self.inv_temperature,
                HAS_ENTROPY=e is not None,
                **_launch(columns),
            )
        return out


class TritonHead(TritonRows):
    """`TritonRows` with the three products of the head, by cuBLAS. Logits are float32; 16-bit weights take
    their gradient from 16-bit dlogits.

    The workspace is one chunk of float32 logits. dlogits of a 16-bit weight take the front half of each row
    of the same memory.
    """

    def __init__(self, weight: torch.Tensor, chunk_rows: int, inv_temperature: float) -> None:
        """weight[V, H], not converted on a GPU."""
        super().__init__(inv_temperature)
        self.weight = weight
        width = -(-len(weight) // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT
        self._buffer = torch.empty(chunk_rows, width, dtype=torch.float32, device=weight.device)
        self.padding = width - len(weight)
        self._mixed = weight.is_cuda and weight.dtype != torch.float32

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        z = self._buffer[: len(hidden), : len(self.weight)]
        if self._mixed:
            return torch.mm(hidden, self.weight.t(), torch.float32, out=z)
        return torch.mm(hidden.float(), self.weight.float().t(), out=z)

    def dlogits(
        self,
        u: torch.Tensor,
        target: torch.Tensor,
        scores: RowScores,
        c: torch.Tensor,
        e: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        front_half = self._buffer.view(self.weight.dtype)[: len(u), : len(self.weight)]
        return super().dlogits(u, target, scores, c, e, front_half)

    def hidden_gradient(self, dlogits: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(dlogits, self.weight, out=out)

    def add_weight_gradient(self, dlogits: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        if self._mixed:
            torch.addmm(out, dlogits.t(), hidden, torch.float32, out=out)
        else:
            out.addmm_(dlogits.t().to(out.dtype), hidden.to(out.dtype))


def _launch(columns: int) -> dict[str, int]:
    block = min(BLOCK, triton.next_power_of_2(columns))
    return {"BLOCK": block, "num_warps": 8 if block >= 2048 else 4}


def _on(tensor: torch.Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
