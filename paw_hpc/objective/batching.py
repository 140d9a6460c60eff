"""Cutting a planned batch into optimizer steps (mini-batches) and forward passes (micro-batches), and leaving
out what has no gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from paw_hpc.experience import ACTION, Batch
from paw_hpc.objective.prefixes import by_prefix
from paw_hpc.recipe import AlgorithmSection


def mini_batches(batch: Batch, size: int | None, seed: int) -> list[Batch]:
    """A seeded shuffle of the S sequences, cut into ceil(N / size) chunks, as N samples need, whose sequences
    differ in number by at most one; None: [batch] itself.

    A chain stays whole, so there are at most S chunks, and chunks of chains differ in samples. `weight` and
    `value_weight` of a chunk of M sequences are multiplied by S / M, so that the objective of each optimizer
    step, in expectation over shuffles, is that of the full update.
    """
    if size is None or size >= len(batch):
        return [batch]
    total = batch.num_sequences
    order = np.random.default_rng(seed).permutation(total)
    chunks = np.array_split(order, min(-(-len(batch) // size), total))
    return [_scaled(batch.take(torch.from_numpy(chunk)), total / len(chunk)) for chunk in chunks]


def with_gradient(batch: Batch, algorithm: AlgorithmSection) -> Batch:
    """The sequences of a batch of which any row can have a gradient, weights as they are: one where none has
    any, the batch itself where all have.

    A row has none if its weight is 0, and an action row with advantage 0 has none where neither KL nor
    entropy bonus act on it: all members of its group were equally good. What is left out adds nothing to the
    loss, so the gradient is the same up to the order of its sums.
    """
    moved = (
        batch.row_kind != ACTION
        if algorithm.kl_coefficient == 0 and algorithm.entropy_bonus == 0
        else torch.ones_like(batch.row_kind).bool()
    )
    moved = (batch.streams["weight"] != 0) & (moved | (batch.streams["advantage"] != 0))
    up_to = batch.row_cu[batch.sample_cu]  # int64[S+1]
    moved_up_to = torch.cat([torch.zeros(1, dtype=torch.long), moved.long().cumsum(0)])[up_to]
    kept = (moved_up_to[1:] > moved_up_to[:-1]).nonzero()[:, 0]
    if not len(kept):
        # a step is taken all the same: moments decay, and weights go on
        kept = (up_to[1:] > up_to[:-1]).nonzero()[:1, 0]
    return batch if len(kept) in (0, batch.num_sequences) else batch.take(kept)


def micro_batches(batch: Batch, max_tokens: int, share_prefixes: bool = False) -> list[Batch]:
    """Cut into parts of at most `max_tokens` tokens, longest sequences first, so that neighbours are of
    similar length (little attention padding).

    A longer sequence forms a part of its own. Streams are not rescaled: summed losses of the parts are the
    loss of the batch.

    Args:
        share_prefixes: sequences that begin alike become neighbours instead, and what a part computes once
            counts once (`policy.share_prefixes`).
    """
    lengths = batch.lengths
    if share_prefixes:
        order, shared = by_prefix(batch)
    else:
        order = torch.argsort(lengths, descending=True, stable=True)
        shared = torch.zeros_like(order)
    runs = consecutive(lengths[order].tolist(), shared.tolist(), max_tokens)
    return [batch.take(order[run.start : run.stop]) for run in runs]


def consecutive(lengths: Sequence[int], shared: Sequence[int], max_tokens: int) -> list[range]:
    """Sequences in their order cut into as few runs as possible, each of which computes at most `max_tokens`
    tokens, or is a single sequence.

    Args:
        shared: how many of a sequence's tokens were computed with the one before it, if that is in its run.
    """
    starts, room = list[int](), 0
    for place, (length, known) in enumerate(zip(lengths, shared, strict=True)):
        more = length - known
        if not starts or more > room:
            starts.append(place)
            room, more = max_tokens, length
        room -= more
    return [range(a, b) for a, b in itertools.pairwise([*starts, len(lengths)])]


def _scaled(batch: Batch, factor: float) -> Batch:
    for streams, name in (
        (batch.streams, "weight"),
        (batch.streams, "value_weight"),
        (batch.sample_streams, "value_weight"),
    ):
        if name in streams:
            streams[name] = streams[name] * factor
    return batch
