"""Rows without a gradient take no part in the head's backward products, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from paw_hpc.kernels import linear_row_loss, reference
from paw_hpc.kernels.head import RowLoss, RowLossFunction
from paw_hpc.kernels.reference import ReferenceHead

ROWS, HIDDEN, VOCABULARY = 300, 16, 97


@pytest.fixture(autouse=True)
def every_head_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LARGE", 0)


@contextmanager
def dense() -> Iterator[None]:
    with mock.patch.object(ReferenceHead, "live_rows", lambda *_: None):
        yield


def found(
    row_loss: RowLossFunction, chunk_rows: int = 64, main_grad: bool = False
) -> tuple[RowLoss, torch.Tensor, torch.Tensor]:
    """The result and the gradients of hidden and weight."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=draw).requires_grad_()
    target = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    if main_grad:
        weight.main_grad = torch.ones_like(weight)  # type: ignore[attr-defined]
    result = linear_row_loss(hidden, weight, target, row_loss, chunk_rows=chunk_rows)
    result.loss.backward()
    assert hidden.grad is not None
    gradient = weight.main_grad if main_grad else weight.grad  # type: ignore[attr-defined]
    assert gradient is not None
    return result, hidden.grad, gradient


def masked(share: float) -> RowLossFunction:
    keep = (torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) < share).float()
    return lambda logp, entropy, rows: -keep[rows] * logp


def with_entropy(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows have a gradient through the entropy alone."""
    return torch.where(rows % 7 == 0, -logp, 0.0) + torch.where(rows % 11 == 0, entropy, 0.0)


def nothing(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return logp * 0.0


@pytest.mark.parametrize(
    "loss", [masked(0.02), masked(0.15), masked(0.6), masked(1.0), with_entropy, nothing]
)
@pytest.mark.parametrize("chunk_rows", [1, 64, ROWS])
@pytest.mark.parametrize("main_grad", [False, True])
def test_gradients_are_those_of_all_rows(loss: RowLossFunction, chunk_rows: int, main_grad: bool) -> None:
    result, hidden, weight = found(loss, chunk_rows, main_grad)
    with dense():
        expected, all_hidden, all_weight = found(loss, chunk_rows, main_grad)
    for name in ("loss", "logp", "entropy"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    torch.testing.assert_close(hidden, all_hidden, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(weight, all_weight, atol=1e-5, rtol=1e-5)


def test_products_see_the_rows_that_count_and_wait_for_a_whole_chunk() -> None:
    sizes: list[int] = []
    right = ReferenceHead.add_weight_gradient

    def counted(self: ReferenceHead, dlogits: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        sizes.append(len(dlogits))
        right(self, dlogits, hidden, out)

    with mock.patch.object(ReferenceHead, "add_weight_gradient", counted):
        found(masked(0.15), chunk_rows=16)
        live, sizes[:] = list(sizes), []
        with dense():
            found(masked(0.15), chunk_rows=16)
    keep = int((torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) < 0.15).sum())
    assert sum(live) == keep < 0.25 * ROWS == 0.25 * sum(sizes)
    assert all(16 <= size < 32 for size in live[:-1])


def test_small_heads_keep_the_order_of_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LARGE", VOCABULARY * HIDDEN + 1)
    _, hidden, weight = found(masked(0.15))
    with dense():
        _, all_hidden, all_weight = found(masked(0.15))
    assert torch.equal(hidden, all_hidden) and torch.equal(weight, all_weight)
    monkeypatch.setattr(reference, "LARGE", VOCABULARY * HIDDEN)
    assert not torch.equal(found(masked(0.15))[2], all_weight), "the control: left out, sums round otherwise"


def test_a_row_that_is_no_number_is_not_hidden_by_a_mask() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw)
    hidden[5] = torch.nan
    hidden.requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=draw).requires_grad_()
    result = linear_row_loss(
        hidden,
        weight,
        torch.zeros(ROWS, dtype=torch.long),
        lambda logp, _, rows: torch.where(rows == 5, 0.0, -logp),
    )
    assert result.loss.isnan() and result.nonfinite_rows().tolist() == [5]
