"""Log-prob and entropy of logits that exist already, and their gradient: the row passes of the head without
its products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from paw_hpc.kernels import dispatch
from paw_hpc.kernels.checks import check_logits
from paw_hpc.kernels.dispatch import BackendName
from paw_hpc.kernels.parallel import Shard, row_scores
from paw_hpc.kernels.reference import RowScores, statistics_dtype

CHUNK_BYTES = 8 << 20
"""Rows that the reference path converts at a time; the Triton path converts none."""


def logits_logprob_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    backend: BackendName = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of the target and entropy (nats) of softmax(logits / temperature), row by row; differentiable
    once in both outputs.

    Statistics are float32 (float64 for float64 logits) whatever the dtype of the logits; their gradient is of
    their own dtype. A logit of -inf is a token of probability 0. A row with NaN or +inf, or with nothing
    above -inf, gives NaN in both outputs; other rows are not affected.

    Args:
        logits: float[R, V]; under tensor parallelism this rank's columns, in rank order, of any width. R = 0
            is allowed.
        target: int64[R], ids in the whole vocabulary.
        temperature, tp_group, backend: as in `linear_logprob_entropy`.

    Returns: logp[R], entropy[R].

    Raises:
        ValueError: input that is refused, on every rank of the group.
    """
    shard = check_logits(logits, target, temperature, tp_group)
    return _LogitsLogprobEntropy.apply(logits, shard.local(target), shard, 1.0 / temperature, backend)


class _LogitsLogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: torch.Tensor,
        shard: Shard,
        inv_temperature: float,
        backend: BackendName,
    ):
        scores = RowScores(
            *torch.empty(4, len(logits), dtype=statistics_dtype(logits.dtype), device=logits.device)
        )
        chunk_rows = _chunk_rows(logits, shard, backend)
        rows = dispatch.rows(backend, logits, chunk_rows, inv_temperature)
        for chunk in _chunks(len(logits), chunk_rows):
            part = row_scores(rows.statistics(rows.load(logits[chunk]), target[chunk]), target[chunk], shard)
            for whole, mine in zip(scores, part, strict=True):
                whole[chunk] = mine
        ctx.save_for_backward(logits, target, *scores)
        ctx.chunk_rows, ctx.inv_temperature, ctx.backend = chunk_rows, inv_temperature, backend
        return scores.logp, scores.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: torch.Tensor, grad_entropy: torch.Tensor):
        logits, target, *saved = ctx.saved_tensors
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        rows = dispatch.rows(ctx.backend, logits, ctx.chunk_rows, ctx.inv_temperature)
        for chunk in _chunks(len(logits), ctx.chunk_rows):
            scores = RowScores(*(score[chunk] for score in saved))
            u = rows.shift(rows.load(logits[chunk]), scores.shift)
            rows.dlogits(u, target[chunk], scores, grad_logp[chunk], grad_entropy[chunk], gradient[chunk])
        return gradient, None, None, None, None


def _chunk_rows(logits: torch.Tensor, shard: Shard, backend: BackendName) -> int:
    if dispatch.resolve(backend, logits) == "triton":
        return max(1, len(logits))
    row_bytes = max(1, shard.widest) * statistics_dtype(logits.dtype).itemsize
    return max(1, min(len(logits), CHUNK_BYTES // row_bytes))


def _chunks(rows: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
