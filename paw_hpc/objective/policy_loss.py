"""Row losses: what a trainer evaluates per scored row, and the sums it logs.

Everything is elementwise in the rows (and samples, for the critic), so the value of an update depends neither
on packing nor on order: `plan` has already put every normalizer into the streams `weight` and `value_weight`.
A trainer needs `make_row_loss` and `row_metrics` (PPO: `make_value_loss`, `value_metrics`), then `add_sums`
and `finalize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch
from paw_hpc.recipe import AlgorithmSection, Recipe, WorldModelSection
from paw_hpc.recipe.doors import WORLD_MODEL_LOSSES

RowLossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logp[C], entropy[C], rows int64[C]) -> weighted loss[C]."""
Sums = dict[str, torch.Tensor]
"""name -> float64[2], (sum, count) on the rows' device. Add them over micro-batches and ranks, then
`finalize`."""

LOG_RATIO_BOUND = 20.0
KL_BOUND = 10.0

# ----------------------------------------------------------------------------------------- elementwise losses


def ppo_clip(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantage: torch.Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old_logp) (PPO, eq. 7).

    With `dual_clip` c the loss of a negative advantage is at most -c A (Ye et al. 2020, eq. 5). Log-ratios
    are bounded to +-20 against overflow.
    """
    ratio = _bounded(logp - old_logp).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def kl_k1(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """log p - log q: unbiased for KL(p || q) as a number, but its expected gradient is 0 (Schulman,
    "Approximating KL divergence")."""
    return logp - ref_logp


def kl_k2(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """(log p - log q)^2 / 2."""
    return 0.5 * (logp - ref_logp).square()


def kl_low_variance(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """k3 = q/p - 1 - log(q/p), >= 0; bounded to 10 (beyond it the token has no gradient), as the set-up that
    the paper follows has it."""
    log_ratio = _bounded(ref_logp - logp)
    return (log_ratio.exp() - 1.0 - log_ratio).clamp(max=KL_BOUND)


KL = {"k1": kl_k1, "k2": kl_k2, "low_variance": kl_low_variance}


def truncated_importance_weight(
    old_logp: torch.Tensor, behaviour_logp: torch.Tensor, cap: float
) -> torch.Tensor:
    """min(exp(old_logp - behaviour_logp), cap), without gradient: trainer against engine (or against an older
    policy)."""
    return _bounded(old_logp - behaviour_logp).exp().clamp(max=cap).detach()


def clipped_value_loss(
    value: torch.Tensor, old_value: torch.Tensor, target: torch.Tensor, clip: float
) -> torch.Tensor:
    """max((v - R)^2, (old + clip(v - old, -clip, clip) - R)^2) / 2 (Schulman's PPO2 form)."""
    near = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (near - target).square())


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


# ------------------------------------------------------------------------------------------------- row losses


