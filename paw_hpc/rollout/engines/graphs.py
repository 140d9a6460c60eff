"""Decoding steps as CUDA graphs: a step of a small batch is a thousand tiny kernels, and starting them one by
one takes longer than running them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from paw_hpc.policy.cache import Decoding, SlotCache
from paw_hpc.policy.packed import hidden_states

logger = logging.getLogger(__name__)

SLOTS_STEP, LENGTH_STEP = 16, 128
"""Steps are recorded for multiples of these many samples and visible positions. What is too many is masked,
and cheap."""


@dataclass(slots=True)
class Recorded:
    """A step of one shape."""

    graph: torch.cuda.CUDAGraph
    tokens: torch.Tensor  # int64[B], what the graph reads
    positions: torch.Tensor  # int64[B]
    hidden: torch.Tensor  # [B, H], what it writes


class DecodingSteps:
    """Last hidden states of one new token per running sample, through `Decoding`.

    On a CPU every step is computed for exactly the samples that run. On a GPU a step's shape is rounded up;
    the first of a shape is computed one kernel at a time, the second recorded, and from then on it is played
    back. Recordings hold the addresses of weights and cache: weights are updated in place, and whoever
    replaces the cache calls `forget`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.record = True
        """False: every step one kernel at a time."""
        self._seen: set[tuple[int, int]] = set()
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._pool: object | None = None

    def forget(self) -> None:
        """The cache is another one now: drop the recordings and their memory."""
        self._seen.clear()
        self._recorded.clear()
        self._pool = None

    def hidden(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> torch.Tensor:
        """[B, H] for the first B slots.

        Args:
            tokens: int64[B] on the CPU, the newest token of each sample, not yet in the cache.
            positions: int64[B] on the CPU, where it goes.
            length: greatest position + 1.
        """
        if self._model.device.type == "cuda":
            return self._rounded(cache, tokens, positions, length)
        return self._compute(cache, tokens, positions, length)

    def _rounded(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> torch.Tensor:
        size = len(tokens)
        shape = (
            min(-(-size // SLOTS_STEP) * SLOTS_STEP, cache.slots),
            min(-(-length // LENGTH_STEP) * LENGTH_STEP, cache.capacity),
        )
        # A row too many writes to the first position of a free slot, which the next prompt there overwrites.
        tokens, positions = (
            torch.nn.functional.pad(x, (0, shape[0] - size)).to(self._model.device)
            for x in (tokens, positions)
        )
        if shape not in self._seen or not self.record:
            self._seen.add(shape)
            return self._compute(cache, tokens, positions, shape[1])[:size]
        if shape not in self._recorded:
            try:
                self._recorded[shape] = self._record(cache, tokens, positions, shape[1])
            except RuntimeError as error:  # a model that asks its device something on the way
                self.record = False
                logger.warning(
                    "decoding steps of %s cannot be recorded and stay slow: %s",
                    type(self._model).__name__,
                    str(error).splitlines()[0],
                )
                return self._compute(cache, tokens, positions, shape[1])[:size]
        recorded = self._recorded[shape]
        recorded.tokens.copy_(tokens)
        recorded.positions.copy_(positions)
        recorded.graph.replay()
        return recorded.hidden[:size]

    def _compute(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> torch.Tensor:
        return hidden_states(self._model, tokens, positions, Decoding(cache, positions, length))

    def _record(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> Recorded:
        """Recordings share one pool of memory: none is played while another's result is still needed."""
        tokens, positions = tokens.clone(), positions.clone()
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # thread_local: where episodes are played ahead, the trainer goes on computing in another thread.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            hidden = self._compute(cache, tokens, positions, length)
        return Recorded(graph, tokens, positions, hidden)
