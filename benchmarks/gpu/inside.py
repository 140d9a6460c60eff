"""Where the head's time goes: seconds by kernel, and by the rows of a chunk."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu.common import by_kernel, device, markdown, median_s, options, write
from paw_hpc.kernels import linear_row_loss

SIZES = {True: [(64, 16, 300)], False: [(8192, 1536, 151936), (8192, 4096, 151936)]}
CHUNKS: dict[bool, list[int | None]] = {True: [None, 16], False: [None, 512, 1024, 2048, 4096]}


class Call:
    """One forward and backward of `linear_row_loss` on random rows; the gradient of the weight goes into a
    float32 `main_grad`."""

    def __init__(self, rows: int, features: int, vocabulary: int) -> None:
        where = device()
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        self.hidden = torch.randn(rows, features, device=where).to(dtype).requires_grad_()
        self.weight = (
            (torch.randn(vocabulary, features, device=where) * 2 / features**0.5).to(dtype).requires_grad_()
        )
        self.weight.main_grad = torch.zeros(vocabulary, features, device=where)  # type: ignore[attr-defined]
        self.target = torch.randint(vocabulary, (rows,), device=where)
        self.a, self.b = torch.randn(2, rows, device=where)

    def run(self, chunk_rows: int | None) -> None:
        def row_loss(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return self.a[rows] * logp + self.b[rows] * entropy

        result = linear_row_loss(self.hidden, self.weight, self.target, row_loss, chunk_rows=chunk_rows)
        torch.autograd.grad(result.loss, (self.hidden, self.weight), allow_unused=True)

    def floor(self) -> None:
        """The three bare products."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        z = hidden @ weight.T
        _ = z @ weight
        _ = z.T @ hidden


def tables(call: Call, chunk_rows: list[int | None]) -> list[str]:
    """By chunk size, and by kernel."""
    floor, chunks = median_s(call.floor, 5), []
    for chunk in chunk_rows:
        seconds = median_s(functools.partial(call.run, chunk), 5)
        chunks.append([chunk or "as it chooses", f"{1e3 * seconds:.2f}", f"{seconds / floor:.2f}"])
    said = f"Three bare products: {1e3 * floor:.2f} ms."
    return [
        said,
        markdown(["rows of a chunk", "ms", "x products"], chunks),
        by_kernel(functools.partial(call.run, None)),
    ]


def main() -> None:
    chosen = options(__doc__)
    body = []
    for rows, features, vocabulary in SIZES[chosen.toy]:
        body += [
            f"## {rows} rows x {features}, V = {vocabulary}",
            *tables(Call(rows, features, vocabulary), CHUNKS[chosen.toy]),
        ]
    write(chosen.out, "inside", "Inside the head", body)


if __name__ == "__main__":
    main()
