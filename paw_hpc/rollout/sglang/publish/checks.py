"""What a server should hold after a publication: checksums of a few tensors, taken while the weights pass
by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

import torch

from paw_hpc.rollout.sglang.publish.buckets import NamedTensors

_FUSED = {
    "q_proj": ("qkv_proj", 0, 3),
    "k_proj": ("qkv_proj", 1, 3),
    "v_proj": ("qkv_proj", 2, 3),
    "gate_proj": ("gate_up_proj", 0, 2),
    "up_proj": ("gate_up_proj", 1, 2),
}
_PART = re.compile(r"\.(q_proj|k_proj|v_proj|gate_proj|up_proj)\.(weight|bias)$")
_BY_INPUT = re.compile(r"\.(o_proj|down_proj)\.weight$")
_VOCABULARY = re.compile(r"(^|\.)(embed_tokens|lm_head)\.weight$")
VOCABULARY_MULTIPLE = 64
"""SGLang pads its vocabulary-parallel matrices to a multiple of this, with rows of zeros."""


class WeightSample:
    """What servers should hold of a few tensors, different ones for every version: their checksums, taken
    while the weights pass by.

    SGLang fuses q, k, v and gate, up, and splits over its tensor-parallel ranks; checksums are of what each
    rank holds.

    Args:
        count: how many of the server's tensors; None: all.
        ranks: tensor-parallel ranks of a server.
        dtype: of the server's weights.
        checksum: of a contiguous tensor, as the servers' device computes it.
        names: the server's tensors, where they are known already: then only those that are wanted are looked
            at.
    """

    def __init__(
        self,
        version: int,
        count: int | None,
        ranks: int,
        dtype: torch.dtype,
        kv_heads: int,
        checksum: Callable[[torch.Tensor], str],
        names: frozenset[str] = frozenset(),
    ):
        self.version, self._count, self._ranks, self._dtype, self._kv_heads, self._checksum = (
            version,
            count,
            ranks,
            dtype,
            kv_heads,
            checksum,
        )
        self.expected: dict[str, list[str]] = {}
        """The server's name of a tensor -> the checksum of each rank's share."""
        self.names = set(names)
        """Of the server's tensors: all that were known or have passed."""
        self._known = self._first(names) if names else None
        self._parts: dict[str, dict[int, torch.Tensor]] = {}

    def watch(self, tensors: NamedTensors) -> NamedTensors:
        """The same tensors, looked at."""
        self.expected, self._parts = {}, {}
        for name, tensor in tensors:
            self._see(name, tensor)
            yield name, tensor

    def merge(self, parts: Sequence[tuple[dict[str, list[str]], set[str]]]) -> None:
        """Take over what several samples of this version have found, each of its own part of the model:
        (`expected`, `names`) of each."""
        self.names = set().union(*(names for _, names in parts))
        found = {name: checksums for expected, _ in parts for name, checksums in expected.items()}
        self.expected = {name: found[name] for name in self._first(found)}

    def unwanted(self) -> list[str]:
        """Tensors that servers need not look at. (They compare by substrings: one that is a part of a wanted
        name is left out.)"""
        return sorted(
            name
            for name in self.names - self.expected.keys()
            if not any(name in wanted for wanted in self.expected)
        )

    def _see(self, name: str, tensor: torch.Tensor) -> None:
        found = _PART.search(name)
        fused, part, of = _FUSED[found.group(1)] if found else ("", 0, 1)
        server_name = name.replace(found.group(1), fused) if found else name
        self.names.add(server_name)
        if server_name not in (
            self._first([*self.expected, server_name]) if self._known is None else self._known
        ):
            return
        parts = self._parts.setdefault(server_name, {})
        parts[part] = tensor.to(self._dtype) if of == 1 else tensor.to(self._dtype, copy=True)
        if len(parts) == of:
            whole = [parts[i] for i in range(of)]
            self.expected[server_name] = [
                self._checksum(self._share(server_name, whole, rank)) for rank in range(self._ranks)
            ]
            del self._parts[server_name]
            for dropped in self.expected.keys() - self._first(self.expected):
                del self.expected[dropped]

    def _first(self, names: Iterable[str]) -> frozenset[str]:
        """Those of them that this version's sample has, if there are no others."""
        return frozenset(sorted(names, key=self._order)[: self._count])

    def _order(self, name: str) -> bytes:
        return hashlib.blake2b(f"{self.version}/{name}".encode(), digest_size=8).digest()

    def _share(self, name: str, parts: list[torch.Tensor], rank: int) -> torch.Tensor:
        """What one rank of a server holds of a tensor."""
        if len(parts) == 3:
            query, *key_value = parts
            # Fewer key-value heads than ranks: several ranks hold the same one.
            pieces = min(self._ranks, self._kv_heads)
            index = rank * pieces // self._ranks
            return torch.cat([query.chunk(self._ranks)[rank], *(t.chunk(pieces)[index] for t in key_value)])
        if len(parts) == 2:
            return torch.cat([t.chunk(self._ranks)[rank] for t in parts])
        [whole] = parts
        if _BY_INPUT.search(name):
            return whole.chunk(self._ranks, dim=1)[rank].contiguous()
        if _VOCABULARY.search(name):
            missing = -len(whole) % VOCABULARY_MULTIPLE
            padded = torch.cat([whole, whole.new_zeros(missing, whole.shape[1])]) if missing else whole
            return padded.chunk(self._ranks)[rank].contiguous()
        return whole.contiguous()


