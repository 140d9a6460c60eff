"""The LM head of the scored rows in one pass: log-prob and entropy of each row, and the gradients of an
elementwise loss of the two.

Every loss of this project reduces on a row to c = dL/dlogp and e = dL/dH, and with p the row's distribution
the gradient of its logits is

    dL/dz = c (onehot - p) - e p (log p + H)                                 (docs/kernels.md derives it)

so a chunk's logits become their own gradient while they are still there: three GEMMs, 6 R H V FLOPs, one
chunk of logits. Only scored rows enter. R rows, H features, V vocabulary columns (of all ranks of
`tp_group`), C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from paw_hpc.kernels.checks import check_head
from paw_hpc.kernels.dispatch import BackendName
from paw_hpc.kernels.gradients import Call, Gradients, main_grad_placeholder, scaled
from paw_hpc.kernels.parallel import row_scores
from paw_hpc.kernels.reference import ReferenceHead, RowScores, statistics_dtype

RowLossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logp[C], entropy[C], rows int64[C]) -> loss[C], elementwise."""


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The result of `linear_row_loss`."""

    loss: torch.Tensor
    """Scalar of the statistics dtype: grad_scale times the sum over all rows; carries the gradients of hidden
    and weight. NaN if any row is."""
    logp: torch.Tensor
    """float32[R] (float64 for float64 inputs), detached."""
    entropy: torch.Tensor
    """Nats, like `logp`."""

    def nonfinite_rows(self) -> torch.Tensor:
        """int64[k]: rows whose log-prob or entropy is not a finite number (a logit of NaN or inf).
        Synchronises with the device."""
        return (~(self.logp.isfinite() & self.entropy.isfinite())).nonzero()[:, 0]


def linear_logprob_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    chunk_rows: int | None = None,
    vocab_size: int | None = None,
    reduce_hidden_grad: bool = True,
    backend: BackendName = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of the target and entropy (nats, full vocabulary) of softmax(hidden @ weight.T / temperature),
    row by row.

    Differentiable once in both outputs with respect to hidden and weight; the backward recomputes the logits
    (8 R H V FLOPs in all, against 6 of `linear_row_loss`). A row with a logit of NaN or +inf gives NaN in
    both outputs; other rows are not affected.

    Args:
        hidden: float[R, H]; R = 0 is allowed. Under tensor parallelism the same on all ranks of the group.
        weight: float[V, H] of the same dtype and device; under tensor parallelism this rank's shard, in rank
            order, of any width.
        target: int64[R], ids in the whole vocabulary.
        temperature: divides the logits; positive.
        tp_group: the ranks that share the vocabulary; all must call, with the same head.
        chunk_rows: rows of logits that exist at a time; by default as many as fit `CHUNK_BYTES`.
        vocab_size: true size of a padded vocabulary; columns from there on (over all ranks) do not exist for
            the result. Default: no padding.
        reduce_hidden_grad: sum the gradient of hidden over `tp_group`. False where the caller's own mapping
            does (a reduce-scatter, say).
        backend: `auto` takes Triton on CUDA and the reference elsewhere and for float64; the others force
            one.

    Returns: logp[R], entropy[R], float32 (float64 for float64 inputs).

    Raises:
        ValueError: input that is refused, on every rank of the group; see `checks.check_head`.
    """
    shard = check_head(hidden, weight, target, temperature, 1.0, chunk_rows, tp_group, vocab_size)
    call = Call(shard, shard.local(target), 1.0 / temperature, chunk_rows, reduce_hidden_grad, backend)
    if _needs_graph(hidden, weight):
        return _LogprobEntropy.apply(hidden, weight, call)
    scores = _score(hidden.detach(), weight.detach(), call)
    return scores.logp, scores.entropy


def linear_row_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    row_loss: RowLossFunction,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    grad_scale: float = 1.0,
    chunk_rows: int | None = None,
    vocab_size: int | None = None,
    reduce_hidden_grad: bool = True,
    backend: BackendName = "auto",
) -> RowLoss:
    """grad_scale * sum over rows of row_loss(logp, entropy, rows), with the gradients of hidden and weight
    computed in the same pass.

    Nothing of size R x V outlives a chunk and nothing is recomputed in the backward, which only multiplies by
    the incoming scalar. The weight's gradient is accumulated over chunks in float32. Where the weight has a
    `main_grad` (Megatron's gradient buffer), it is added there during the *forward*: then the incoming scalar
    of the backward must be 1 (put loss scales into `grad_scale`), and a forward must not be repeated or
    dropped.

    Args:
        row_loss: elementwise in its rows; called once per chunk with detached leaves logp[C] and entropy[C]
            and the chunk's row numbers int64[C] (by which it indexes its own streams). Only the gradient
            through logp and entropy is taken.
        grad_scale: finite number.
        the others: as in `linear_logprob_entropy`.

    Returns: `RowLoss`. With R = 0 the loss is 0 and still connected to hidden and weight (their gradients are
    zeros).

    Raises:
        ValueError: input that is refused, on every rank of the group; `row_loss` returned anything but one
            value per row.
    """
    grad_scale = float(grad_scale)
    shard = check_head(hidden, weight, target, temperature, grad_scale, chunk_rows, tp_group, vocab_size)
    call = Call(shard, shard.local(target), 1.0 / temperature, chunk_rows, reduce_hidden_grad, backend)
    if _needs_graph(hidden, weight):
        return RowLoss(*_RowLoss.apply(hidden, weight, call, row_loss, grad_scale))
    logp, entropy, *_ = _score(hidden.detach(), weight.detach(), call)
    loss, *_ = _differentiate(row_loss, logp, entropy, torch.arange(len(logp), device=logp.device))
    return RowLoss(loss * grad_scale, logp, entropy)


