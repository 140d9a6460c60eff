"""Keys and values of a finished turn, kept for the prompt that goes on from it: what a conversation shares
with its last turn is computed once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from paw_hpc.experience import Ids
from paw_hpc.policy.cache import SlotCache


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens whose keys and values are known."""

    ids: Ids
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """Layer -> keys and values, each [len(ids), kv_heads, head_dim]."""


class KeptPrefixes:
    """One prefix for each episode, of the current weights: whoever changes these calls `clear`. Safe to use
    from several threads: episodes end in one, and turns are generated in another.

    Args:
        most_tokens: of all together; where they are more, the longest unused go.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._tokens = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, episode: int, ids: Ids, cache: SlotCache, slot: int) -> None:
        """Copy what a slot holds: the keys and values of `ids`, int32[n], in its first n positions."""
        self.forget(episode)
        if len(ids) > self._most_tokens:
            return
        layers = {
            layer: (k[slot, : len(ids)].clone(), v[slot, : len(ids)].clone())
            for layer, (k, v) in cache.layers.items()
        }
        with self._lock:
            self._kept[episode] = Prefix(ids, layers)
            self._tokens += len(ids)
            while self._tokens > self._most_tokens:
                self.forget(next(iter(self._kept)))

    def find(self, episode: int, prompt: Ids) -> Prefix | None:
        """What is known of the beginning of a prompt; at least its last token is not."""
        found = self._kept.get(episode)
        if (
            found is None
            or len(found.ids) >= len(prompt)
            or not np.array_equal(prompt[: len(found.ids)], found.ids)
        ):
            return None
        return found

    def forget(self, episode: int) -> None:
        with self._lock:
            if (gone := self._kept.pop(episode, None)) is not None:
                self._tokens -= len(gone.ids)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._tokens = 0


class Continuing:
    """Who sees whom where samples go on from what is in their slots: each new token sees all of its slot
    before it, and itself.

    Implements what attention asks of a `paw_hpc.policy.packed.Packing`.

    Args:
        known: tokens of each sample that are in its slot already.
        new: how many follow, as the tokens of one row stand one sample after the other.
    """

    def __init__(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        known: Sequence[int],
        new: Sequence[int],
        device: torch.device,
    ) -> None:
        self.cache, self.calls = cache, 0
        self.max_length = max(k + n for k, n in zip(known, new, strict=True))
        self._parts = list(zip(slots, known, new, strict=True))
        places = [slot * cache.capacity + k + np.arange(n) for slot, k, n in self._parts]
        self._index = torch.from_numpy(np.concatenate(places)).to(device)
        self._masks = [
            torch.ones(n, k + n, dtype=torch.bool, device=device).tril(k) for _, k, n in self._parts
        ]

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """query [T, heads, d], key and value [T, kv_heads, d] of the new tokens -> [T, heads, d]."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.cache.write(layer, self._index, key, value)
        keys, values = self.cache.layers[layer]
        shared, out, first = query.shape[1] != key.shape[1], [], 0
        for (slot, known, new), mask in zip(self._parts, self._masks, strict=True):
            q = query[first : first + new].transpose(0, 1)[None]
            k, v = (store[slot, : known + new].transpose(0, 1)[None] for store in (keys, values))
            out.append(
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=shared)[
                    0
                ].transpose(0, 1)
            )
            first += new
        return torch.cat(out)
