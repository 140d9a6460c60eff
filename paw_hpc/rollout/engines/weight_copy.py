"""The in-process engine beside a policy whose weights are spread over ranks: a whole copy of the model,
filled anew at every publication."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from paw_hpc.rollout.engines.local import LocalEngine


class CopyPublisher:
    """Implements `paw_hpc.rollout.sglang.publish.Publisher`; `publish` is a collective of all ranks.

    Args:
        whole_tensors: iterates over all weights under their Hugging Face names, whole.
        model, engine: of the ranks that play; the others only take part in the gathering.
    """

    def __init__(
        self,
        whole_tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        model: nn.Module | None,
        engine: LocalEngine | None,
    ):
        self._whole_tensors, self._engine = whole_tensors, engine
        self._own = {} if model is None else dict(model.named_parameters())

    @torch.no_grad()
    def publish(self, version: int) -> None:
        """After this returns, the engine samples from weights `version`."""
        for name, tensor in self._whole_tensors():
            if self._engine is not None:
                self._own[name].copy_(tensor)
        if self._engine is not None:
            self._engine.weight_version = version
