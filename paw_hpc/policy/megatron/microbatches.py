"""A planned batch cut into micro-batches, balanced by tokens over data-parallel ranks, and what a micro-batch
is on the device."""

from __future__ import annotations

import bisect
import heapq
import math
from dataclasses import dataclass

import torch

from paw_hpc.experience import Batch
from paw_hpc.objective.batching import consecutive
from paw_hpc.objective.prefixes import Prefixes, by_prefix
from paw_hpc.policy.megatron.attention import PackedSamples
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.packed import Packing


@dataclass(slots=True)
class MicroBatch:
    """One forward pass of one data-parallel replica, or with context parallelism this rank's piece of its
    tokens and the rows that stand there.

    `samples` and the `cu_seqlens` of the batch are those of the whole pass: attention sees all of it.
    """

    batch: Batch
    """The real sequences, on the device."""
    row_index: torch.Tensor  # int64[R], each row's place in the batch that was cut; on the CPU
    tokens: torch.Tensor  # int64[T of this rank], with what `padding` adds at the end
    position_ids: torch.Tensor
    samples: PackedSamples
    computed: int
    """Tokens of the whole pass that go through the layers, without padding."""
    padding: int
    """Tokens that belong to no sequence: what context and sequence parallelism need to divide them, and the
    one token of a pass without any."""
    own_rows: torch.Tensor | None = None
    """int64[R]: which rows of the pass these are, where context parallelism leaves the others to other ranks;
    on the CPU."""


def partition(lengths: torch.Tensor, ranks: int, max_tokens: int, multiple: int = 1) -> list[list[list[int]]]:
    """Sequences of each rank's micro-batches: [rank][micro-batch] -> sequences.

    Every rank gets the same number of micro-batches, a multiple of `multiple`, as few as hold the tokens; all
    of nearly the same number of tokens (longest first, each to the emptiest). One holds more than
    `max_tokens` only where it is a single sequence. A few may leave some ranks empty. A function of its
    arguments, so all ranks agree without a word.
    """
    order = torch.argsort(lengths, descending=True, stable=True).tolist()
    sizes = lengths.tolist()
    most = max(1, math.ceil(len(sizes) / ranks))  # then each holds one sample
    count = max(1, min(most, math.ceil(sum(sizes) / (ranks * max_tokens))))
    count = math.ceil(count / multiple) * multiple
    while True:
        bins = [(0, number) for number in range(ranks * count)]
        content: list[list[int]] = [[] for _ in bins]
        for sample in order:
            filled, number = heapq.heappop(bins)
            content[number].append(sample)
            heapq.heappush(bins, (filled + sizes[sample], number))
        if all(filled <= max_tokens or len(content[number]) == 1 for filled, number in bins):
            return [content[rank::ranks] for rank in range(ranks)]
        count += multiple


def partition_sharing(batch: Batch, ranks: int, max_tokens: int, multiple: int = 1) -> list[list[list[int]]]:
    """As `partition`, only that sequences that begin alike come into the same micro-batch, and count there
    once what they share (`policy.share_prefixes`): the order of `by_prefix`, cut into as few runs as hold the
    tokens, the largest of them as small as it can be."""
    order, shared = (found.tolist() for found in by_prefix(batch))
    lengths = batch.lengths[order].tolist()
    fewest = max(1, len(consecutive(lengths, shared, max_tokens)))
    places = ranks * multiple * math.ceil(fewest / (ranks * multiple))
    size = bisect.bisect_left(
        range(max_tokens), True, key=lambda size: len(consecutive(lengths, shared, size)) <= places
    )
    content = [[order[place] for place in run] for run in consecutive(lengths, shared, size)]
    content += [[]] * (places - len(content))
    return [content[rank::ranks] for rank in range(ranks)]


def micro_batches(
    batch: Batch, layout: Layout, max_tokens: int, device: torch.device, share_prefixes: bool = False
) -> list[MicroBatch]:
    """This rank's share of a batch: its replica's, and with context parallelism its piece of the tokens of
    each pass.

    Args:
        batch: on the CPU, the same on all ranks.
        max_tokens: of one pass, which context-parallel ranks share.
    """
    # The interleaved schedule asks for a multiple of the stages; with fewer micro-batches than stages, stages
    # would stand idle anyway.
    shares = (
        partition_sharing(batch, layout.data, max_tokens, layout.pipeline)
        if share_prefixes
        else partition(batch.lengths, layout.data, max_tokens, layout.pipeline)
    )
    return [
        _micro_batch(batch, torch.tensor(sequences, dtype=torch.long), layout, device, share_prefixes)
        for sequences in shares[layout.data_rank]
    ]


def _micro_batch(
    batch: Batch, sequences: torch.Tensor, layout: Layout, device: torch.device, share_prefixes: bool
) -> MicroBatch:
    part = batch.take(sequences)
    prefixes = Prefixes.of(part) if share_prefixes and part.num_tokens else None
    part = part if prefixes is None else prefixes.applied(part)
    computed = part.num_tokens
    divisor = layout.context * (layout.tensor if layout.sequence else 1)
    padding = -part.num_tokens % divisor if part.num_tokens else divisor
    cu = part.cu_seqlens
    tokens, position_ids = part.tokens, part.position_ids
    if padding:
        cu = torch.cat([cu, cu[-1:] + padding])
        prefixes = None if prefixes is None else prefixes.padded(padding)
        tokens = torch.cat([tokens, tokens.new_zeros(padding)])
        position_ids = torch.cat([position_ids, torch.arange(padding)])
    packing = Packing.of(cu, device, prefixes)
    packed = PackedSamples(
        qkv_format="thd",
        cu_seqlens_q=packing.cu_seqlens,
        cu_seqlens_kv=packing.cu_seqlens,
        max_seqlen_q=packing.max_length,
        max_seqlen_kv=packing.max_length,
        packing=packing,
    )
    row_index, own = batch.rows_of(batch.samples_of(sequences)), None
    if layout.context > 1:
        size = len(tokens) // layout.context
        first = layout.context_rank * size
        last = first + size
        own = ((part.row_position >= first) & (part.row_position < last)).nonzero()[:, 0]
        part, row_index = part.with_rows(own, first, last), row_index[own]
        tokens, position_ids = tokens[first:last], position_ids[first:last]
    return MicroBatch(
        part.to(device), row_index, tokens.to(device), position_ids.to(device), packed, computed, padding, own
    )