def make_row_loss(batch: Batch, recipe: Recipe) -> RowLossFunction:
    """The loss of the rows of a batch, action and observation rows in one call.

    The closure takes logp[C], entropy[C] (float32 or float64, entropy of the row's distribution) and the rows
    they belong to (int64[C], on the batch's device), and returns weight * loss per row, differentiable in
    both; summed over all rows of an update: eq. 11. No host synchronisation.

    Raises:
        ValueError: a stream that the recipe needs is missing (the batch was planned by another recipe).
    """
    a, streams = recipe.algorithm, batch.streams
    _require(streams, a)

    def row_loss(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        is_action = batch.row_kind[rows] == ACTION
        mine = {name: stream[rows] for name, stream in streams.items()}
        # An observation token of probability 0 must not turn the branch it does not take into NaN (0 * inf)
        # in the backward pass.
        action_logp = torch.where(is_action, logp, mine["old_logp"])
        loss = torch.where(
            is_action, action_loss(action_logp, entropy, mine, a), world_model_loss(logp, recipe.wm)
        )
        return mine["weight"] * loss

    return row_loss


def action_loss(
    logp: torch.Tensor, entropy: torch.Tensor, streams: Mapping[str, torch.Tensor], a: AlgorithmSection
) -> torch.Tensor:
    """Unweighted RL loss per row: PPO clip (times the truncated importance weight) + KL coefficient * KL -
    entropy bonus * entropy."""
    loss = ppo_clip(logp, streams["old_logp"], streams["advantage"], a.clip_low, a.clip_high, a.dual_clip)
    if a.truncated_importance is not None:
        loss = loss * truncated_importance_weight(
            streams["old_logp"], streams["behaviour_logp"], a.truncated_importance
        )
    if a.kl_coefficient > 0:
        loss = loss + a.kl_coefficient * KL[a.kl_estimator](logp, streams["ref_logp"])
    if a.entropy_bonus > 0:
        loss = loss - a.entropy_bonus * entropy
    return loss


def world_model_loss(logp: torch.Tensor, wm: WorldModelSection) -> torch.Tensor:
    """Unweighted world-model loss per row."""
    return WORLD_MODEL_LOSSES.find(wm.loss).loss(logp, wm)


def make_value_loss(batch: Batch, recipe: Recipe) -> Callable[[torch.Tensor], torch.Tensor]:
    """Critic (PPO): values[R] of a batch as `policy.critic.critic_batch` makes it -> value_weight * clipped
    value loss per row, float[R]."""
    streams, clip = batch.streams, recipe.algorithm.value_clip
    return lambda values: (
        streams["value_weight"]
        * clipped_value_loss(values, streams["old_value"], streams["value_target"], clip)
    )


def _require(streams: Mapping[str, torch.Tensor], a: AlgorithmSection) -> None:
    needed = {"weight", "advantage", "old_logp"}
    needed |= {"ref_logp"} if a.kl_coefficient > 0 else set()
    needed |= {"behaviour_logp"} if a.truncated_importance is not None else set()
    if missing := sorted(needed - streams.keys()):
        raise ValueError(
            f"the batch has no stream {', '.join(missing)}: it was planned by a recipe with another "
            "algorithm section"
        )


# ---------------------------------------------------------------------------------------------------- metrics


@torch.no_grad()
def row_metrics(batch: Batch, logp: torch.Tensor, entropy: torch.Tensor, recipe: Recipe) -> Sums:
    """What to log of all R rows of a batch, as (sum, count) pairs; the names depend on the recipe alone, so
    that ranks agree.

    policy_loss (RL loss, weighted as in the objective), approx_kl (k3 of old policy to current),
    ratio_clip_fraction (share of action tokens whose ratio is clipped), ref_kl (with `kl_coefficient`; k3),
    entropy (nats per action token), wm_loss (mean over transitions of l(h, a, o)), clipped_token_ratio (share
    of observation tokens with p > rho), observation_ce (nats per observation token of the targets trained
    on), observation_p (their mean probability).

    Args:
        logp, entropy: float[R], as given to the row loss.
    """
    a, streams, wm = recipe.algorithm, batch.streams, recipe.wm
    _require(streams, a)
    logp = logp.double()
    action = (batch.row_kind == ACTION).double()
    observation = (batch.row_kind == OBSERVATION).double()
    old, weight = streams["old_logp"].double(), streams["weight"].double()
    clip = _ratio_clipped(logp, old, streams["advantage"], a)
    sums = {
        "policy_loss": _sum(action_loss(logp, entropy.double(), streams, a), action * weight),
        "approx_kl": _sum(kl_low_variance(old, logp), action),
        "ratio_clip_fraction": _sum(clip.double(), action),
        "entropy": _sum(entropy.double(), action),
        "clipped_token_ratio": _sum((logp.exp() > wm.rho).double(), observation),
        "observation_ce": _sum(-logp, observation),
        "observation_p": _sum(logp.exp(), observation),
        "wm_loss": _sum(world_model_loss(logp, wm), observation / batch.counted_by_kind()),
    }
    if a.kl_coefficient > 0:
        sums["ref_kl"] = _sum(kl_low_variance(logp, streams["ref_logp"].double()), action)
    return sums


@torch.no_grad()
def value_metrics(batch: Batch, values: torch.Tensor, recipe: Recipe) -> Sums:
    """value_loss (unweighted mean) and value_mean of the rows of a critic's batch; values float[R]."""
    streams, ones = batch.streams, torch.ones_like(values, dtype=torch.float64)
    loss = clipped_value_loss(
        values, streams["old_value"], streams["value_target"], recipe.algorithm.value_clip
    )
    return {"value_loss": _sum(loss.double(), ones), "value_mean": _sum(values.double(), ones)}


def add_sums(parts: Iterable[Sums]) -> Sums:
    """Sum of (sum, count) pairs, name by name."""
    total: Sums = {}
    for part in parts:
        for name, pair in part.items():
            total[name] = total[name] + pair if name in total else pair
    return total


def finalize(sums: Sums) -> dict[str, float]:
    """Means of (sum, count) pairs; names with nothing to average (no observation row, say) are left out."""
    if not sums:
        return {}
    pairs = torch.stack(list(sums.values())).tolist()  # one transfer for all of them
    return {name: total / count for name, (total, count) in zip(sums, pairs, strict=True) if count != 0}


def _sum(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(sum of weight * value, sum of weight), float64[2]. Rows of weight 0 do not count, whatever their value
    (a log-prob of -inf, say)."""
    return torch.stack([torch.where(weight == 0, 0.0, weight * value).sum(), weight.sum()])


def _ratio_clipped(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, a: AlgorithmSection
) -> torch.Tensor:
    """bool[R]: the clipped branch is the larger loss, so the row has no gradient."""
    ratio = _bounded(logp - old_logp).exp()
    return ((advantage > 0) & (ratio > 1.0 + a.clip_high)) | ((advantage < 0) & (ratio < 1.0 - a.clip_low))
