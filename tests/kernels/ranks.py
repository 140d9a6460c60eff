"""What each of two gloo ranks does in `test_tensor_parallel`: all cases in one spawn, because starting the
processes is what costs."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss, logits_logprob_entropy, reference
from tests.kernels import oracle
from tests.kernels.oracle import Problem, assert_equal_to_oracle, both_terms, problem

BACKENDS = ("reference", "triton")


def main(rank: int, world: int, folder: Path) -> None:
    """Writes `folder/rank` once every case has passed. A rank left waiting in a collective fails after 30
    s."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timeout
    )
    for case in CASES:
        try:
            case(rank)
        except Exception as error:
            raise AssertionError(f"{case.__name__} on rank {rank}") from error
        dist.barrier()
    (folder / str(rank)).write_text(" ".join(case.__name__ for case in CASES))
    dist.destroy_process_group()


def sharded(p: Problem, rank: int, cut: int) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Leaves of a rank: all of hidden, and the columns before or after `cut`."""
    mine = slice(0, cut) if rank == 0 else slice(cut, None)
    return p.hidden.detach().clone().requires_grad_(), p.weight.detach()[mine].clone().requires_grad_(), mine


def compare(p: Problem, mine: slice, found: list[torch.Tensor], row_loss, **tolerance: float) -> None:
    """As `assert_equal_to_oracle`, for this rank's rows of the weight gradient."""
    whole = oracle.loss_and_gradients(p, row_loss)[4].clone()
    whole[mine] = found[4]
    assert_equal_to_oracle([*found[:4], whole], p, row_loss, **tolerance)


def one_pass(p: Problem, rank: int, cut: int, **options) -> tuple[slice, list[torch.Tensor]]:
    hidden, weight, mine = sharded(p, rank, cut)
    loss = both_terms(len(p.hidden))
    result = linear_row_loss(
        hidden, weight, p.target, loss, temperature=p.temperature, tp_group=dist.group.WORLD, **options
    )
    return mine, [
        result.loss.detach(),
        result.logp,
        result.entropy,
        *torch.autograd.grad(result.loss, (hidden, weight)),
    ]


def equal_and_unequal_shards(rank: int) -> None:
    for cut in (20, 13):  # 13 columns on rank 0, 27 on rank 1
        p = problem(9, 5, 40, temperature=0.7)
        for chunk_rows in (None, 4):
            mine, found = one_pass(p, rank, cut, chunk_rows=chunk_rows)
            compare(p, mine, found, both_terms(9))


