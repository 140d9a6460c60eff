"""Sequences of a pass that begin alike: the same tokens at the same positions, hence under a causal mask the
same hidden states, which need to be computed once (`policy.share_prefixes`; a prefix tree, as in the tree
training of AReaL #804).

What members of a group share is found in the tokens themselves: their first prompt, what all prompts of a
window say before the history, and as much of the answers as was sampled alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from paw_hpc.experience import Batch, offsets_of

Places = npt.NDArray[np.int64]


@dataclass(slots=True)
class Prefixes:
    """Which T' of the T tokens of a batch are computed, and how attention still sees whole sequences.

    Of the sequences only those take part in attention that are no beginning of another: A tokens, copied from
    the computed ones. Every computed token is in one of them.
    """

    computed: torch.Tensor  # int64[T'], indices into the batch's tokens
    place: torch.Tensor  # int64[T], where among them each token of the batch stands
    cu_seqlens: torch.Tensor  # int32[L+1], of the sequences that take part in attention
    attended: torch.Tensor  # int64[A], the computed token that each of their tokens is
    answer: torch.Tensor  # int64[T'], at which of the A tokens a computed one's attention is read

    @classmethod
    def of(cls, batch: Batch) -> Prefixes:
        """Of all sequences of a batch on the CPU."""
        order, shared = by_prefix(batch)
        cu, lengths = batch.cu_seqlens.numpy().astype(np.int64), batch.lengths.numpy()
        place = np.empty(batch.num_tokens, dtype=np.int64)
        computed: list[Places] = []
        known, before = 0, 0
        for sequence, common in zip(order.tolist(), shared.tolist(), strict=True):
            first, end = cu[sequence], cu[sequence + 1]
            place[first : first + common] = place[before : before + common]
            place[first + common : end] = np.arange(known, known + end - first - common)
            computed.append(np.arange(first + common, end))
            known, before = known + end - first - common, first
        # In this order the beginning of a sequence stands right before one that goes on from it.
        whole = np.append(shared.numpy()[1:] < lengths[order.numpy()[:-1]], True)
        leaves = order.numpy()[whole]
        attended = np.concatenate([place[cu[s] : cu[s + 1]] for s in leaves.tolist()])
        answer = np.unique(attended, return_index=True)[1]
        return cls(
            torch.from_numpy(np.concatenate(computed)),
            torch.from_numpy(place),
            offsets_of(batch.lengths[torch.from_numpy(leaves)]).int(),
            torch.from_numpy(attended),
            torch.from_numpy(answer),
        )

    def padded(self, padding: int) -> Prefixes:
        """With so many tokens more at the end, a sequence of their own."""
        copied, computed = len(self.attended), len(self.computed)
        return replace(
            self,
            cu_seqlens=torch.cat([self.cu_seqlens, self.cu_seqlens[-1:] + padding]),
            attended=torch.cat([self.attended, torch.arange(computed, computed + padding)]),
            answer=torch.cat([self.answer, torch.arange(copied, copied + padding)]),
        )

    def applied(self, batch: Batch) -> Batch:
        """The batch with the computed tokens alone, rows at their places. `cu_seqlens` still counts the
        tokens of whole sequences, so it is no batch to take sequences of."""
        values = batch.value_position
        return replace(
            batch,
            tokens=batch.tokens[self.computed],
            position_ids=batch.position_ids[self.computed],
            row_position=self.place[batch.row_position],
            value_position=None if values is None else self.place[values],
        )


def by_prefix(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """All sequences of a batch on the CPU in the order of their tokens, as words in a dictionary.

    Returns:
        order: int64[S].
        shared: int64[S], how many tokens each begins with that the one before it in this order begins with,
            too. None of those before has more in common with it.
    """
    tokens, cu = batch.tokens.numpy(), batch.cu_seqlens.numpy()
    order, shared = sorted_by_beginning([tokens[a:b] for a, b in itertools.pairwise(cu)])
    return torch.tensor(order, dtype=torch.long), torch.tensor(shared, dtype=torch.long)


def sorted_by_beginning(sequences: Sequence[Places]) -> tuple[list[int], list[int]]:
    """As `by_prefix`, of ids from 0 to 2^32 - 1."""
    # Bytes compare like the tokens where the highest byte comes first.
    words = [sequence.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(words)), key=words.__getitem__)
    shared = [0] + [_common(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    return order, shared[: len(order)]


def _common(a: Places, b: Places) -> int:
    """With how many equal tokens both begin."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
