"""What an update costs: seconds per phase, tokens and rows per second, model FLOPs, memory. Shared by the
backends, so that they can be compared."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from paw_hpc.experience import Batch
from paw_hpc.system.gpus import PEAK_FLOPS


class PhaseClock:
    """Seconds per named phase. On a GPU each phase begins and ends with a synchronization, so measure few and
    long ones."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start

    def take(self) -> dict[str, float]:
        """The seconds so far, which then count from 0."""
        seconds, self.seconds = self.seconds, defaultdict(float)
        return dict(seconds)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a dense decoder multiplies (grouped-query attention, gated feed-forward)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelCost | None:
        """Of a configuration of `transformers`; None where it is not of this kind (a mixture of experts,
        say)."""
        heads = getattr(config, "num_attention_heads", None)
        sizes = [
            getattr(config, name, None)
            for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        ]
        if (
            not heads
            or not all(sizes)
            or getattr(config, "num_experts", None)
            or getattr(config, "num_local_experts", None)
        ):
            return None
        layers, hidden, ffn_hidden, vocabulary = (int(size) for size in sizes if size)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        return cls(layers, hidden, heads, kv_heads, head_dim, ffn_hidden, vocabulary)

    def flops(self, batch: Batch, passes: int = 3, computed: float = 1.0) -> float:
        """FLOPs of a forward pass (`passes` = 1) or of forward and backward (3) over a batch: matrix products
        of the layers, causal attention within each sample, and the LM head of the scored rows. Recomputation
        is not counted, as usual for MFU.

        Args:
            computed: the share of the tokens that goes through the layers (`policy.share_prefixes`).
        """
        width = self.heads * self.head_dim
        weights = (
            self.hidden * (2 * width + 2 * self.kv_heads * self.head_dim) + 3 * self.hidden * self.ffn_hidden
        )
        linear = 2.0 * self.layers * weights * batch.num_tokens * computed
        attention = 2.0 * self.layers * width * float(batch.lengths.double().square().sum())
        head = 2.0 * batch.num_rows * self.hidden * self.vocabulary
        return passes * (linear + attention + head)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Of one device in this dtype; None where nobody knows (a CPU, an unlisted GPU, float32)."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_peak_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated on the GPU since the last reset, or resident in this process
    (which never falls)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rates(
    tokens: float,
    rows: float,
    seconds: float,
    memory_bytes: float,
    flops: float | None = None,
    peak: float | None = None,
    devices: int = 1,
) -> dict[str, float]:
    """Metrics of an update under their public names.

    Args:
        tokens, rows: trained on, over all ranks and epochs.
        memory_bytes: of the rank that needed most.
        flops: of the whole update, over all ranks.
        peak: FLOP/s of one device.
    """
    found = {
        "system/tokens_per_s": tokens / seconds,
        "system/rows_per_s": rows / seconds,
        "system/memory_peak_bytes": float(memory_bytes),
    }
    if flops is not None:
        found["system/model_flops_per_s"] = flops / seconds
        if peak is not None:
            found["system/mfu"] = flops / seconds / (devices * peak)
    return found
