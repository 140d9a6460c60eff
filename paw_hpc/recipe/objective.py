"""What an update minimizes: the RL loss and the world-model loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from paw_hpc.recipe.doors import ALGORITHMS, WORLD_MODEL_LOSSES, Choice, Values, check_options
from paw_hpc.recipe.section import Fraction, NonNegative, Section


class AlgorithmSection(Section):
    """The RL loss."""

    name: Annotated[str, Choice(ALGORITHMS)] = "grpo"
    """How rewards become advantages; one more is brought by `plugins`."""
    options: dict[str, Any] = Field(default={})
    """Keys of an algorithm that a plugin brings."""
    normalize_std: bool = True
    """Divide group-relative advantages by the group's standard deviation."""
    penalty: Literal["episode", "sample", "after_normalization"] = "episode"
    """Where the invalid-action penalty enters. episode: subtracted from the reward of its step, so every step
    of the episode has it in the return that is normalized (GRPO's usual form). sample: subtracted from the
    return of its own step alone, before normalization; GiGPO also from that step's return-to-go, after
    discounting (`protocol: reference`). after_normalization: subtracted from the normalized advantage of its
    step, so that a group of failures does not turn a penalty of 0.1 into a signal of full size."""
    statistics: Literal["episodes", "samples"] = "episodes"
    """What a group's mean and deviation are taken over (GRPO, RLOO, GiGPO's episode part). episodes: one
    value per episode. samples: one per step, so an episode of 50 steps counts 50 times (`protocol:
    reference`). With `penalty: sample`, whose steps differ within an episode, an episode's value is that of
    its first step: a group whose first steps agree has no deviation then, and the penalty of a later step is
    divided by nearly 0."""
    gigpo_omega: NonNegative = 1.0
    """GiGPO: weight of the step part of the advantage."""
    gigpo_anchor: Literal["observation_and_actions", "observation"] = "observation_and_actions"
    """What two steps of a group must share to be the same state: the observation, with or without the
    admissible actions."""
    gigpo_similarity: Fraction | None = None
    """Group states whose keys are at least this similar (difflib ratio) instead of equal ones."""
    gamma: Fraction = 0.95
    """Discount: step returns of GiGPO, and GAE over the steps of an episode for PPO."""
    gae_lambda: Fraction = 0.95
    """PPO with `ppo_advantages: steps`."""
    ppo_advantages: Literal["steps", "tokens"] = "steps"
    """steps: GAE over the steps of an episode, one value per step. tokens: GAE over the tokens of each
    response by itself, a value per token; the episode's return is the reward of the response's last token
    (`protocol: reference`)."""
    token_gamma: Fraction = 1.0
    """Discount from token to token (`ppo_advantages: tokens`)."""
    token_lambda: Fraction = 1.0
    """GAE's lambda from token to token (`ppo_advantages: tokens`)."""
    clip_low: PositiveFloat = 0.2
    """PPO clip: ratios below 1 minus this have no gradient where the advantage is negative."""
    clip_high: PositiveFloat = 0.2
    """PPO clip: ratios above 1 plus this have no gradient where the advantage is positive."""
    dual_clip: PositiveFloat | None = 3.0
    """Bound of the loss where the advantage is negative, in advantages; none: unbounded."""
    kl_coefficient: NonNegative = 0.01
    """Weight of the KL divergence from the policy that the run began with; 0 needs no reference model."""
    kl_estimator: Literal["k1", "k2", "low_variance"] = "low_variance"
    """k1: log p - log q; k2: half its square; low_variance: k3, bounded to 10."""
    entropy_bonus: NonNegative = 0.0
    """Weight of the mean entropy of action tokens, which is subtracted from the loss."""
    aggregation: Literal["token", "transition", "episode"] = "token"
    """What the RL loss averages over, globally in the update: all action tokens; token means of transitions;
    token means of episodes."""
    truncated_importance: PositiveFloat | None = None
    """Truncated importance sampling: weight min(exp(old_logp - behaviour_logp), this); none: off."""
    old_logp: Literal["recompute", "rollout"] = "recompute"
    """recompute: one no-grad pass of the trainer (also gives entropies). rollout: what the engine reported
    (in-process engine only; entropies too)."""
    value_clip: PositiveFloat = 0.2
    """PPO: how far a value may move from the old one before its loss has no gradient."""
    value_coefficient: NonNegative = 1.0
    """PPO: weight of the value loss."""

    @property
    def values(self) -> Values | None:
        """What the critic gives a value to: every step, or every response token; None: there is no critic."""
        return ALGORITHMS.find(self.name).values(self)

    @property
    def per_token_values(self) -> bool:
        """Whether the critic gives a value per response token instead of one per step."""
        return self.values == "tokens"

    @model_validator(mode="after")
    def _consistent(self) -> AlgorithmSection:
        for key in ("token_gamma", "token_lambda"):
            if getattr(self, key) != 1.0 and self.ppo_advantages != "tokens":
                raise ValueError(
                    f"{key}: nothing runs over tokens with ppo_advantages=steps; use gamma and gae_lambda, "
                    "or ppo_advantages=tokens"
                )
        check_options(ALGORITHMS, self.name, self.options)
        return self


class WorldModelSection(Section):
    """The world-model loss (paper, section 3; arms and controls of its section 4 are values of these
    keys)."""

    enabled: bool = True
    """Off: vanilla RL, bit for bit."""
    loss: Annotated[str, Choice(WORLD_MODEL_LOSSES)] = "clipped_mae"
    """Of an observation token; one more is brought by `plugins`."""
    options: dict[str, Any] = Field(default={})
    """Keys of a loss that a plugin brings."""
    rho: Fraction = 0.2
    """Clipped MAE: tokens whose probability is already above rho carry no loss (eq. 9)."""
    selection: Literal["entropy", "random"] = "entropy"
    """entropy: the transitions whose actions were least certain (eq. 4); random: as many, drawn without
    regard to it (control)."""
    alpha: Fraction = 0.75
    """Share of the update's transitions that are selected (eq. 4); 1 selects all."""
    entropy: Literal["full", "sampled"] = "full"
    """full: entropy of the token distributions; sampled: the literal -q log q of the sampled token."""
    coefficient: Literal["reward_adaptive", "constant"] = "reward_adaptive"
    """reward_adaptive: lambda falls as a group's mean return rises (eq. 10); constant: 1."""
    scale: NonNegative = 1.0
    """Multiplies lambda_g; with `coefficient: constant` it is the coefficient itself."""
    final_scale: NonNegative | None = None
    """If set, `scale` falls along a cosine to this value over the run (weight decay of the world-model
    loss)."""
    target: Literal["true", "shuffled"] = "true"
    """shuffled: the control. Each selected transition is given the observation of another one of the update
    (same token budget)."""
    aggregation: Literal["group", "token"] = "group"
    """What the loss averages over. group: tokens of an observation, then selected transitions of a group,
    then groups (eq. 11). token: all observation tokens that are trained on in the update alike (ECHO's form),
    each times its group's lambda."""
    every: PositiveInt = 1
    """Use the world-model loss in every k-th update only."""
    max_observation_tokens: PositiveInt = 256
    """Longest next observation; longer ones are cut off, and counted."""

    @model_validator(mode="after")
    def _options(self) -> WorldModelSection:
        check_options(WORLD_MODEL_LOSSES, self.loss, self.options)
        return self
