"""All micro-batches of one pass through Megatron-core's pipeline schedules: none, 1F1B or interleaved, with
or without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from paw_hpc.policy.megatron.microbatches import MicroBatch
from paw_hpc.policy.megatron.shim import megatron

Finish = Callable[[MicroBatch, torch.Tensor], torch.Tensor | None]
"""(micro-batch, hidden states [R, H] of its rows) -> the scalar to differentiate (None: nothing), on the last
stage."""


def run(chunks: Sequence[nn.Module], parts: Sequence[MicroBatch], finish: Finish, *, backward: bool) -> None:
    """Send micro-batches through this rank's model chunks; a collective of all ranks of a replica.

    Gradients of all micro-batches add up as they are: the schedule is told to scale nothing (see
    `calculate_per_token_loss` in model.py), so the scalar's factor is 1, as the row head needs. With
    `backward`, gradients are reduced over replicas at the end.

    Args:
        chunks: of one model, wrapped for data parallelism where `backward` is set.
        parts: at least one; as many on every rank of the replica.
    """
    with megatron():
        from megatron.core.pipeline_parallel import get_forward_backward_func

        iterators = [iter(parts) for _ in chunks]
        get_forward_backward_func()(
            forward_step_func=_forward_step(finish),
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=list(chunks),
            num_microbatches=len(parts),
            seq_length=1,  # lengths differ; each stage is told by the one before it
            micro_batch_size=1,
            forward_only=not backward,
        )


def _forward_step(finish: Finish) -> Callable[[Iterator[MicroBatch], nn.Module], Any]:
    def step(iterator: Iterator[MicroBatch], chunk: nn.Module) -> Any:
        part = next(iterator)
        hidden = chunk(part.tokens, part.position_ids, part.batch.row_position, part.samples)

        def loss(hidden_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            scalar = finish(part, hidden_rows)
            return (
                hidden_rows.new_zeros(()) if scalar is None else scalar,
                torch.zeros((), dtype=torch.int, device=hidden_rows.device),
                {},
            )

        return hidden, loss

    return step