def cpu_checksum(tensor: torch.Tensor) -> str:
    """As SGLang computes it for a tensor in CPU memory: the first 8 bytes of SHA-256 over its bytes, in
    hexadecimal."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()[:16]


_TILE_WORDS = 8192
_PIECE_WORDS = 1 << 22
_LOW = 0xFFFFFFFF


def gpu_checksum(tensor: torch.Tensor) -> str:
    """As SGLang computes it for a tensor in GPU memory (`gpu_tensor_hash` of its release 0.5.23), in
    hexadecimal; runs on any device.

    32-bit words are mixed with their positions by MurmurHash3's finalizer under two seeds, summed up per tile
    of 8192 words and mixed again; the 64-bit results of the tiles are added and mixed by SplitMix64's
    finalizer.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.numel() % 4:
        data = torch.cat([data, data.new_zeros(-data.numel() % 4)])
    words = data.view(torch.int32)
    if not words.numel():
        return f"{0:016x}"
    seed = 0x243F6A88
    seeds = (seed, (seed * 0x9E3779B1 ^ 0xDEADBEEF) & _LOW)
    total = 0
    for start in range(0, words.numel(), _PIECE_WORDS):
        piece = words[start : start + _PIECE_WORDS].long() & _LOW
        index = torch.arange(start, start + len(piece), device=piece.device) & _LOW
        halves = []
        for factor, chosen, turn in ((0x27D4EB2D, seeds[0], 15), (0x165667B1, seeds[1], 13)):
            place = ((index * factor + chosen) & _LOW) ^ (((index << turn) | (index >> (32 - turn))) & _LOW)
            mixed = torch.nn.functional.pad(_finalize32(piece ^ place), (0, -len(piece) % _TILE_WORDS))
            tiles = mixed.view(-1, _TILE_WORDS).sum(1) & _LOW
            halves.append(_finalize32(tiles ^ (words.numel() * 4 & _LOW)))
        # 64-bit sums wrap around, as they should.
        total += int(((halves[0] << 32) | halves[1]).sum())
    return f"{_finalize64(total & 0xFFFFFFFFFFFFFFFF):016x}"


def _finalize32(x: torch.Tensor) -> torch.Tensor:
    """int64 tensor of 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _LOW
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _LOW
    return x ^ (x >> 16)


def _finalize64(x: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
