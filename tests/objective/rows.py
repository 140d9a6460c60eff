"""Current log-probs for the rows of a batch, as a trainer's forward pass would give them."""

from __future__ import annotations

import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch
from paw_hpc.objective.policy_loss import make_row_loss
from paw_hpc.recipe import Recipe


def attach_logp(batch: Batch, seed: int = 0) -> Batch:
    """Put random float64 `logp` and `entropy` into the streams, so that they travel with `take`. They are
    drawn per row of the batch."""
    rng = torch.Generator().manual_seed(seed)
    near = batch.streams["old_logp"].double() + 0.3 * torch.randn(
        batch.num_rows, generator=rng, dtype=torch.float64
    )
    free = -torch.empty(batch.num_rows, dtype=torch.float64).exponential_(0.8, generator=rng)
    batch.streams["logp"] = torch.where(batch.row_kind == ACTION, near, free)
    batch.streams["entropy"] = 3 * torch.rand(batch.num_rows, generator=rng, dtype=torch.float64)
    return batch


def row_losses(batch: Batch, recipe: Recipe) -> torch.Tensor:
    """float64[R], weighted."""
    return make_row_loss(batch, recipe)(
        batch.streams["logp"], batch.streams["entropy"], torch.arange(batch.num_rows)
    )


def total(batch: Batch, recipe: Recipe) -> float:
    return float(row_losses(batch, recipe).sum())


def by_transition(batch: Batch) -> list[dict[str, list[float]]]:
    """The attached values of each sample, in the form that the slow reading takes."""
    result = []
    for n in range(len(batch)):
        rows = torch.arange(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
        action, observation = (rows[batch.row_kind[rows] == kind] for kind in (ACTION, OBSERVATION))
        logp, entropy = batch.streams["logp"], batch.streams["entropy"]
        result.append(
            {
                "action": logp[action].tolist(),
                "entropy": entropy[action].tolist(),
                "observation": logp[observation].tolist(),
            }
        )
    return result


def identical(a: Batch, b: Batch) -> bool:
    """Every tensor equal, bit for bit, with the same dtypes and the same streams."""
    if a.streams.keys() != b.streams.keys() or a.sample_streams.keys() != b.sample_streams.keys():
        return False
    names = (
        "tokens",
        "position_ids",
        "cu_seqlens",
        "row_position",
        "row_target",
        "row_kind",
        "row_cu",
        "transition",
    )
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    pairs += [(a.streams[name], b.streams[name]) for name in a.streams]
    pairs += [(a.sample_streams[name], b.sample_streams[name]) for name in a.sample_streams]
    if (a.value_position is None) != (b.value_position is None):
        return False
    if a.value_position is not None and b.value_position is not None:
        pairs.append((a.value_position, b.value_position))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)
