"""The head on a CPU, in float64 against the oracle and numerical differentiation, in lower precision within
its promise."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss, logits_logprob_entropy
from paw_hpc.kernels.reference import ReferenceHead
from tests.kernels import oracle
from tests.kernels.oracle import (
    ARMS,
    DEVICE,
    Problem,
    assert_equal_to_oracle,
    both_terms,
    one_pass,
    problem,
    two_pass,
)

CHUNKS = pytest.mark.parametrize("chunk_rows", [None, 1, 4])


@CHUNKS
@pytest.mark.parametrize("run", [one_pass, two_pass])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_materialised_logits(run, temperature: float, chunk_rows: int | None) -> None:
    p = problem(11, 5, 37, temperature=temperature)
    assert_equal_to_oracle(run(p, both_terms(11), chunk_rows=chunk_rows), p, both_terms(11))


@pytest.mark.parametrize("name", oracle.row_losses(problem(9, 3, 11)))
def test_every_row_loss(name: str) -> None:
    p = problem(9, 3, 11)
    row_loss = oracle.row_losses(p)[name]
    assert_equal_to_oracle(one_pass(p, row_loss, chunk_rows=4), p, row_loss)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_row_loss(hidden, weight, p.target, row_loss, backend="reference").loss

    assert torch.autograd.gradcheck(loss, p.leaves)


@pytest.mark.parametrize("arm", ARMS)
def test_action_and_observation_rows_of_a_planned_batch(arm: dict) -> None:
    p, row_loss = oracle.planned(arm)
    assert_equal_to_oracle(one_pass(p, row_loss, chunk_rows=7), p, row_loss)


def test_gradcheck_of_both_outputs() -> None:
    p = problem(5, 3, 7, temperature=1.3)

    def scores(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_logprob_entropy(hidden, weight, p.target, temperature=1.3, chunk_rows=2)

    assert torch.autograd.gradcheck(scores, p.leaves)
    logits = (p.hidden @ p.weight.T).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: logits_logprob_entropy(z, p.target, temperature=1.3), (logits,))


@pytest.mark.parametrize("run", [one_pass, two_pass])
def test_a_target_shifted_by_one_is_caught(run) -> None:
    p = problem(11, 5, 37)
    with pytest.raises(AssertionError, match="loss"):
        assert_equal_to_oracle(run(p.shifted(), both_terms(11)), p, both_terms(11))


@pytest.mark.parametrize("run", [one_pass, two_pass])
def test_a_missing_entropy_term_is_caught(run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ReferenceHead.dlogits
    monkeypatch.setattr(
        ReferenceHead,
        "dlogits",
        lambda self, u, target, scores, c, e, out=None: whole(self, u, target, scores, c, None, out),
    )
    p = problem(11, 5, 37)
    with pytest.raises(AssertionError, match="d hidden"):
        assert_equal_to_oracle(run(p, both_terms(11)), p, both_terms(11))


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 8e-3, 1e-3), (torch.float16, 1e-3, 1e-4)],
)
@pytest.mark.parametrize("run", [one_pass, two_pass])
def test_lower_precision_rounds_only_inputs_and_gradients(
    run, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    p = problem(40, 16, 200, dtype)
    found = run(p, both_terms(40), chunk_rows=8)
    assert [x.dtype for x in found[1:]] == [torch.float32, torch.float32, dtype, dtype]
    for ours, exact in zip(found[1:3], oracle.loss_and_gradients(p, both_terms(40))[1:3], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    assert_equal_to_oracle(found, p, both_terms(40), rtol=rtol, atol=atol)


def test_weight_gradient_does_not_lose_small_chunks() -> None:
    # 512 equal contributions, one per chunk: a bf16 accumulator stops growing at 256 of them.
    p = problem(1, 8, 20, torch.bfloat16)
    rows = 512
    many = Problem(p.hidden.detach().repeat(rows, 1).requires_grad_(), p.weight, p.target.repeat(rows))
    exact = oracle.loss_and_gradients(many, lambda logp, entropy, rows: -logp)[4]
    gradient = one_pass(many, lambda logp, entropy, rows: -logp, chunk_rows=1)[4]
    torch.testing.assert_close(gradient.double(), exact.double(), rtol=2**-8, atol=1e-6)


def test_no_rows_still_reach_both_gradients() -> None:
    p = problem(0, 5, 37, torch.float32)
    result = linear_row_loss(p.hidden, p.weight, p.target, lambda logp, entropy, rows: -logp)
    result.loss.backward()
    assert result.loss.item() == 0 and result.logp.shape == result.entropy.shape == (0,)
    assert p.hidden.grad.shape == (0, 5) and torch.equal(p.weight.grad, torch.zeros_like(p.weight))
    logp, entropy = linear_logprob_entropy(p.hidden, p.weight, p.target)
    (logp.sum() + entropy.sum()).backward()
    assert torch.equal(p.weight.grad, torch.zeros_like(p.weight))
    assert logits_logprob_entropy(torch.zeros(0, 37, device=DEVICE), p.target)[0].shape == (0,)


def test_only_what_is_asked_for() -> None:
    p = problem(6, 5, 37)
    for wanted in (0, 1):
        leaves = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(p.leaves)]
        linear_row_loss(*leaves, p.target, both_terms(6)).loss.backward()
        assert leaves[1 - wanted].grad is None
        torch.testing.assert_close(
            leaves[wanted].grad, oracle.loss_and_gradients(p, both_terms(6))[3 + wanted]
        )
    with torch.no_grad():
        result = linear_row_loss(*p.leaves, p.target, both_terms(6))
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, oracle.loss_and_gradients(p, both_terms(6))[0])


def test_scales_multiply() -> None:
    p = problem(6, 5, 37)
    once = one_pass(p, both_terms(6))
    result = linear_row_loss(*p.leaves, p.target, both_terms(6), grad_scale=0.25)
    gradients = torch.autograd.grad(result.loss * 3.0, p.leaves)
    torch.testing.assert_close(result.loss.detach(), 0.25 * once[0])
    for ours, unscaled in zip(gradients, once[3:], strict=True):
        torch.testing.assert_close(ours, 0.75 * unscaled)


def test_tied_embeddings_sum_both_gradients() -> None:
    p, ids = problem(12, 6, 30), torch.arange(12)

    def run(score) -> torch.Tensor:
        return torch.autograd.grad(score(p.weight[ids].tanh(), p.weight), p.weight)[0]

    ours = run(lambda hidden, weight: linear_row_loss(hidden, weight, p.target, both_terms(12)).loss)
    exact = run(
        lambda hidden, weight: both_terms(12)(*oracle.logprob_entropy(hidden, weight, p.target), ids).sum()
    )
    torch.testing.assert_close(ours, exact)


def test_strided_hidden_states_and_autocast_change_nothing() -> None:
    p = problem(6, 5, 37, torch.float32)
    strided = p.hidden.detach().T.contiguous().T
    plain = linear_row_loss(p.hidden, p.weight, p.target, both_terms(6))
    with torch.autocast("cpu", torch.bfloat16):
        other = linear_row_loss(strided, p.weight, p.target, both_terms(6))
    torch.testing.assert_close(plain.loss.item(), other.loss.item(), rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(result.loss, p.weight)[0] for result in (plain, other)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("run", [one_pass, two_pass])
def test_nothing_of_rows_by_vocabulary_is_ever_there(run) -> None:
    p = problem(96, 4, 100)
    with LargestTensor() as watch:
        run(p, both_terms(96), chunk_rows=8)
    assert watch.numel == 8 * 100
    with LargestTensor() as watch:
        run(p, both_terms(96), chunk_rows=96)
    assert watch.numel == 96 * 100, "the measurement sees what it should"


def test_padding_behind_the_vocabulary_has_no_probability() -> None:
    p = problem(6, 5, 37)
    padded = torch.cat(
        [p.weight.detach(), torch.zeros(27, 5, dtype=torch.float64, device=DEVICE)]
    ).requires_grad_()
    with_padding = Problem(p.hidden, padded, p.target)
    found = one_pass(with_padding, both_terms(6), vocab_size=37)
    assert not found[4][37:].any()
    assert_equal_to_oracle([*found[:4], found[4][:37]], p, both_terms(6))
    with pytest.raises(AssertionError):  # phantom columns of logit 0: the bug that this is about
        found = one_pass(with_padding, both_terms(6))
        assert_equal_to_oracle([*found[:4], found[4][:37]], p, both_terms(6))


# -------------------------------------------------------------------------------------------------- main_grad


@pytest.mark.parametrize(
    ("buffer", "rtol", "atol"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 2e-2, 1e-2)]
)
def test_the_weight_gradient_is_added_to_main_grad(buffer: torch.dtype, rtol: float, atol: float) -> None:
    p = problem(10, 6, 30, torch.bfloat16)
    in_double = Problem(*(x.detach().double().requires_grad_() for x in p.leaves), p.target)
    exact = oracle.loss_and_gradients(in_double, both_terms(10))[4]
    p.weight.main_grad = torch.zeros(30, 6, dtype=buffer, device=DEVICE)
    p.weight.grad_added_to_main_grad = False
    for _ in range(2):
        linear_row_loss(*p.leaves, p.target, both_terms(10), chunk_rows=3).loss.backward()
    assert p.weight.grad_added_to_main_grad and not p.weight.grad.any(), (
        "hooks on the gradient run, and have nothing to add"
    )
    if DEVICE == "cuda":  # where the gradient of 16-bit logits is itself of 16 bits
        rtol, atol = max(rtol, 2**-7), max(atol, 2**-7 * float(exact.abs().max()))
    torch.testing.assert_close(p.weight.main_grad.double(), 2 * exact, rtol=rtol, atol=atol)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU stops by itself, and with it the process")
def test_main_grad_refuses_a_loss_that_is_scaled_afterwards() -> None:
    p = problem(10, 6, 30, torch.float32)
    p.weight.main_grad = torch.zeros(30, 6)
    with pytest.raises(ValueError, match="grad_scale"):
        (linear_row_loss(*p.leaves, p.target, both_terms(10)).loss * 2.0).backward()
