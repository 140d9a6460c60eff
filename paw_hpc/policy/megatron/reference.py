"""The reference policy of the KL term: frozen chunks in the policy's layout, in CPU memory between uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from paw_hpc.policy.megatron.model import PackedGPT


class Reference:
    """Holds frozen chunks. With `stays_on_cpu`, they are on the device inside `on` only."""

    def __init__(self, chunks: Sequence[PackedGPT], *, stays_on_cpu: bool) -> None:
        self._chunks, self._stays_on_cpu = list(chunks), stays_on_cpu
        for chunk in self._chunks:
            chunk.requires_grad_(False)
            if stays_on_cpu:
                chunk.to("cpu")

    @property
    def device(self) -> torch.device:
        """Where the weights are now."""
        return next(self._chunks[0].parameters()).device

    @contextlib.contextmanager
    def on(self, device: torch.device | str) -> Iterator[list[PackedGPT]]:
        """The chunks, ready to run on a device."""
        for chunk in self._chunks:
            chunk.to(device)
        try:
            yield self._chunks
        finally:
            if self._stays_on_cpu:
                for chunk in self._chunks:
                    chunk.to("cpu")
