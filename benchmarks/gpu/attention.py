"""Packed attention on torch's variable-length kernel beside padded attention in buckets: errors of outputs
and gradients, and time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.common import device, markdown, median_s, options, write
from paw_hpc.policy import packed

SHAPES = {
    "12 heads, 2 key heads, 128": (12, 2, 128),
    "9 heads, 3 key heads, 64": (9, 3, 64),
    "4 heads, 4 key heads, 64": (4, 4, 64),
}


def attention(
    packing: packed.Packing, tensors: list[torch.Tensor], gradient: torch.Tensor
) -> list[torch.Tensor]:
    module: Any = SimpleNamespace(layer_idx=0)
    output = packing.attend(module, *tensors, scale=None)
    return [output.detach(), *torch.autograd.grad(output, tensors, gradient)]


def main() -> None:
    chosen = options(__doc__)
    where = device()
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    lengths = np.random.default_rng(0).integers(3, 30 if chosen.toy else 900, 32)
    packing = packed.Packing.of(torch.from_numpy(np.concatenate([[0], lengths.cumsum()])), where)
    total = int(lengths.sum())
    variable, rows = packed.use_varlen, []
    for name, (heads, key_heads, width) in SHAPES.items():
        tensors = [
            torch.randn(total, h, width, device=where).to(dtype).requires_grad_()
            for h in (heads, key_heads, key_heads)
        ]
        gradient = torch.randn(total, heads, width, device=where).to(dtype)
        found, seconds = {}, {}
        for way, use in {"variable": variable, "padded": lambda query: False}.items():
            packed.use_varlen = use  # type: ignore[assignment]
            found[way] = attention(packing, tensors, gradient)
            seconds[way] = median_s(
                lambda tensors=tensors, gradient=gradient: attention(packing, tensors, gradient), 5
            )  # type: ignore[misc]
        packed.use_varlen = variable
        exact = attention(packing, [t.detach().float().requires_grad_() for t in tensors], gradient.float())
        wrong = {
            way: max(float((a.float() - b).norm() / b.norm()) for a, b in zip(f, exact, strict=True))
            for way, f in found.items()
        }
        rows.append(
            [
                name,
                variable(tensors[0]),
                *(f"{1e3 * s:.2f}" for s in seconds.values()),
                *(f"{w:.1e}" for w in wrong.values()),
            ]
        )
    header = ["shape", "variable-length kernel", "ms", "ms, padded", "relative error to float32", "of padded"]
    write(
        chosen.out,
        "attention",
        f"Packed attention, forward and backward, 32 samples, {total} tokens",
        [markdown(header, rows)],
    )


if __name__ == "__main__":
    main()
