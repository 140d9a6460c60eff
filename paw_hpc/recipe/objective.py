"""What an update minimizes: the RL loss and the world-model loss."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from paw_hpc.recipe.section import Fraction, NonNegative, Section


class AlgorithmSection(Section):
    """The RL loss."""

    name: Literal["grpo", "gigpo", "rloo", "ppo"] = "grpo"
    normalize_std: bool = True
    """Divide group-relative advantages by the group's standard deviation."""
    penalty: Literal["advantage", "after_normalization"] = "advantage"
    """Where the invalid-action penalty enters. advantage: part of the return that is normalized (the paper's form). after_normalization: added to the
    normalized advantage, so that a group of failures does not turn a penalty of 0.1 into a signal of full size."""
    gigpo_omega: NonNegative = 1.0
    gigpo_similarity: Fraction | None = None
    """Group states whose keys are at least this similar (difflib ratio) instead of equal ones."""
    gamma: Fraction = 0.95
    """Discount: step returns of GiGPO, and GAE over the steps of an episode for PPO."""
    gae_lambda: Fraction = 0.95
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    dual_clip: PositiveFloat | None = 3.0
    kl_coefficient: NonNegative = 0.01
    kl_estimator: Literal["k1", "k2", "low_variance"] = "low_variance"
    entropy_bonus: NonNegative = 0.0
    aggregation: Literal["token", "transition", "episode"] = "token"
    """What the RL loss averages over, globally in the update: all action tokens; token means of transitions; token means of episodes."""
    truncated_importance: PositiveFloat | None = None
    """Truncated importance sampling: weight min(exp(old_logp - behaviour_logp), this); none: off."""
    old_logp: Literal["recompute", "rollout"] = "recompute"
    """recompute: one no-grad pass of the trainer (also gives entropies). rollout: what the engine reported (in-process engine only; entropies
    too)."""
    value_clip: PositiveFloat = 0.2
    value_coefficient: NonNegative = 1.0


class WorldModelSection(Section):
    """The world-model loss (paper, section 3; arms and controls of its section 4 are values of these keys)."""

    enabled: bool = True
    loss: Literal["clipped_mae", "mae", "cross_entropy"] = "clipped_mae"
    rho: Fraction = 0.2
    """Clipped MAE: tokens whose probability is already above rho carry no loss (eq. 9)."""
    selection: Literal["entropy", "random"] = "entropy"
    alpha: Fraction = 0.75
    """Share of the update's transitions that are selected (eq. 4); 1 selects all."""
    entropy: Literal["full", "sampled"] = "full"
    """full: entropy of the token distributions; sampled: the literal -q log q of the sampled token."""
    coefficient: Literal["reward_adaptive", "constant"] = "reward_adaptive"
    scale: NonNegative = 1.0
    """Multiplies lambda_g; with `coefficient: constant` it is the coefficient itself."""
    final_scale: NonNegative | None = None
    """If set, `scale` falls along a cosine to this value over the run (weight decay of the world-model loss)."""
    target: Literal["true", "shuffled"] = "true"
    """shuffled: the control. Each selected transition is given the observation of another one of the update (same token budget)."""
    every: PositiveInt = 1
    """Use the world-model loss in every k-th update only."""
    max_observation_tokens: PositiveInt = 256
