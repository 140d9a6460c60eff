"""A Megatron model in training: chunks wrapped for data parallelism, and their AdamW. It steps as
policy/optimizer.py does for the other backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch import nn

from paw_hpc.policy.megatron.microbatches import MicroBatch
from paw_hpc.policy.megatron.model import PackedGPT
from paw_hpc.policy.megatron.schedule import Finish, run
from paw_hpc.policy.megatron.shim import megatron
from paw_hpc.policy.throughput import PhaseClock
from paw_hpc.recipe import OptimizerSection, Recipe


class TrainedModel:
    """Chunks with loaded weights, made trainable.

    Gradients are kept and reduced in float32; the optimizer holds float32 masters of bfloat16 weights.
    Vectors do not decay.

    Args:
        models: this rank's chunks, on the device. `chunks` are the same, wrapped.
        lr: before warm-up.
        clock: counts the seconds of gradient reduction and of the optimizer.
    """

    def __init__(self, models: Sequence[PackedGPT], lr: float, recipe: Recipe, clock: PhaseClock) -> None:
        self.models, self.lr, self._section, self._clock = list(models), lr, recipe.optimizer, clock
        self._warmup_updates = recipe.warmup_updates
        section = recipe.megatron
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=section.distributed_optimizer,
            overlap_grad_reduce=section.overlap_grad_reduce,
            overlap_param_gather=section.overlap_param_gather,
        )
        with megatron():
            self.chunks = [
                DistributedDataParallel(m.config, ddp, m, disable_bucketing=i > 0)
                for i, m in enumerate(self.models)
            ]
            # With overlap, weights are gathered by hooks of the first forward pass after a step, and of no
            # other.
            self._gathers_late, self._gathering = section.overlap_param_gather, False
            if self._gathers_late:
                for chunk in self.chunks:
                    chunk.disable_forward_pre_hook(param_sync=False)
            self.optimizer: Any = get_megatron_optimizer(_optimizer_config(lr, recipe), self.chunks)
        for group in self.optimizer.param_groups:  # left to Megatron's scheduler, which has no part here
            group["weight_decay"] = recipe.optimizer.weight_decay * group["wd_mult"]
        config = self.models[0].config
        config.finalize_model_grads_func = self._finalize
        if section.overlap_grad_reduce:
            held_back = [chunk.no_sync for chunk in self.chunks]
            config.no_sync_func = held_back if len(held_back) > 1 else held_back[0]

    def learning_rate(self, update: int) -> float:
        """Linear warm-up over `warmup_updates`: update 0 already learns."""
        return self.lr * min(1.0, (update + 1) / self._warmup_updates) if self._warmup_updates else self.lr

    def accumulate(self, parts: Sequence[MicroBatch], finish: Finish) -> None:
        """Gradients of the summed losses of all micro-batches of all replicas, from zero."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        with self._clock.measure("forward_backward"):
            run(self.chunks, parts, finish, backward=True)

    def step(self, loss: torch.Tensor, update: int) -> tuple[float, bool]:
        """Apply the accumulated gradients.

        Args:
            loss: scalar, this rank's part of the summed loss of the step (0 where another rank has it); only
                the finiteness of the sum matters.

        Returns:
            (gradient norm before clipping, applied), the same on all ranks. Not applied when the loss or the
            norm is not finite: weights and moments stay as they were.
        """
        with self._clock.measure("optimizer"), megatron():
            self.optimizer.prepare_grads()
            norm = float(self.optimizer.get_grad_norm())
            if not _all_finite(loss.detach().double().cpu(), norm):
                return norm, False
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(update)
            _clip(self.optimizer, self._section.clip_grad, norm)
            self.optimizer.step_with_ready_grads()
            if self._gathers_late and not self._gathering:
                for chunk in self.chunks:
                    chunk.enable_forward_pre_hook()
                self._gathering = True
        return norm, True

    def settle(self) -> None:
        """Wait for weights that are still being gathered. To be called when an update is done: from here on
        anybody may read them."""
        if self._gathering:
            with megatron():
                for chunk in self.chunks:
                    chunk.disable_forward_pre_hook(param_sync=True)
            self._gathering = False

    def _finalize(
        self, chunks: list[nn.Module], num_tokens: torch.Tensor | None = None, **options: Any
    ) -> None:
        """What the schedule calls at the end of a pass. The number of tokens is withheld: gradients would be
        divided by it."""
        with self._clock.measure("gradient_reduction"):
            finalize_model_grads(chunks, None, **options)


def _optimizer_config(lr: float, recipe: Recipe) -> OptimizerConfig:
    section: OptimizerSection = recipe.optimizer
    dtype = getattr(torch, recipe.model.dtype)
    return OptimizerConfig(
        optimizer="adam",
        lr=lr,
        weight_decay=section.weight_decay,
        adam_beta1=section.betas[0],
        adam_beta2=section.betas[1],
        adam_eps=section.eps,
        clip_grad=section.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=recipe.megatron.distributed_optimizer,
        overlap_param_gather=recipe.megatron.overlap_param_gather,
    )


def _all_finite(loss: torch.Tensor, norm: float) -> bool:
    """Agreed by all ranks."""
    found = torch.stack([loss, torch.tensor(norm, dtype=torch.float64)])
    if dist.get_world_size() > 1:
        dist.all_reduce(found)
    return bool(found.isfinite().all())


def _clip(optimizer: Any, limit: float, norm: float) -> None:
    """As the optimizer's own step does."""
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=limit, total_norm=norm)
