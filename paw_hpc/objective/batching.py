"""Cutting a planned batch into optimizer steps (mini-batches) and forward passes (micro-batches)."""

from __future__ import annotations

import numpy as np
import torch

from paw_hpc.experience import Batch


def mini_batches(batch: Batch, size: int | None, seed: int) -> list[Batch]:
    """A seeded shuffle of the S sequences, cut into ceil(N / size) chunks, as N samples need, whose sequences differ in number by at most one; None:
    [batch] itself.

    A chain stays whole, so there are at most S chunks, and chunks of chains differ in samples. `weight` and `value_weight` of a chunk of M sequences
    are multiplied by S / M, so that the objective of each optimizer step, in expectation over shuffles, is that of the full update.
    """
    if size is None or size >= len(batch):
        return [batch]
    total = batch.num_sequences
    order = np.random.default_rng(seed).permutation(total)
    chunks = np.array_split(order, min(-(-len(batch) // size), total))
    return [_scaled(batch.take(torch.from_numpy(chunk)), total / len(chunk)) for chunk in chunks]


def micro_batches(batch: Batch, max_tokens: int) -> list[Batch]:
    """Cut into parts of at most `max_tokens` tokens, longest sequences first, so that neighbours are of similar length (little attention padding).

    A longer sequence forms a part of its own. Streams are not rescaled: summed losses of the parts are the loss of the batch.
    """
    lengths = batch.lengths
    order = torch.argsort(lengths, descending=True, stable=True)
    parts: list[list[int]] = []
    room = 0
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if not parts or length > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(sequence)
        room -= length
    return [batch.take(torch.tensor(part)) for part in parts]


def _scaled(batch: Batch, factor: float) -> Batch:
    for streams, name in ((batch.streams, "weight"), (batch.streams, "value_weight"), (batch.sample_streams, "value_weight")):
        if name in streams:
            streams[name] = streams[name] * factor
    return batch
