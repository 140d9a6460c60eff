"""Who is compared in `head.py`: our head in its forms, plain PyTorch, and peers where they can be installed.

Each contender takes a `Case`, runs forward and backward of one loss, and says what it computed. None is
installed by this project: a peer that is not there, or cannot run on this machine, is listed with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss

Outcome = dict[str, torch.Tensor]
"""What came out, for the comparison with float64: logp[R], entropy[R], hidden (gradient, [R, H]); what a
contender does not give is left out."""


@dataclass(frozen=True)
class Case:
    """One size. The loss is sum(a * logp + b * entropy); contenders without entropy leave out the second
    term."""

    hidden: torch.Tensor  # [R, H], requires grad
    weight: torch.Tensor  # [V, H], requires grad
    target: torch.Tensor  # int64[R]
    a: torch.Tensor  # float32[R]
    b: torch.Tensor  # float32[R]
    selected: torch.Tensor  # int64[R / 4], the rows that are scored when 25 % are
    main_grad: torch.Tensor  # float32[V, H], what Megatron provides

    @property
    def leaves(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.hidden, self.weight


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[Case], Outcome]
    computes: str = "logp, entropy"
    products: int = 3
    """Matrix products that the result needs: 3 with gradients, 1 without."""
    returns: int = 2
    """Gradients in new memory: hidden's, and the weight's where that is not added to a buffer that is
    there."""
    share: float = 1.0
    """Of the rows that are scored."""
    needs: str | Callable[[], object] | None = None
    """Module that must be importable, or what must be possible."""
    cuda_only: str | None = None
    """Why it needs a GPU, if it does."""

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run here, if it cannot."""
        if self.cuda_only and device.type != "cuda":
            return self.cuda_only
        try:
            if callable(self.needs):
                self.needs()
            elif self.needs:
                importlib.import_module(self.needs)
        except Exception as error:  # what a peer's import raises is its own affair: it is reported
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else self.name}"
        return None


def _backward(case: Case, logp: torch.Tensor, entropy: torch.Tensor | None) -> Outcome:
    loss = (case.a * logp).sum() if entropy is None else (case.a * logp + case.b * entropy).sum()
    hidden, _ = torch.autograd.grad(loss, case.leaves)
    found = {"logp": logp.detach(), "hidden": hidden}
    return found if entropy is None else found | {"entropy": entropy.detach()}


# ------------------------------------------------------------------------------------------------------- ours


def _row_loss(case: Case, rows_of: torch.Tensor | None = None) -> Callable[..., torch.Tensor]:
    a, b = (case.a, case.b) if rows_of is None else (case.a[rows_of], case.b[rows_of])
    return lambda logp, entropy, rows: a[rows] * logp + b[rows] * entropy


def one_pass(case: Case) -> Outcome:
    result = linear_row_loss(*case.leaves, case.target, _row_loss(case))
    hidden, _ = torch.autograd.grad(result.loss, case.leaves, allow_unused=True)
    return {"logp": result.logp, "entropy": result.entropy, "hidden": hidden}


@contextmanager
def into_main_grad(case: Case) -> Iterator[None]:
    case.weight.main_grad = case.main_grad  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del case.weight.main_grad  # type: ignore[attr-defined]


def one_pass_main_grad(case: Case) -> Outcome:
    with into_main_grad(case):
        return one_pass(case)


def one_pass_selected(case: Case) -> Outcome:
    """25 % of the rows, into main_grad."""
    with into_main_grad(case):
        hidden = case.hidden.index_select(0, case.selected)
        result = linear_row_loss(
            hidden, case.weight, case.target[case.selected], _row_loss(case, case.selected)
        )
        torch.autograd.grad(result.loss, case.leaves, allow_unused=True)
    return {}


