"""AdamW on float32 master weights, clipped, warmed up, and never stepped on a gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from paw_hpc.recipe import OptimizerSection
from paw_hpc.system.errors import CheckpointError

SETTINGS = ("betas", "eps", "weight_decay")
"""What a parameter group has from the recipe, beside the learning rate, which every step sets."""


class Optimizer:
    """One AdamW over the parameters of a module.

    Float32 parameters are their own masters. Others (bfloat16) get a float32 copy: their gradients are added
    to its gradient as soon as they are complete, so micro-batches accumulate in float32, and each step ends
    with a copy back. Vectors (norms, biases) do not decay, as in Megatron.
    """

    def __init__(
        self, module: nn.Module, lr: float, section: OptimizerSection, warmup_updates: int = 0
    ) -> None:
        self.lr, self.warmup_updates, self.clip_grad = lr, warmup_updates, section.clip_grad
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = {
            name: p if p.dtype == torch.float32 else _master(p) for name, p in self.parameters.items()
        }
        groups = [
            {
                "params": [m for m in self.masters.values() if m.ndim >= 2],
                "weight_decay": section.weight_decay,
            },
            {"params": [m for m in self.masters.values() if m.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=lr, betas=section.betas, eps=section.eps, fused=True
        )

    def learning_rate(self, update: int) -> float:
        """Linear warm-up over `warmup_updates`: update 0 already learns."""
        return self.lr * min(1.0, (update + 1) / self.warmup_updates) if self.warmup_updates else self.lr

    def collect_directly(self, parameter: nn.Parameter) -> None:
        """Let the LM head add its gradient of this parameter to the master's, in float32 (`main_grad`, see
        `kernels.linear_row_loss`), until the next step. Nothing to do for a parameter that is its own
        master."""
        master = next(self.masters[name] for name, own in self.parameters.items() if own is parameter)
        if master is parameter:
            return
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        parameter.main_grad = master.grad  # type: ignore[attr-defined]

    def step(self, loss: torch.Tensor, update: int) -> tuple[float, bool]:
        """Apply the accumulated gradients and drop them.

        Args:
            loss: scalar, the summed loss of the step; only its finiteness matters.

        Returns:
            (gradient norm before clipping, applied). Not applied when the loss or the norm is not finite:
                weights and moments stay as they were.
        """
        grads = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        # The one moment of a step at which the host waits for a GPU.
        norm_value, loss_value = torch.stack([norm, loss.to(norm)]).tolist()
        applied = math.isfinite(norm_value) and math.isfinite(loss_value)
        if applied and grads:
            torch.nn.utils.clip_grads_with_norm_(list(self.masters.values()), self.clip_grad, norm)
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate(update)
            self.adamw.step()
            self._publish()
        for name, master in self.masters.items():
            master.grad = None
            self.parameters[name].main_grad = None  # type: ignore[attr-defined]
        return norm_value, applied

    @torch.no_grad()
    def _publish(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self) -> dict[str, Any]:
        """Weights (the masters, by name) and moments, as copies on the CPU."""
        weights = {name: m.detach().to("cpu", copy=True) for name, m in self.masters.items()}
        return {"weights": weights, "adamw": _copied(self.adamw.state_dict())}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any], what: str) -> None:
        """Raises CheckpointError where names or shapes disagree; nothing is changed then."""
        weights = state["weights"]
        if weights.keys() != self.masters.keys():
            odd = sorted(weights.keys() ^ self.masters.keys())
            raise CheckpointError(
                f"{what}: the checkpoint is of another model: {len(odd)} weights are only on one side, "
                f"such as {odd[0]}"
            )
        for name, master in self.masters.items():
            if weights[name].shape != master.shape:
                raise CheckpointError(
                    f"{what}: {name} is {tuple(weights[name].shape)} in the checkpoint and "
                    f"{tuple(master.shape)} in the model"
                )
        for name, master in self.masters.items():
            master.copy_(weights[name])
        self._publish()
        # AdamW takes the settings that are stored with the moments for its own; the recipe's are those that
        # hold.
        own = [{name: group[name] for name in SETTINGS} for group in self.adamw.param_groups]
        # Copied: AdamW adopts the tensors that it is given, and would go on to change the caller's.
        self.adamw.load_state_dict(_copied(state["adamw"]))
        for group, settings in zip(self.adamw.param_groups, own, strict=True):
            group.update(settings)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """A float32 copy that collects the parameter's gradients."""
    master = nn.Parameter(parameter.detach().float())

    def collect(source: torch.Tensor) -> None:
        if source.grad is None:  # the LM head has added its gradient to the master's already
            return
        grad = source.grad.float()
        master.grad = grad if master.grad is None else master.grad.add_(grad)
        source.grad = None

    parameter.register_post_accumulate_grad_hook(collect)
    return master


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
