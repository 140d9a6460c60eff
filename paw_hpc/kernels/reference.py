"""The row passes of the head in plain PyTorch: the path of CPUs and of float64, and the oracle that the Triton path is tested against.

Notation, for one row with logits z (after temperature), u = z - max z: s = sum exp(u), t = sum exp(u) u. Then log p = u - log s and the entropy is
log s - t/s; both differences are of small numbers, so extreme logits lose nothing. C rows of a chunk, V columns of this rank's vocabulary shard.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

MASKED = -1e30
"""Stands for a logit of -inf (probability 0) where 0 * inf would make NaN of it."""


class Statistics(NamedTuple):
    """What one pass over a chunk of logits says about each row; all of the statistics dtype, [C], over this rank's columns."""

    maximum: torch.Tensor  # max z; -inf where the shard has no column (or all are -inf)
    total: torch.Tensor  # s
    weighted: torch.Tensor  # t
    target: torch.Tensor  # u at the target; unspecified where another rank owns it


class RowScores(NamedTuple):
    """Per row, the same on all ranks but for `shift` and `normalizer`, which are relative to this rank's columns; [C]."""

    logp: torch.Tensor
    entropy: torch.Tensor
    shift: torch.Tensor  # max z of this rank's columns
    normalizer: torch.Tensor  # log-partition - shift, so that log p = (z - shift) - normalizer


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class ReferenceRows:
    """One call's workspace of two [chunk, V] buffers, which the cache of a CPU should hold, and the passes over them."""

    def __init__(self, weight: torch.Tensor, chunk_rows: int, inv_temperature: float) -> None:
        """weight[V, H], any floating dtype; it is converted once where the statistics need more than its precision."""
        dtype = statistics_dtype(weight.dtype)
        self.weight = weight.to(dtype)
        self.inv_temperature = inv_temperature
        self._logits = torch.empty(chunk_rows, weight.shape[0], dtype=dtype, device=weight.device)
        self._exp = torch.empty_like(self._logits)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden[C, H] -> z[C, V], in the workspace."""
        z = self._logits[: len(hidden)]
        return torch.addmm(z, hidden.to(z.dtype), self.weight.t(), beta=0, alpha=self.inv_temperature, out=z)

    def statistics(self, z: torch.Tensor, target: torch.Tensor) -> Statistics:
        """Replaces z by u. target: int64[C], column on this rank, negative where another rank owns it."""
        if z.shape[1] == 0:
            zero = z.new_zeros(len(z))
            return Statistics(zero - torch.inf, zero, zero, zero)
        maximum = z.amax(1)
        self.shift(z, torch.where(maximum == -torch.inf, 0.0, maximum))
        exp = self._exp[: len(z)]
        at_target = z.gather(1, target.clamp(min=0)[:, None])[:, 0]
        at_target = torch.where(at_target <= MASKED, -torch.inf, at_target)
        return Statistics(maximum, exp.sum(1), torch.linalg.vecdot(exp, z), at_target)

    def shift(self, z: torch.Tensor, shift: torch.Tensor) -> None:
        """z -> u = z - shift[C] and its exponential, in the workspace: what `dlogits` needs when `statistics` ran in another pass."""
        z.sub_(shift[:, None]).clamp_(min=MASKED)
        torch.exp(z, out=self._exp[: len(z)])

    def dlogits(self, u: torch.Tensor, target: torch.Tensor, scores: RowScores, c: torch.Tensor, e: torch.Tensor | None) -> torch.Tensor:
        """dL/d(logits before temperature)[C, V] from c = dL/dlogp and e = dL/dH (None: zero), in place of u."""
        exp = self._exp[: len(u)]
        scale = self.inv_temperature * torch.exp(-scores.normalizer)
        if e is None:
            torch.mul(exp, (-scale * c)[:, None], out=u)
        else:
            constant = -scale * (c + e * (scores.entropy - scores.normalizer))
            torch.addcmul(constant[:, None], u, (-scale * e)[:, None], out=u)
            u.mul_(exp)
        if u.shape[1]:
            owned = torch.where(target >= 0, self.inv_temperature * c, 0.0)
            u.scatter_add_(1, target.clamp(min=0)[:, None], owned[:, None])
        return u

    def hidden_gradient(self, dlogits: torch.Tensor, out: torch.Tensor) -> None:
        """out[C, H] = dlogits @ weight."""
        out.copy_(dlogits @ self.weight)

    def add_weight_gradient(self, dlogits: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """out[V, H] += dlogits.T @ hidden, out of the statistics dtype."""
        out.addmm_(dlogits.t(), hidden.to(out.dtype))
