"""Credit: from a pool's rewards, validity and values to the advantage of every action token, by the recipe's
`algorithm` section.

N transitions, A action tokens. The estimators themselves are in `advantages.py`; here is what they are
applied to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from paw_hpc.experience import Pool, Scores
from paw_hpc.objective import advantages
from paw_hpc.recipe import AlgorithmSection, Recipe
from paw_hpc.recipe.doors import ALGORITHMS


@dataclass(slots=True)
class Credit:
    """Advantages, and for PPO what the critic learns."""

    advantage: torch.Tensor
    """float32[N]; with a critic of tokens the mean over a response's tokens."""
    per_token: torch.Tensor
    """float32[A], in pool order."""
    value_streams: dict[str, torch.Tensor]
    """PPO: value_target, old_value and value_weight, float32[N], or float32[A] with a critic of tokens; else
    empty."""


@dataclass(slots=True)
class Estimate:
    """What an algorithm makes of rewards (`paw_hpc.recipe.doors.Algorithm.estimate`)."""

    advantage: torch.Tensor
    """float64[N], of transitions; float64[A], of action tokens in pool order, where `of_tokens`."""
    value_streams: dict[str, torch.Tensor] = field(default_factory=dict)
    """Where a critic is trained: value_target, old_value and value_weight, float64[N] or [A]."""
    of_tokens: bool = False


def assign_credit(pool: Pool, scores: Scores, sample: torch.Tensor, recipe: Recipe) -> Credit:
    """
    Args:
        sample: int64[A], `pool.action_sample`.
    """
    a = recipe.algorithm
    invalid = recipe.env.invalid_penalty * (~pool.valid).double()
    found = ALGORITHMS.find(a.name).estimate(pool, _returns(pool, invalid, a), invalid, scores, recipe)
    if found.of_tokens:
        per_token = (
            found.advantage - invalid[sample] if a.penalty == "after_normalization" else found.advantage
        )
        count = torch.bincount(sample, minlength=len(pool)).clamp(min=1)
        advantage = torch.zeros(len(pool), dtype=torch.float64).index_add(0, sample, per_token) / count
    else:
        advantage = found.advantage - invalid if a.penalty == "after_normalization" else found.advantage
        per_token = advantage[sample]
    return Credit(
        advantage.float(),
        per_token.float(),
        {name: stream.float() for name, stream in found.value_streams.items()},
    )


def _returns(pool: Pool, invalid: torch.Tensor, a: AlgorithmSection) -> torch.Tensor:
    """float64[N]: the return that each transition is scored by, the episode's less the penalties that belong
    to it."""
    returns = pool.returns.double()
    if a.penalty == "episode":
        returns = returns - torch.zeros_like(returns).index_add(0, pool.episode, invalid)
    scored = returns[pool.episode]
    return scored - invalid if a.penalty == "sample" else scored


def grpo(
    pool: Pool, returns: torch.Tensor, invalid: torch.Tensor, scores: Scores, recipe: Recipe
) -> Estimate:
    return Estimate(
        advantages.grpo(returns, pool.group, recipe.algorithm.normalize_std, _counted(pool, recipe.algorithm))
    )


def rloo(
    pool: Pool, returns: torch.Tensor, invalid: torch.Tensor, scores: Scores, recipe: Recipe
) -> Estimate:
    return Estimate(advantages.rloo(returns, pool.group, _counted(pool, recipe.algorithm)))


def gigpo(
    pool: Pool, returns: torch.Tensor, invalid: torch.Tensor, scores: Scores, recipe: Recipe
) -> Estimate:
    a = recipe.algorithm
    of_episode = advantages.grpo(returns, pool.group, a.normalize_std, _counted(pool, a))
    # A penalty of the episode is a reward of its step, which is discounted; one of the sample alone stays
    # where it is.
    rewards = pool.rewards.double() - (invalid if a.penalty == "episode" else 0.0)
    to_go = advantages.returns_to_go(rewards, pool.episode, pool.step, a.gamma) - (
        invalid if a.penalty == "sample" else 0.0
    )
    anchor = [
        state_key(t.anchor, t.admissible if a.gigpo_anchor == "observation_and_actions" else ())
        for t in pool.transitions
    ]
    of_state = advantages.gigpo_steps(
        to_go, pool.group, anchor, normalize_std=a.normalize_std, similarity=a.gigpo_similarity
    )
    return Estimate(of_episode + a.gigpo_omega * of_state)


def ppo(pool: Pool, returns: torch.Tensor, invalid: torch.Tensor, scores: Scores, recipe: Recipe) -> Estimate:
    if recipe.algorithm.per_token_values:
        return _token_ppo(returns, scores, pool.action_sample, recipe.algorithm)
    return _step_ppo(pool, scores, invalid, recipe.algorithm)


def _counted(pool: Pool, a: AlgorithmSection) -> torch.Tensor | None:
    """bool[N]: whose returns make up a group's statistics; None: all transitions'."""
    return None if a.statistics == "samples" else _first_step(pool)


def state_key(observation: str, admissible: tuple[str, ...]) -> str:
    """What GiGPO compares."""
    return f"{observation}\n{'|'.join(admissible)}" if admissible else observation


def _step_ppo(pool: Pool, scores: Scores, invalid: torch.Tensor, a: AlgorithmSection) -> Estimate:
    """Whitened advantages of transitions by GAE over the steps of episodes, and the critic's streams."""
    assert scores.values is not None  # `plan` has looked
    values = scores.values.double()
    rewards = pool.rewards.double() - (invalid if a.penalty == "episode" else 0.0)
    advantage, target = advantages.gae(rewards, values, _last_step(pool), a.gamma, a.gae_lambda)
    if a.penalty == "sample":
        advantage, target = advantage - invalid, target - invalid
    weight = torch.full_like(values, a.value_coefficient / len(values))
    return Estimate(
        advantages.whiten(advantage), {"value_target": target, "old_value": values, "value_weight": weight}
    )


def _token_ppo(returns: torch.Tensor, scores: Scores, sample: torch.Tensor, a: AlgorithmSection) -> Estimate:
    """Whitened advantages of tokens by GAE over the tokens of each response, rewarded at its last one with
    `returns` (float64[N])."""
    assert scores.values is not None  # `plan` has looked
    values = scores.values.double()
    last = torch.ones(len(sample), dtype=torch.bool)
    last[:-1] = sample[:-1] != sample[1:]
    rewards = torch.where(last, returns[sample], 0.0)
    advantage, target = advantages.gae(rewards, values, last, a.token_gamma, a.token_lambda)
    weight = torch.full_like(values, a.value_coefficient / len(values))
    streams = {"value_target": target, "old_value": values, "value_weight": weight}
    return Estimate(advantages.whiten(advantage), streams, of_tokens=True)


def _first_step(pool: Pool) -> torch.Tensor:
    """bool[N]: the first transition of its episode (the pool is ordered by episode and step)."""
    first = torch.ones(len(pool), dtype=torch.bool)
    first[1:] = pool.episode[1:] != pool.episode[:-1]
    return first


def _last_step(pool: Pool) -> torch.Tensor:
    """bool[N]: the last transition of its episode."""
    last = torch.ones(len(pool), dtype=torch.bool)
    last[:-1] = pool.episode[:-1] != pool.episode[1:]
    return last
