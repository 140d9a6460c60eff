"""Vocabulary-parallel weights: which columns this rank owns, and the reductions that make row statistics
global."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from paw_hpc.kernels.reference import RowScores, Statistics


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's columns of the vocabulary: [offset, offset + columns) of V. `group` is None where one rank
    has them all."""

    group: dist.ProcessGroup | None
    offset: int
    columns: int
    widest: int
    """Columns of the group's widest shard: what ranks derive their common chunk size from."""

    def local(self, target: torch.Tensor) -> torch.Tensor:
        """int64[R] target ids -> column on this rank, -1 where another rank owns it."""
        if self.group is None:
            return target
        local = target - self.offset
        return torch.where((local >= 0) & (local < self.columns), local, -1)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce in place (nothing to do for one rank)."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor


def row_scores(statistics: Statistics, target: torch.Tensor, shard: Shard) -> RowScores:
    """log p of the target and entropy of each row, over all ranks' columns: one max and one sum reduction of
    [C] and [3, C].

    A row with a logit of NaN or +inf on any rank, or with none above -inf, gets NaN on every rank.
    """
    if shard.group is None:
        log_total = statistics.total.log()
        entropy = log_total - statistics.weighted / statistics.total
        return RowScores(
            statistics.target - log_total + 0.0 * entropy,
            entropy,
            _finite_shift(statistics.maximum),
            log_total,
        )
    maximum = statistics.maximum.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=shard.group)
    shift = _finite_shift(statistics.maximum)
    lower = shift - _finite_shift(maximum)  # of this rank's maximum against the global one
    lower = torch.where(statistics.maximum == -torch.inf, 0.0, lower)
    scale = lower.exp()
    sums = torch.stack(
        [
            statistics.total * scale,
            (statistics.weighted + statistics.total * lower) * scale,
            torch.where(target >= 0, statistics.target + lower, 0.0),
        ]
    )
    total, weighted, at_target = shard.sum_(sums)
    log_total = total.log()
    entropy = log_total - weighted / total
    return RowScores(at_target - log_total + 0.0 * entropy, entropy, shift, log_total - lower)


def _finite_shift(maximum: torch.Tensor) -> torch.Tensor:
    """What to subtract from a row: its maximum, or 0 where the shard holds nothing above -inf."""
    return torch.where(maximum == -torch.inf, 0.0, maximum)
