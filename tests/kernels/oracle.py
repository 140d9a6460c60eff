"""What the head must equal: all logits at once, in float64, by `log_softmax` and autograd. Problems to try it
on, every row loss of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from paw_hpc.experience import ACTION, OBSERVATION
from paw_hpc.kernels import RowLossFunction, linear_logprob_entropy, linear_row_loss
from paw_hpc.kernels.dispatch import BackendName
from paw_hpc.objective import policy_loss as pl
from paw_hpc.objective.plan import plan
from paw_hpc.objective.world_model import clipped_mae, cross_entropy, mae
from tests.factories import random_pool, random_scores, tiny_recipe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Problem:
    """Leaves that require gradients, and targets."""

    hidden: torch.Tensor
    weight: torch.Tensor
    target: torch.Tensor
    temperature: float = 1.0

    @property
    def leaves(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.hidden, self.weight

    def shifted(self) -> Problem:
        """The off-by-one error: each row is scored against the next id."""
        return replace(self, target=(self.target + 1) % len(self.weight))


def problem(
    rows: int,
    features: int,
    vocabulary: int,
    dtype: torch.dtype = torch.float64,
    temperature: float = 1.0,
    seed: int = 0,
) -> Problem:
    """Logits of standard deviation about 2."""
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, features, generator=rng, dtype=torch.float64)
    weight = torch.randn(vocabulary, features, generator=rng, dtype=torch.float64) * 2 / features**0.5
    target = torch.randint(vocabulary, (rows,), generator=rng)
    return Problem(
        *(x.to(DEVICE, dtype).requires_grad_() for x in (hidden, weight)), target.to(DEVICE), temperature
    )


def logprob_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64[R] each, differentiable."""
    return of_logits(hidden.double() @ weight.double().T, target, temperature)


def of_logits(
    logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    logp = (logits.double() / temperature).log_softmax(1)
    summands = torch.where(logp == -torch.inf, 0.0, logp.exp() * logp.clamp(min=-1e300))
    return logp.gather(1, target[:, None])[:, 0], -summands.sum(1)


def loss_and_gradients(p: Problem, row_loss: RowLossFunction) -> list[torch.Tensor]:
    """(loss, logp, entropy, gradient of hidden, of weight), float64."""
    logp, entropy = logprob_entropy(p.hidden, p.weight, p.target, p.temperature)
    loss = row_loss(logp, entropy, torch.arange(len(logp), device=logp.device)).sum()
    return [loss.detach(), logp.detach(), entropy.detach(), *torch.autograd.grad(loss, p.leaves)]


def one_pass(
    p: Problem, row_loss: RowLossFunction, backend: BackendName = "reference", **options
) -> list[torch.Tensor]:
    """As `loss_and_gradients`, by `linear_row_loss`."""
    result = linear_row_loss(
        p.hidden, p.weight, p.target, row_loss, temperature=p.temperature, backend=backend, **options
    )
    return [result.loss.detach(), result.logp, result.entropy, *torch.autograd.grad(result.loss, p.leaves)]


def two_pass(
    p: Problem, row_loss: RowLossFunction, backend: BackendName = "reference", **options
) -> list[torch.Tensor]:
    """As `loss_and_gradients`, by `linear_logprob_entropy`, whose backward recomputes."""
    logp, entropy = linear_logprob_entropy(
        p.hidden, p.weight, p.target, temperature=p.temperature, backend=backend, **options
    )
    loss = row_loss(logp, entropy, torch.arange(len(logp), device=logp.device)).sum()
    return [loss.detach(), logp.detach(), entropy.detach(), *torch.autograd.grad(loss, p.leaves)]


def assert_equal_to_oracle(
    found: list[torch.Tensor], p: Problem, row_loss: RowLossFunction, rtol: float = 1e-10, atol: float = 1e-12
) -> None:
    for name, ours, exact in zip(
        ("loss", "logp", "entropy", "d hidden", "d weight"),
        found,
        loss_and_gradients(p, row_loss),
        strict=True,
    ):
        torch.testing.assert_close(
            ours.double(), exact.double(), rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def both_terms(rows: int, seed: int = 0) -> RowLossFunction:
    """A smooth loss that depends on log-prob and entropy of every row."""
    a, b = torch.randn(2, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)
    return lambda logp, entropy, rows: a[rows] * logp + b[rows] * entropy + logp.exp()


def row_losses(p: Problem) -> dict[str, RowLossFunction]:
    """Every row loss of `objective`, on its own and combined, with streams near the problem's own log-probs
    so that every branch is taken."""
    with torch.no_grad():
        logp, _ = logprob_entropy(p.hidden, p.weight, p.target, p.temperature)
    rng = torch.Generator().manual_seed(1)
    old = logp - torch.empty(len(logp), dtype=torch.float64).uniform_(-0.5, 0.5, generator=rng).to(DEVICE)
    old[0] = logp[0] - 1.5  # beyond the dual clip
    ref, behaviour = (
        old + 0.2,
        old - 0.3 * torch.randn(len(logp), generator=rng, dtype=torch.float64).to(DEVICE),
    )
    advantage = torch.randn(len(logp), generator=rng, dtype=torch.float64).to(DEVICE)
    advantage[0] = -1.0
    rho = float(logp.exp().median()) * 1.01  # the median itself is below it, by a margin
    losses: dict[str, Callable[..., torch.Tensor]] = {
        "ppo_clip": lambda lp, h, r: pl.ppo_clip(lp, old[r], advantage[r], 0.2, 0.3),
        "dual_clip": lambda lp, h, r: pl.ppo_clip(lp, old[r], advantage[r], 0.2, 0.2, 3.0),
        "k1": lambda lp, h, r: pl.kl_k1(lp, ref[r]),
        "k2": lambda lp, h, r: pl.kl_k2(lp, ref[r]),
        "low_variance": lambda lp, h, r: pl.kl_low_variance(lp, ref[r]),
        "truncated_importance": lambda lp, h, r: (
            pl.truncated_importance_weight(old[r], behaviour[r], 1.2)
            * pl.ppo_clip(lp, old[r], advantage[r], 0.2, 0.2)
        ),
        "cross_entropy": lambda lp, h, r: cross_entropy(lp),
        "mae": lambda lp, h, r: mae(lp),
        "clipped_mae": lambda lp, h, r: clipped_mae(lp, rho),
        "entropy_bonus": lambda lp, h, r: -0.1 * h,
    }
    return losses


def planned(
    arm: dict, vocabulary: int = 23, features: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Problem, RowLossFunction]:
    """A planned batch of action and observation rows with its own row loss, and a head to score it with."""
    recipe, pool = tiny_recipe(**arm), random_pool(1, groups=2, members=2, vocabulary=vocabulary)
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    assert set(batch.row_kind.tolist()) == {ACTION, OBSERVATION}
    p = problem(batch.num_rows, features, vocabulary, dtype)
    batch.streams = {name: stream.double() for name, stream in batch.streams.items()}
    return replace(p, target=batch.row_target.to(DEVICE)), pl.make_row_loss(
        batch.to(torch.device(DEVICE)), recipe
    )


ARMS = [
    {"algorithm__entropy_bonus": 0.05},
    {"algorithm__kl_estimator": "k1", "algorithm__kl_coefficient": 0.3, "algorithm__dual_clip": None},
    {"algorithm__kl_estimator": "k2", "algorithm__truncated_importance": 1.02, "wm__loss": "mae"},
    {"algorithm__kl_coefficient": 0.0, "wm__loss": "cross_entropy", "algorithm__dual_clip": 1.1},
]
