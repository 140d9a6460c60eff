"""The Triton path against the float64 oracle and the reference path: on the GPU if there is one, else in
Triton's interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paw_hpc.kernels import linear_logprob_entropy, logits_logprob_entropy, triton_rows
from paw_hpc.kernels.parallel import Shard, row_scores
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

# NumPy, about the padding that is read and dropped
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
RUNS = pytest.mark.parametrize("run", [one_pass, two_pass])
WIDTHS = pytest.mark.parametrize("vocabulary", [200, 256, 384, 513])
"""Smaller than a block of 256, one block, 128 more than a block, and one column more than two blocks."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "BLOCK", 256)


@WIDTHS
@RUNS
def test_equal_to_materialised_logits(run, vocabulary: int) -> None:
    p = problem(5, 8, vocabulary, torch.float32, temperature=0.7)
    assert_equal_to_oracle(
        run(p, both_terms(5), "triton", chunk_rows=3), p, both_terms(5), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", oracle.row_losses(problem(9, 3, 11)))
def test_every_row_loss(name: str) -> None:
    p = problem(4, 3, 11, torch.float32)
    row_loss = oracle.row_losses(p)[name]
    assert_equal_to_oracle(one_pass(p, row_loss, "triton"), p, row_loss, rtol=1e-5, atol=1e-5)


def test_action_and_observation_rows_of_a_planned_batch() -> None:
    p, row_loss = oracle.planned(ARMS[0], vocabulary=300, dtype=torch.float32)
    p = Problem(p.hidden.detach()[:12].requires_grad_(), p.weight, p.target[:12])
    assert_equal_to_oracle(one_pass(p, row_loss, "triton", chunk_rows=7), p, row_loss, rtol=1e-5, atol=1e-5)


@RUNS
def test_blocks_of_the_default_size(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "BLOCK", 4096)
    p = problem(2, 8, 4225, torch.float32)
    assert_equal_to_oracle(run(p, both_terms(2), "triton"), p, both_terms(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@RUNS
def test_16_bit_weights_have_exact_scores_and_rounded_gradients(run, dtype: torch.dtype, rtol: float) -> None:
    # Several blocks: the 16-bit gradient of a row is written over the float32 logits that it comes from.
    p = problem(5, 8, 513, dtype)
    exact = oracle.loss_and_gradients(p, both_terms(5))
    found = run(p, both_terms(5), "triton", chunk_rows=3)
    for ours, oracles in zip(found[:3], exact[:3], strict=True):
        torch.testing.assert_close(ours.double(), oracles, rtol=1e-5, atol=1e-5)
    for ours, oracles in zip(found[3:], exact[3:], strict=True):
        torch.testing.assert_close(
            ours.double(), oracles.double(), rtol=rtol, atol=rtol * float(oracles.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@WIDTHS
def test_logits_that_exist_already(vocabulary: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    wide = (3 * torch.randn(4, vocabulary + 9, generator=rng)).to(DEVICE, dtype)
    logits, target = (
        wide[:, 3 : vocabulary + 3].requires_grad_(),
        torch.randint(vocabulary, (4,), generator=rng).to(DEVICE),
    )
    assert not logits.is_contiguous()
    loss, rows = both_terms(4), torch.arange(4, device=DEVICE)
    found, exact = (
        (*scores, *torch.autograd.grad(loss(*scores, rows).sum(), logits))
        for scores in (
            logits_logprob_entropy(logits, target, temperature=1.4, backend="triton"),
            oracle.of_logits(logits, target, 1.4),
        )
    )
    for ours, oracles, precision in zip(
        found, exact, [1e-5, 1e-5, 1e-5 if dtype == torch.float32 else 2**-7], strict=True
    ):
        torch.testing.assert_close(ours.double(), oracles.double(), rtol=precision, atol=1e-5)
    assert found[2].dtype == dtype


@pytest.mark.parametrize("vocabulary", [11, 200, 513])
def test_what_lies_in_the_padding_of_the_workspace_does_not_matter(vocabulary: int) -> None:
    p = problem(3, 5, vocabulary, torch.float32)
    head, reference = (
        triton_rows.TritonHead(p.weight.detach(), 3, 1.0),
        ReferenceHead(p.weight.detach(), 3, 1.0),
    )
    head._buffer.fill_(torch.nan)
    c, e = torch.randn(2, 3, device=DEVICE)
    found = []
    for each in (head, reference):
        z = each.logits(p.hidden.detach())
        scores = row_scores(each.statistics(z, p.target), p.target, Shard(None, 0, vocabulary, vocabulary))
        found.append((*scores, each.dlogits(z, p.target, scores, c, e)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_padding_behind_the_vocabulary_has_no_probability() -> None:
    p = problem(3, 5, 200, torch.float32)
    padded = torch.cat([p.weight.detach(), torch.zeros(56, 5, device=DEVICE)]).requires_grad_()
    found = one_pass(Problem(p.hidden, padded, p.target), both_terms(3), "triton", vocab_size=200)
    assert_equal_to_oracle([*found[:4], found[4][:200]], p, both_terms(3), rtol=1e-5, atol=1e-5)
    found = one_pass(Problem(p.hidden, padded, p.target), both_terms(3), "triton")
    with pytest.raises(AssertionError):  # reading 256 columns of 200, as peers have shipped it
        assert_equal_to_oracle([*found[:4], found[4][:200]], p, both_terms(3), rtol=1e-5, atol=1e-5)


@RUNS
def test_a_target_shifted_by_one_is_caught(run) -> None:
    p = problem(5, 8, 384, torch.float32)
    with pytest.raises(AssertionError, match="loss"):
        assert_equal_to_oracle(
            run(p.shifted(), both_terms(5), "triton"), p, both_terms(5), rtol=1e-5, atol=1e-5
        )


@RUNS
def test_a_missing_entropy_term_is_caught(run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = triton_rows.TritonHead.dlogits
    without = lambda self, u, target, scores, c, e, out=None: whole(self, u, target, scores, c, None, out)  # noqa: E731
    monkeypatch.setattr(triton_rows.TritonHead, "dlogits", without)
    p = problem(5, 8, 384, torch.float32)
    with pytest.raises(AssertionError, match="d hidden"):
        assert_equal_to_oracle(run(p, both_terms(5), "triton"), p, both_terms(5), rtol=1e-5, atol=1e-5)


def test_float64_is_not_quietly_rounded() -> None:
    p = problem(2, 3, 20)
    with pytest.raises(ValueError, match="float64"):
        linear_logprob_entropy(p.hidden, p.weight, p.target, backend="triton")


def test_the_compiler_makes_of_the_kernels_what_they_rely_on() -> None:
    """Code for sm_90, made without a GPU: wide loads for any vocabulary, nothing spilt, and a barrier between
    the reads and the writes of a block."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.hopper"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, kernel in json.loads(run.stdout).items():
        assert re.search(r"STACK:0 .*LOCAL:0 ", kernel["resources"]), f"{name} spills registers"
        accesses = kernel["accesses"]
        wide = [i for i, access in enumerate(accesses) if access == "ld.global.v4.b32"]
        assert len(wide) == 4096 // (8 * 32 * 4), f"{name} does not load by 16 bytes"
        if name != "statistics":
            stores = [i for i, access in enumerate(accesses) if access.startswith("st.global.v4")]
            assert stores and wide[-1] < accesses.index("bar.sync") < stores[0], name