def one_pass_with_few_gradients(case: Case) -> Outcome:
    """15 % of the rows have a gradient, as late in a run whose observations are mostly clipped: on a CPU the
    others take no part in two products."""
    live = torch.arange(len(case.target), device=case.target.device) % 20 < 3

    def row_loss(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.where(live[rows], case.a[rows] * logp + case.b[rows] * entropy, 0.0)

    result = linear_row_loss(*case.leaves, case.target, row_loss)
    torch.autograd.grad(result.loss, case.leaves, allow_unused=True)
    return {"logp": result.logp, "entropy": result.entropy}


def two_pass(case: Case) -> Outcome:
    return _backward(case, *linear_logprob_entropy(*case.leaves, case.target))


def scores(case: Case) -> Outcome:
    with torch.no_grad():
        logp, entropy = linear_logprob_entropy(*case.leaves, case.target)
    return {"logp": logp, "entropy": entropy}


# ---------------------------------------------------------------------------------------------------- PyTorch


def _materialised(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logp = (hidden @ weight.T).float().log_softmax(1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def materialised(case: Case) -> Outcome:
    return _backward(case, *_materialised(*case.leaves, case.target))


def materialised_scores(case: Case) -> Outcome:
    with torch.no_grad():
        logp, entropy = _materialised(*case.leaves, case.target)
    return {"logp": logp, "entropy": entropy}


_compiled = torch.compile(_materialised)


def compiled(case: Case) -> Outcome:
    return _backward(case, *_compiled(*case.leaves, case.target))


# ------------------------------------------------------------------------------------------------------ peers


def liger(case: Case) -> Outcome:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
        *case.leaves, case.target, 1.0, -100, 1, True
    )
    return _backward(case, -nll, entropy)


def liger_scalar(case: Case) -> Outcome:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    result = LigerFusedLinearCrossEntropyFunction.apply(
        *case.leaves, case.target, None, None, -100, 0.0, 0.0, "sum"
    )
    torch.autograd.grad(result[0] if isinstance(result, tuple) else result, case.leaves)
    return {}


def cut_cross_entropy(case: Case) -> Outcome:
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if case.hidden.is_cuda else "torch_compile"
    return _backward(
        case,
        -linear_cross_entropy(*case.leaves, case.target, reduction="none", filter_eps=None, impl=impl),
        None,
    )


def verl(case: Case) -> Outcome:
    linear_cross_entropy = verl_kernel().linear_cross_entropy
    return _backward(case, *linear_cross_entropy(*case.leaves, case.target, 1.0, "none", None))


def verl_kernel() -> ModuleType:
    """The module of verl's head by itself: it needs torch and Triton only, its package also Ray."""
    name = "verl.utils.kernel.linear_cross_entropy"
    if name not in sys.modules:
        found = importlib.util.find_spec("verl")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("No module named 'verl'")
        for package in ("verl", "verl.utils", "verl.utils.kernel"):
            bare = ModuleType(package)
            bare.__path__ = [str(Path(found.origin).parents[1].joinpath(*package.split(".")))]
            sys.modules[package] = bare
    return importlib.import_module(name)


def torch_scalar(case: Case) -> Outcome:
    total = torch.nn.functional.linear_cross_entropy(
        *case.leaves, case.target, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()
    )
    torch.autograd.grad(total, case.leaves)
    return {}


def quack_scalar(case: Case) -> Outcome:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    torch.autograd.grad(chunked_linear_cross_entropy(*case.leaves, case.target, reduction="sum"), case.leaves)
    return {}


CONTENDERS = [
    Contender("ours, one pass", one_pass),
    Contender("ours, one pass, into main_grad", one_pass_main_grad, returns=1),
    Contender("ours, 25 % of the rows, into main_grad", one_pass_selected, returns=1, share=0.25),
    Contender("ours, 15 % of the rows with a gradient", one_pass_with_few_gradients),
    Contender("ours, two passes", two_pass),
    Contender("PyTorch, logits materialised", materialised),
    Contender("torch.compile, logits materialised", compiled),
    Contender(
        "liger-kernel, scaled cross-entropy",
        liger,
        needs="liger_kernel.ops.fused_linear_scaled_cross_entropy",
    ),
    Contender("verl, Triton head", verl, needs=verl_kernel, cuda_only="its Triton kernels need a GPU"),
    Contender(
        "PyTorch, linear_cross_entropy",
        torch_scalar,
        "sum of logp",
        needs=lambda: torch.nn.functional.linear_cross_entropy,
    ),
    Contender("cut-cross-entropy", cut_cross_entropy, "logp", needs="cut_cross_entropy"),
    Contender(
        "liger-kernel, cross-entropy",
        liger_scalar,
        "sum of logp",
        needs="liger_kernel.ops",
        cuda_only="its Triton kernels need a GPU",
    ),
    Contender(
        "quack-kernels",
        quack_scalar,
        "sum of logp",
        needs="quack.linear_cross_entropy",
        cuda_only="its kernels need a Hopper or newer GPU",
    ),
    Contender("ours, scores without gradient", scores, products=1),
    Contender("PyTorch, scores without gradient", materialised_scores, products=1),
]
