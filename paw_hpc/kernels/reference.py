"""The row passes of the head in plain PyTorch: the path of CPUs and of float64, and what the Triton path is
tested against.

Notation, for one row with logits z (after temperature), u = z - max z: s = sum exp(u), t = sum exp(u) u. Then
log p = u - log s and the entropy is log s - t/s; both differences are of small numbers, so extreme logits
lose nothing. C rows of a chunk, V columns of this rank's vocabulary shard.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FEW = 0.8
"""Share of a chunk's rows up to which gathering them costs less than the two products of the others."""
LARGE = 1 << 20
"""Numbers in a head's weight from which on rows without a gradient are left out."""
MASKED = -1e30
"""Stands for a logit of -inf (probability 0) where 0 * inf would make NaN of it."""


class Statistics(NamedTuple):
    """What one pass over a chunk of logits says about each row; all of the statistics dtype, [C], over this
    rank's columns."""

    maximum: torch.Tensor  # max z; -inf where the shard has no column (or all are -inf)
    total: torch.Tensor  # s
    weighted: torch.Tensor  # t
    target: torch.Tensor  # u at the target; unspecified where another rank owns it


class RowScores(NamedTuple):
    """Per row, the same on all ranks but for `shift` and `normalizer`, which are relative to this rank's
    columns; [C]."""

    logp: torch.Tensor
    entropy: torch.Tensor
    shift: torch.Tensor  # max z of this rank's columns
    normalizer: torch.Tensor  # log-partition - shift, so that log p = (z - shift) - normalizer


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def no_columns(rows: int, like: torch.Tensor) -> Statistics:
    """The statistics of a shard without a column: neutral in every reduction."""
    zero = torch.zeros(rows, dtype=statistics_dtype(like.dtype), device=like.device)
    return Statistics(zero - torch.inf, zero, zero, zero)


class ReferenceRows:
    """Passes over chunks of logits in a workspace of two [chunk, V] buffers, which the cache of a CPU should
    hold."""

    def __init__(self, chunk_rows: int, columns: int, inv_temperature: float, like: torch.Tensor) -> None:
        """dtype and device of the workspace are those that statistics of `like` need."""
        self.inv_temperature = inv_temperature
        self._logits = torch.empty(
            chunk_rows, columns, dtype=statistics_dtype(like.dtype), device=like.device
        )
        self._exp = torch.empty_like(self._logits)

    def load(self, logits: torch.Tensor) -> torch.Tensor:
        """logits[C, V] -> z[C, V], in the workspace."""
        return self._logits[: len(logits)].copy_(logits).mul_(self.inv_temperature)

    def statistics(self, z: torch.Tensor, target: torch.Tensor) -> Statistics:
        """Replaces z by u. target: int64[C], column on this rank, negative where another rank owns it."""
        if z.shape[1] == 0:
            return no_columns(len(z), z)
        maximum = z.amax(1)
        u = self.shift(z, torch.where(maximum == -torch.inf, 0.0, maximum))
        exp = self._exp[: len(u)]
        at_target = u.gather(1, target.clamp(min=0)[:, None])[:, 0]
        at_target = torch.where(at_target <= MASKED, -torch.inf, at_target)
        return Statistics(maximum, exp.sum(1), torch.linalg.vecdot(exp, u), at_target)

    def shift(self, z: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """z -> u = z - shift[C], and its exponential in the workspace: what `dlogits` needs where
        `statistics` ran in another pass."""
        z.sub_(shift[:, None]).clamp_(min=MASKED)
        torch.exp(z, out=self._exp[: len(z)])
        return z

    def dlogits(
        self,
        u: torch.Tensor,
        target: torch.Tensor,
        scores: RowScores,
        c: torch.Tensor,
        e: torch.Tensor | None,
        out: torch.Tensor | None = None,
        live: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """dL/d(logits before temperature)[C, V] from c = dL/dlogp and e = dL/dH (None: zero), in place of u,
        copied to `out` if given.

        Args:
            live: int64[L], the rows that are wanted: of these alone, [L, V], and u is left as it was.
        """
        exp = self._exp[: len(u)]
        if live is not None:
            u, exp, target, scores, c = (
                u[live],
                exp[live],
                target[live],
                RowScores(*(score[live] for score in scores)),
                c[live],
            )
            e = None if e is None else e[live]
        scale = self.inv_temperature * torch.exp(-scores.normalizer)
        if e is None:
            torch.mul(exp, (-scale * c)[:, None], out=u)
        else:
            constant = -scale * (c + e * (scores.entropy - scores.normalizer))
            torch.addcmul(constant[:, None], u, (-scale * e)[:, None], out=u).mul_(exp)
        if u.shape[1]:
            owned = torch.where(target >= 0, self.inv_temperature * c, 0.0)
            u.scatter_add_(1, target.clamp(min=0)[:, None], owned[:, None])
        return u if out is None else out.copy_(u)


class ReferenceHead(ReferenceRows):
    """`ReferenceRows` with the three products of the head. Everything is of the statistics dtype: bf16 inputs
    are converted, not their logits."""

    def __init__(self, weight: torch.Tensor, chunk_rows: int, inv_temperature: float) -> None:
        """weight[V, H], converted once where it is not of the statistics dtype."""
        super().__init__(chunk_rows, len(weight), inv_temperature, weight)
        self.weight = weight.to(self._logits.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden[C, H] -> z[C, V], in the workspace."""
        z = self._logits[: len(hidden)]
        return torch.addmm(z, hidden.to(z.dtype), self.weight.t(), beta=0, alpha=self.inv_temperature, out=z)

    def hidden_gradient(self, dlogits: torch.Tensor, out: torch.Tensor) -> None:
        """out[C, H] = dlogits @ weight."""
        out.copy_(dlogits @ self.weight)

    def live_rows(self, c: torch.Tensor, e: torch.Tensor | None) -> torch.Tensor | None:
        """int64[L]: the rows of a chunk that have a gradient (c or e is not 0), where leaving out the others
        pays; None: take all.

        On a CPU alone: elsewhere the host would have to wait for the answer. And of large heads alone: for
        the small policies that ship with the package it would save little, and round sums otherwise than in
        the runs whose numbers the documentation quotes.
        """
        if c.device.type != "cpu" or self.weight.numel() < LARGE:
            return None
        live = (c != 0 if e is None else (c != 0) | (e != 0)).nonzero()[:, 0]
        return live if len(live) <= FEW * len(c) else None

    def add_weight_gradient(self, dlogits: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """out[V, H] += dlogits.T @ hidden, out of the statistics dtype."""
        out.addmm_(dlogits.t(), hidden.to(out.dtype))
