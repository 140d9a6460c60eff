"""Keys and values of running samples, and attention of the token that each of them is at: what generation
adds to packed attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


class SlotCache:
    """Keys and values of up to `slots` running samples: per layer two tensors [slots, capacity, kv_heads,
    head_dim], made on first use."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, index: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put key and value [T, kv_heads, head_dim] at index int64[T] = slot * capacity + position."""
        if layer not in self.layers:
            self.layers[layer] = (self._blank(key), self._blank(value))
        for store, new in zip(self.layers[layer], (key, value), strict=True):
            store.view(-1, *store.shape[2:]).index_copy_(0, index, new)

    def restore(self, layer: int, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put key and value [n, kv_heads, head_dim] at the first n positions of a slot."""
        if layer not in self.layers:
            self.layers[layer] = (self._blank(key), self._blank(value))
        for store, known in zip(self.layers[layer], (key, value), strict=True):
            store[slot, : len(known)] = known

    def move(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copy the first `length` positions of the slots `source` int64[n] over the slots `target` int64[n]
        (disjoint)."""
        for stores in self.layers.values():
            for store in stores:
                store[target, :length] = store[source, :length]

    def grow(self, slots: int, capacity: int, live: int, length: int) -> None:
        """Make room for `slots` samples of `capacity` positions; the first `length` positions of the first
        `live` slots are kept."""
        self.slots, self.capacity = slots, capacity
        for layer, stores in self.layers.items():
            grown = tuple(self._blank(store[0]) for store in stores)
            for new, old in zip(grown, stores, strict=True):
                new[:live, :length] = old[:live, :length]
            self.layers[layer] = (grown[0], grown[1])

    def _blank(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: attention multiplies what it must not see by 0, which a NaN in uninitialized memory survives.
        return like.new_zeros(self.slots, self.capacity, *like.shape[1:])


@dataclass(slots=True)
class Decoding:
    """One new token for each of the first B slots of a cache; each sees its own slot up to and including
    itself."""

    cache: SlotCache
    positions: torch.Tensor  # int64[B], position of the new token in its slot
    max_length: int
    """Positions that any of them sees: the greatest of `positions` + 1."""
    calls: int = 0
    cache_index: torch.Tensor = field(init=False)  # int64[B]
    mask: torch.Tensor = field(init=False)  # [B, 1, 1, max_length], 0 or -inf

    def __post_init__(self) -> None:
        device = self.positions.device
        self.cache_index = (
            torch.arange(len(self.positions), device=device) * self.cache.capacity + self.positions
        )
        unseen = torch.arange(self.max_length, device=device) > self.positions[:, None]
        self.mask = torch.zeros(unseen.shape, device=device).masked_fill_(unseen, float("-inf"))[
            :, None, None
        ]

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """query [B, heads, d], key and value [B, kv_heads, d] -> [B, heads, d]."""
        layer = layer_of(module)
        self.cache.write(layer, self.cache_index, key, value)
        if self.mask.dtype != query.dtype:
            self.mask = self.mask.to(query.dtype)
        size, heads, width = query.shape
        keys, values = (store[:size, : self.max_length].transpose(1, 2) for store in self.cache.layers[layer])
        # The query heads that share a key head become its query positions: the cache is read once and never
        # repeated.
        grouped = query.reshape(size, key.shape[1], heads // key.shape[1], width)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask, scale=scale)
        return out.reshape(size, heads, value.shape[-1])


def layer_of(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]
