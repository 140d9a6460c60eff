"""Bad input is named before anything is computed."""

from __future__ import annotations

import math

import pytest
import torch

from paw_hpc.kernels import checks, linear_logprob_entropy, linear_row_loss, logits_logprob_entropy
from paw_hpc.kernels.dispatch import ReferenceHead, ReferenceRows

HIDDEN, WEIGHT, TARGET = torch.zeros(3, 4), torch.zeros(10, 4), torch.tensor([0, 9, 1])


def no_loss(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return logp


@pytest.fixture
def nothing_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("something was computed")

    for kind in (ReferenceHead, ReferenceRows):
        monkeypatch.setattr(kind, "__init__", run)


@pytest.mark.usefixtures("nothing_may_run")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 10, 1])}, r"10, outside the vocabulary \[0, 10\)"),
        ({"target": torch.tensor([0, -100, 1])}, "-100, outside the vocabulary"),
        ({"target": torch.tensor([0, 9, 1]), "vocab_size": 9}, r"9, outside the vocabulary \[0, 9\)"),
        ({"target": torch.tensor([0, 9])}, "3 rows and target 2"),
        ({"target": torch.tensor([0, 9, 1], dtype=torch.int32)}, "int64 is needed"),
        ({"target": torch.tensor([[0, 9, 1]])}, r"target\[R\] are needed"),
        ({"hidden": torch.zeros(3, 5)}, "5 features and weight 4"),
        ({"hidden": torch.zeros(1, 3, 4)}, r"hidden\[R, H\]"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.bfloat16)}, "torch.bfloat16 and weight torch.float32"),
        (
            {"hidden": torch.zeros(3, 4, dtype=torch.long), "weight": torch.zeros(10, 4, dtype=torch.long)},
            "hidden is torch.int64",
        ),
        ({"hidden": torch.zeros(3, 4, device="meta")}, "on meta and weight on cpu"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"grad_scale": math.inf}, "grad_scale is inf"),
        ({"chunk_rows": 0}, "chunk_rows is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_the_head_refuses(change: dict, message: str) -> None:
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "target": TARGET} | change
    with pytest.raises(ValueError, match=message):
        linear_row_loss(row_loss=no_loss, **arguments)
    if "grad_scale" not in change:
        with pytest.raises(ValueError, match=message):
            linear_logprob_entropy(**arguments)


@pytest.mark.usefixtures("nothing_may_run")
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(3, 10), torch.tensor([0, 10, 1]), "10, outside the vocabulary"),
        (torch.zeros(3, 10), torch.tensor([0, 1]), "3 rows and target 2"),
        (torch.zeros(10), torch.tensor([0]), r"logits\[R, V\]"),
    ],
)
def test_logits_are_refused(logits: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logits_logprob_entropy(logits, target)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logp, entropy, rows: logp.sum(), r"shape \[3\]; it returned \[\]"),
        (lambda logp, entropy, rows: logp[:, None], r"it returned \[3, 1\]"),
        (lambda logp, entropy, rows: None, "it returned NoneType"),
    ],
)
def test_a_row_loss_of_the_wrong_shape_is_refused(loss, message: str) -> None:
    for hidden in (HIDDEN, HIDDEN.clone().requires_grad_()):
        with pytest.raises(ValueError, match=message):
            linear_row_loss(hidden, WEIGHT, TARGET, loss)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton can run here")
def test_triton_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs a GPU"):
        linear_logprob_entropy(HIDDEN, WEIGHT, TARGET, backend="triton")


def test_what_ranks_ask_of_each_other_is_asked_on_the_device_too() -> None:
    def facts(**changed: tuple[int, int]) -> torch.Tensor:
        """Of two ranks: 5 rows of 8 features, bfloat16, 20 and 21 columns, targets from 3 to 40."""
        table = torch.tensor([[0, 5, 8, 2, 0, 20, 3, 40, 77], [0, 5, 8, 2, 0, 21, 3, 40, 77]])
        for column, values in changed.items():
            table[:, int(column.removeprefix("c"))] = torch.tensor(values)
        return table

    assert (
        checks.well(facts(), 41) and checks.well(facts(), None) and not checks.well(facts(c7=(41, 41)), None)
    )
    assert checks.well(facts(c1=(0, 0), c6=(0, 0), c7=(-1, -1)), 41), "no rows have no targets"
    for column, values in {
        "c0": (0, 1),
        "c1": (5, 6),
        "c2": (8, 9),
        "c3": (2, 1),
        "c4": (0, 4),
        "c6": (3, 2),
        "c7": (40, 39),
        "c8": (77, 78),
    }.items():
        assert not checks.well(facts(**{column: values}), 41), column
    assert not checks.well(facts(), 40) and not checks.well(facts(c6=(-1, -1)), 41)
