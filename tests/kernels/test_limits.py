"""Where heads break: extreme logits, rows that do not count, one row, logits that are not numbers. Both
backends."""

from __future__ import annotations

import math

import pytest
import torch

from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss, logits_logprob_entropy
from paw_hpc.objective.world_model import clipped_mae
from tests.kernels import oracle
from tests.kernels.oracle import (
    DEVICE,
    Problem,
    assert_equal_to_oracle,
    both_terms,
    one_pass,
    problem,
    two_pass,
)

pytestmark = [
    pytest.mark.parametrize("backend", ["reference", "triton"]),
    # NumPy in the interpreter, about logits that are not numbers
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]
RUNS = pytest.mark.parametrize("run", [one_pass, two_pass])


def extreme(logits: list[list[float]], target: list[int]) -> Problem:
    """A float32 head whose logits are exactly these."""
    weight = torch.tensor(logits, device=DEVICE).T.contiguous()
    return Problem(
        torch.eye(len(logits), device=DEVICE).requires_grad_(),
        weight.requires_grad_(),
        torch.tensor(target, device=DEVICE),
    )


def small_entropy(*logits: float) -> float:
    """Of a softmax, from its definition."""
    total = sum(math.exp(z) for z in logits)
    return -sum(math.exp(z) / total * math.log(math.exp(z) / total) for z in logits)


@RUNS
def test_extreme_logits_lose_nothing(run, backend: str) -> None:
    big = 1e4
    p = extreme(
        [
            [big, -big, 0.0, 1.0, 2.0],
            [big, -big, 0.0, 1.0, 2.0],
            [big, big, big - 1.0, -big, big - 2.0],
            [-big, -big, -big, -big, -big],
            [-big, 1 - big, 2 - big, 3 - big, -big],
        ],
        [0, 1, 2, 3, 1],
    )
    loss, logp, entropy, _, weight = run(p, both_terms(5), backend)
    exact = oracle.loss_and_gradients(p, both_terms(5))
    by_hand = [0.0, 0.0, small_entropy(0, 0, -1, -2), math.log(5), small_entropy(0, 1, 2, 3, 0)]
    torch.testing.assert_close(entropy.cpu(), torch.tensor(by_hand), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logp.double(), exact[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        weight, exact[4], rtol=1e-5, atol=1e-6, msg=lambda text: f"dL/dz (hidden is the identity): {text}"
    )


@RUNS
def test_masked_rows_have_no_gradient_at_all(run, backend: str) -> None:
    p = problem(3, 4, 20, torch.float32)
    loss, logp, _, hidden, weight = run(p, lambda logp, entropy, rows: 0.0 * (logp + entropy), backend)
    assert loss == 0 and not hidden.any() and not weight.any()
    assert logp.isfinite().all()
    mask = torch.tensor([0.0, 1.0, 0.0], device=DEVICE)
    _, _, _, hidden, _ = run(p, lambda logp, entropy, rows: mask[rows] * (logp + entropy), backend)
    assert not hidden[0].any() and hidden[1].any() and not hidden[2].any()


def test_a_loss_without_gradient(backend: str) -> None:
    _, _, _, hidden, weight = one_pass(
        problem(3, 4, 20, torch.float32), lambda logp, entropy, rows: torch.ones_like(logp), backend
    )
    assert not hidden.any() and not weight.any()


@RUNS
def test_one_row_and_one_column(run, backend: str) -> None:
    p = problem(1, 4, 20, torch.float32)
    assert_equal_to_oracle(run(p, both_terms(1), backend), p, both_terms(1), rtol=1e-5, atol=1e-5)
    p = problem(2, 4, 1, torch.float32)
    _, logp, entropy, hidden, weight = run(p, both_terms(2), backend)
    assert not logp.any() and not entropy.any() and not hidden.any() and not weight.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_are_reported_by_row(backend: str, poison: float) -> None:
    p = problem(4, 3, 20, torch.float32)
    clean = linear_logprob_entropy(p.hidden, p.weight, p.target)
    with torch.no_grad():
        p.hidden[2, 1] = poison
    result = linear_row_loss(
        p.hidden, p.weight, p.target, lambda logp, entropy, rows: clipped_mae(logp, 0.0), backend=backend
    )
    assert result.nonfinite_rows().tolist() == [2]
    assert result.loss.isnan(), "a row that the loss masks out must not hide it"
    keep = [0, 1, 3]
    torch.testing.assert_close(result.logp[keep], clean[0][keep].detach())
    torch.testing.assert_close(result.entropy[keep], clean[1][keep].detach())


def test_logits_of_minus_infinity_are_tokens_of_probability_zero(backend: str) -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[1, 5:] = -math.inf
    logits[2, 3] = -math.inf
    logits[3] = -math.inf
    target = torch.tensor([0, 2, 3, 0], device=DEVICE)
    logits.requires_grad_()
    logp, entropy = logits_logprob_entropy(logits, target, backend=backend)
    exact = oracle.of_logits(logits[:3], target[:3])
    torch.testing.assert_close(logp[:3].double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy[:3].double(), exact[1], rtol=1e-6, atol=1e-6)
    assert logp[2] == -math.inf and logp[3].isnan() and entropy[3].isnan()
    (gradient,) = torch.autograd.grad((logp + entropy)[:2].sum(), logits)
    allowed = logits.detach()[1:2, :5].requires_grad_()
    alone, h = oracle.of_logits(allowed, target[1:2])
    torch.testing.assert_close(
        gradient[1:2, :5], torch.autograd.grad((alone + h).sum(), allowed)[0], rtol=1e-5, atol=1e-6
    )
    assert not gradient[1, 5:].any() and gradient[:2].isfinite().all()