# ----------------------------------------------------------------------------------------------------- a call


def _needs_graph(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)


# --------------------------------------------------------------------------------------------------- one pass


def _score(hidden: torch.Tensor, weight: torch.Tensor, call: Call) -> RowScores:
    """Statistics of all rows, no gradient."""
    parts = RowScores(
        *torch.empty(4, len(hidden), dtype=statistics_dtype(hidden.dtype), device=hidden.device)
    )
    with torch.autocast(hidden.device.type, enabled=False):
        head = call.head(hidden, weight)
        for chunk in call.chunks(hidden):
            target = call.target[chunk]
            scores = row_scores(head.statistics(head.logits(hidden[chunk]), target), target, call.shard)
            for part, score in zip(parts, scores, strict=True):
                part[chunk] = score
    return parts


def _differentiate(
    row_loss: RowLossFunction, logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Sum of the row losses, and c = dL/dlogp and e = dL/dH (None where the loss does not depend on it)."""
    with torch.enable_grad():
        logp, entropy = logp.detach().requires_grad_(), entropy.detach().requires_grad_()
        loss = row_loss(logp, entropy, rows)
        if not isinstance(loss, torch.Tensor) or loss.shape != logp.shape:
            got = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ValueError(
                f"row_loss must return one value per row, a tensor of shape {list(logp.shape)}; it "
                f"returned {got}"
            )
        c, e = (
            torch.autograd.grad(loss.sum(), (logp, entropy), allow_unused=True)
            if loss.requires_grad
            else (None, None)
        )
    # A loss that masks a row out (clipping, weight 0) must not hide that its logits are not numbers.
    return torch.where(entropy.detach().isfinite(), loss.detach(), torch.nan).sum(), c, e


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        call: Call,
        row_loss: RowLossFunction,
        grad_scale: float,
    ):
        stat = statistics_dtype(hidden.dtype)
        logp, entropy = torch.empty(2, len(hidden), dtype=stat, device=hidden.device)
        loss = torch.zeros((), dtype=stat, device=hidden.device)
        gradients = Gradients.allocate(hidden, weight, ctx.needs_input_grad[:2])
        numbers = torch.arange(len(hidden), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            head = call.head(hidden, weight)
            for chunk in call.chunks(hidden):
                target = call.target[chunk]
                z = head.logits(hidden[chunk])
                scores = row_scores(head.statistics(z, target), target, call.shard)
                logp[chunk], entropy[chunk] = scores.logp, scores.entropy
                part, c, e = _differentiate(row_loss, scores.logp, scores.entropy, numbers[chunk])
                loss += part
                c = torch.zeros_like(scores.logp) if c is None else c * grad_scale
                e = None if e is None else e * grad_scale
                # What is clipped, or has no advantage, takes no part in the two products of the gradient.
                if isinstance(head, ReferenceHead) and (live := head.live_rows(c, e)) is not None:
                    gradients.add_live(
                        head, head.dlogits(z, target, scores, c, e, live=live), hidden, chunk, live, call
                    )
                else:
                    gradients.add(head, head.dlogits(z, target, scores, c, e), hidden, chunk, call)
            gradients.flush(head, hidden, call)
            ctx.hidden_grad, ctx.weight_grad = gradients.finish(weight, call)
        ctx.main_grad_weight = weight if gradients.weight is not None and ctx.weight_grad is None else None
        ctx.mark_non_differentiable(logp, entropy)
        return loss * grad_scale, logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: torch.Tensor):
        weight_grad = scaled(ctx.weight_grad, grad_loss)
        if ctx.main_grad_weight is not None:
            weight_grad = main_grad_placeholder(ctx.main_grad_weight, grad_loss)
        return scaled(ctx.hidden_grad, grad_loss), weight_grad, None, None, None


class _LogprobEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, call: Call):
        scores = _score(hidden, weight, call)
        ctx.save_for_backward(hidden, weight, *scores)
        ctx.call = call
        return scores.logp, scores.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: torch.Tensor, grad_entropy: torch.Tensor):
        hidden, weight, *saved = ctx.saved_tensors
        call, scores = ctx.call, RowScores(*saved)
        gradients = Gradients.allocate(hidden, weight, ctx.needs_input_grad[:2])
        with torch.autocast(hidden.device.type, enabled=False):
            head = call.head(hidden, weight)
            for chunk in call.chunks(hidden):
                z = head.logits(hidden[chunk])
                mine = RowScores(*(score[chunk] for score in scores))
                head.shift(z, mine.shift)
                dlogits = head.dlogits(z, call.target[chunk], mine, grad_logp[chunk], grad_entropy[chunk])
                gradients.add(head, dlogits, hidden, chunk, call)
            hidden_grad, weight_grad = gradients.finish(weight, call)
        if gradients.weight is not None and weight_grad is None:
            weight_grad = main_grad_placeholder(weight, grad_logp.new_ones(()))
        return hidden_grad, weight_grad, None
