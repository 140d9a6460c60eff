"""Weights on their way: from named tensors to flat buckets of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

NamedTensors = Iterator[tuple[str, torch.Tensor]]


Tensors = Callable[[], NamedTensors]
"""One pass over the trainer's weights: every tensor of the Hugging Face layout, whole. All processes that share the model take part, to the end."""


def weights_of(model: nn.Module) -> Tensors:
    """The weights of a model in this process; tied ones once."""
    return lambda: ((name, parameter.detach()) for name, parameter in model.named_parameters())


@dataclass(slots=True, frozen=True)
class Bucket:
    """Tensors one after the other, without gaps, in one flat buffer."""

    names: list[str]
    dtypes: list[torch.dtype]
    shapes: list[torch.Size]
    flat: torch.Tensor
    """uint8[bytes]"""

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Views into `flat`."""
        found, start = [], 0
        for name, dtype, shape in zip(self.names, self.dtypes, self.shapes, strict=True):
            end = start + shape.numel() * dtype.itemsize
            found.append((name, self.flat[start:end].view(dtype).view(shape)))
            start = end
        return found


def buckets(tensors: Iterable[tuple[str, torch.Tensor]], limit_bytes: int, buffer: Callable[[int, torch.device], torch.Tensor]) -> Iterator[Bucket]:
    """Pack tensors in their order. A bucket is as large as `limit_bytes`, or as one tensor that is larger.

    Args:
        buffer: (bytes, device) -> uint8[bytes], asked for once per bucket.
    """
    group: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        # A tensor must begin at a multiple of its element size, and there are no gaps.
        if group and (size + tensor.nbytes > limit_bytes or size % tensor.dtype.itemsize):
            yield _pack(group, size, buffer)
            group, size = [], 0
        group.append((name, tensor))
        size += tensor.nbytes
    if group:
        yield _pack(group, size, buffer)


def _pack(group: list[tuple[str, torch.Tensor]], size: int, buffer: Callable[[int, torch.device], torch.Tensor]) -> Bucket:
    flat = buffer(size, group[0][1].device)
    bucket = Bucket([n for n, _ in group], [t.dtype for _, t in group], [t.shape for _, t in group], flat)
    for (_, view), (_, tensor) in zip(bucket.tensors(), group, strict=True):
        view.copy_(tensor)
    return bucket
