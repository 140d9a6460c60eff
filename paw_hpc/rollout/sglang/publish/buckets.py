"""Weights on their way: from named tensors to flat buckets of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

NamedTensor = tuple[str, torch.Tensor]
NamedTensors = Iterator[NamedTensor]
Tensors = Callable[[], NamedTensors]
"""One pass over weights: tensors of the Hugging Face layout, each whole. All processes that share them take
part, to the end."""
Buffer = Callable[[int, torch.device], torch.Tensor]
"""(bytes, device) -> uint8[at least so many bytes]"""


@dataclass(frozen=True, slots=True)
class Weights:
    """The trainer's weights, as a publication passes over them."""

    tensors: Tensors
    nbytes: int
    """Of all tensors."""


def weights_of(model: nn.Module) -> Weights:
    """The weights of a model in this process; tied ones once."""
    parameters = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    return Weights(lambda: iter(parameters), sum(p.nbytes for _, p in parameters))


def shares(limit_bytes: int) -> tuple[int, int]:
    """(bytes to gather in, bytes to send from) of what a publication may use where several processes share
    the weights.

    A rank gathers shards beside the tensors that they make up: three times the first share at most, with one
    tensor on its way into the second.
    """
    return max(1, limit_bytes // 6), max(1, limit_bytes // 2)


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


def buckets(tensors: Iterable[NamedTensor], capacity: int, buffer: Buffer) -> Iterator[Bucket]:
    """Pack tensors in their order, each as soon as it is there. A bucket has at most `capacity` bytes, or one
    tensor that is larger.

    Args:
        buffer: asked for once per bucket.
    """
    bucket, size = Bucket([], [], [], torch.empty(0)), 0
    for name, tensor in tensors:
        # A tensor must begin at a multiple of its element size, and there are no gaps.
        if bucket.names and (size + tensor.nbytes > capacity or size % tensor.dtype.itemsize):
            yield Bucket(bucket.names, bucket.dtypes, bucket.shapes, bucket.flat[:size])
            bucket, size = Bucket([], [], [], torch.empty(0)), 0
        if not bucket.names:
            bucket = Bucket([], [], [], buffer(max(capacity, tensor.nbytes), tensor.device))
        bucket.flat[size : size + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        size += tensor.nbytes
        bucket.names.append(name)
        bucket.dtypes.append(tensor.dtype)
        bucket.shapes.append(tensor.shape)
    if bucket.names:
        yield Bucket(bucket.names, bucket.dtypes, bucket.shapes, bucket.flat[:size])


def in_turn(count: int, buffer: Buffer) -> Buffer:
    """The same `count` buffers again and again: fresh memory costs its first touch as much as a copy."""
    kept: list[torch.Tensor] = []

    def take(size: int, device: torch.device) -> torch.Tensor:
        chosen = kept.pop(0) if len(kept) == count else None
        if chosen is None or chosen.nbytes < size or chosen.device != device:
            chosen = buffer(size, device)
        kept.append(chosen)
        return chosen

    return take
