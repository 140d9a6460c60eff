"""What an update cost all ranks together: tokens, rows and FLOPs per second, memory, padding, seconds per
phase."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from transformers import PreTrainedConfig

from paw_hpc.experience import Batch
from paw_hpc.policy.backend import Metrics
from paw_hpc.policy.throughput import ModelCost, memory_peak_bytes, peak_flops, rates
from paw_hpc.recipe import Recipe


def update_costs(
    batch: Batch,
    recipe: Recipe,
    config: PreTrainedConfig,
    processes: int,
    device: torch.device,
    computed: torch.Tensor,
    seconds: float,
    phases: Mapping[str, float],
) -> Metrics:
    """A collective of all ranks.

    Args:
        processes: ranks of the layout.
        computed: int64[2], tokens of samples and of padding that this rank computed and no other one counts.
        phases: seconds by name, this rank's own.
    """
    replicas = computed.double()
    memory = torch.tensor(float(memory_peak_bytes(device)))
    dist.all_reduce(replicas)
    dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    epochs = recipe.optimizer.epochs
    tokens, rows = batch.num_tokens * epochs, batch.num_rows * epochs
    cost = ModelCost.of(config)
    once, padding = replicas.tolist()
    flops = None if cost is None else cost.flops(batch, computed=once / tokens) * epochs
    peak = peak_flops(device, getattr(torch, recipe.model.dtype))
    named = {f"time/policy_{name}_s": spent for name, spent in sorted(phases.items())}
    named["padding_share"] = padding / (once + padding)
    if recipe.policy.share_prefixes:
        named["shared_prefix_share"] = 1 - once / tokens
    return named | rates(tokens, rows, seconds, float(memory), flops, peak, processes)


def own_device(device: torch.device) -> torch.device:
    """This process's GPU among those of its machine."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