def rows_without_a_gradient(rank: int) -> None:
    """Every rank leaves out the same rows, those of a chunk without any among them."""
    p = problem(12, 5, 40)

    def one_in_four(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.where((rows % 4 == 0) & (rows < 8), entropy - logp, 0.0)

    reference.LARGE = 0
    for chunk_rows in (3, None):
        hidden, weight, mine = sharded(p, rank, 13)
        result = linear_row_loss(
            hidden, weight, p.target, one_in_four, tp_group=dist.group.WORLD, chunk_rows=chunk_rows
        )
        found = [
            result.loss.detach(),
            result.logp,
            result.entropy,
            *torch.autograd.grad(result.loss, (hidden, weight)),
        ]
        compare(p, mine, found, one_in_four)


def recomputing_backward(rank: int) -> None:
    p = problem(9, 5, 40)
    hidden, weight, mine = sharded(p, rank, 13)
    hidden = hidden.detach().T.contiguous().T.requires_grad_()
    logp, entropy = linear_logprob_entropy(hidden, weight, p.target, tp_group=dist.group.WORLD, chunk_rows=4)
    loss = both_terms(9)(logp, entropy, torch.arange(9)).sum()
    found = [loss.detach(), logp.detach(), entropy.detach(), *torch.autograd.grad(loss, (hidden, weight))]
    compare(p, mine, found, both_terms(9))


def default_chunks_of_unequal_shards(rank: int) -> None:
    # The narrow shard alone would take chunks of other sizes than the wide one; the reductions must still
    # pair up.
    p = problem(300, 2, 20_000, torch.float32)
    _, found = one_pass(p, rank, 50)
    for ours, exact in zip(found[1:3], oracle.logprob_entropy(p.hidden, p.weight, p.target), strict=True):
        torch.testing.assert_close(ours.double(), exact.detach(), rtol=1e-5, atol=1e-5)


def both_backends_in_float32(rank: int) -> None:
    p = problem(4, 6, 41, torch.float32)
    for backend in BACKENDS:
        mine, found = one_pass(p, rank, 20, backend=backend, chunk_rows=3)
        compare(p, mine, found, both_terms(4), rtol=1e-5, atol=1e-5)


def existing_logits(rank: int) -> None:
    p = problem(5, 4, 40, torch.float32)
    logits = (p.hidden @ p.weight.T).detach()
    whole = logits.clone().requires_grad_()
    rows, loss = torch.arange(5), both_terms(5)
    exact = torch.autograd.grad(loss(*oracle.of_logits(whole, p.target), rows).sum(), whole)[0]
    mine = slice(0, 13) if rank == 0 else slice(13, None)
    for backend in BACKENDS:
        part = logits[:, mine].clone().requires_grad_()
        logp, entropy = logits_logprob_entropy(part, p.target, tp_group=dist.group.WORLD, backend=backend)
        torch.testing.assert_close(
            logp.detach().double(), oracle.of_logits(whole, p.target)[0].detach(), rtol=1e-5, atol=1e-5
        )
        (gradient,) = torch.autograd.grad(loss(logp, entropy, rows).sum(), part)
        torch.testing.assert_close(gradient, exact[:, mine], rtol=1e-5, atol=1e-5)


def a_shard_of_padding_only(rank: int) -> None:
    p = problem(4, 5, 40, torch.float32)
    real = Problem(p.hidden, p.weight.detach()[:20].requires_grad_(), p.target % 20)
    for backend in BACKENDS:
        mine, found = one_pass(
            Problem(p.hidden, p.weight, p.target % 20), rank, 20, vocab_size=20, backend=backend
        )
        if rank == 0:
            compare(real, mine, found, both_terms(4), rtol=1e-5, atol=1e-5)
        else:
            assert not found[4].any()


def one_shard_far_below_the_other(rank: int) -> None:
    # All of rank 1's logits are 2e4 below rank 0's, and one row has its target there.
    hidden = torch.ones(3, 1)
    weight = torch.cat([torch.tensor([1e4, 1e4 - 1, 1e4 - 2]), torch.full((3,), -1e4)])[:, None]
    p = Problem(hidden.requires_grad_(), weight.requires_grad_(), torch.tensor([0, 2, 4]))
    for backend in BACKENDS:
        _, found = one_pass(p, rank, 3, backend=backend)
        exact = oracle.logprob_entropy(p.hidden, p.weight, p.target)
        torch.testing.assert_close(found[1].double(), exact[0].detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[2].double(), exact[1].detach(), rtol=1e-6, atol=1e-6)


def numbers_that_are_none_on_one_rank(rank: int) -> None:
    for poison in (math.nan, math.inf):
        for backend in BACKENDS:
            logits = torch.zeros(4, 20)
            if rank == 1:
                logits[2, 3] = poison
            logp, entropy = logits_logprob_entropy(
                logits, torch.tensor([0, 39, 0, 39]), tp_group=dist.group.WORLD, backend=backend
            )
            for score in (logp, entropy):
                assert score.isfinite().tolist() == [True, True, False, True], (
                    "both ranks know which row it is"
                )


def no_rows(rank: int) -> None:
    p = problem(0, 5, 40, torch.float32)
    hidden, weight, _ = sharded(p, rank, 20)
    linear_row_loss(hidden, weight, p.target, both_terms(1), tp_group=dist.group.WORLD).loss.backward()
    assert torch.equal(weight.grad, torch.zeros(20, 5)) and hidden.grad.shape == (0, 5)


def hidden_gradient_left_to_the_caller(rank: int) -> None:
    p = problem(6, 5, 40)
    _, found = one_pass(p, rank, 20, reduce_hidden_grad=False)
    exact = oracle.loss_and_gradients(p, both_terms(6))[3]
    assert not torch.allclose(found[3], exact), "it is this rank's part only"
    dist.all_reduce(found[3])
    torch.testing.assert_close(found[3], exact)


def a_target_shifted_by_one_is_caught(rank: int) -> None:
    p = problem(9, 5, 40)
    mine, found = one_pass(p.shifted(), rank, 20)
    with pytest.raises(AssertionError, match="loss"):
        compare(p, mine, found, both_terms(9))


def bad_input_of_one_rank_is_an_error_on_both(rank: int) -> None:
    p = problem(4, 5, 40, torch.float32)
    hidden, weight, _ = sharded(p, rank, 20)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("outside the vocabulary", lambda: score(hidden, weight, torch.full_like(p.target, 40))),
        ("target differ", lambda: score(hidden, weight, p.target if rank else p.target.clamp(max=0) - 100)),
        ("rows differ", lambda: score(hidden[: 4 - rank], weight, p.target[: 4 - rank])),
        ("rows differ", lambda: score(hidden[: 4 * rank], weight, p.target[: 4 * rank])),
        ("target.* differ", lambda: score(hidden, weight, (p.target + rank) % 40)),
        ("float32|bad input", lambda: score(hidden, weight.double() if rank else weight, p.target)),
        ("positive finite|bad input", lambda: score(hidden, weight, p.target, temperature=float(rank))),
        ("chunk_rows differ", lambda: score(hidden, weight, p.target, chunk_rows=1 + rank)),
    ]
    for message, call in calls:
        with pytest.raises(ValueError, match=message):
            call()
        dist.barrier()  # and neither waits in a collective that the other never joins


def score(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, **options) -> object:
    return linear_logprob_entropy(hidden, weight, target, tp_group=dist.group.WORLD, **options)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(40, 5)

    def forward(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids).tanh()
        return linear_row_loss(
            hidden, self.embedding.weight, target, lambda logp, entropy, rows: -logp - 0.1 * entropy
        ).loss


def a_data_parallel_rank_without_rows(rank: int) -> None:
    # Data parallel, not tensor parallel: the rank without rows must still take part in the all-reduce of
    # gradients.
    ids = torch.arange(0 if rank else 7)
    model = _Model()
    parallel = DistributedDataParallel(model)
    parallel(ids, ids).backward()
    alone = _Model()
    alone(torch.arange(7), torch.arange(7)).backward()
    torch.testing.assert_close(model.embedding.weight.grad, alone.embedding.weight.grad / 2)


CASES = [
    equal_and_unequal_shards,
    rows_without_a_gradient,
    recomputing_backward,
    default_chunks_of_unequal_shards,
    both_backends_in_float32,
    existing_logits,
    a_shard_of_padding_only,
    one_shard_far_below_the_other,
    numbers_that_are_none_on_one_rank,
    no_rows,
    hidden_gradient_left_to_the_caller,
    a_target_shifted_by_one_is_caught,
    bad_input_of_one_rank_is_an_error_on_both,
    a_data_parallel_rank_without_rows,
]
