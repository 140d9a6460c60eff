"""Credit: from a pool's rewards, validity and values to the advantage of every action token, by the recipe's `algorithm` section.

N transitions, A action tokens. The estimators themselves are in `advantages.py`; here is what they are applied to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paw_hpc.experience import Pool, Scores
from paw_hpc.objective import advantages
from paw_hpc.recipe import AlgorithmSection, Recipe


@dataclass(slots=True)
class Credit:
    """Advantages, and for PPO what the critic learns."""

    advantage: torch.Tensor
    """float32[N]; with a critic of tokens the mean over a response's tokens."""
    per_token: torch.Tensor
    """float32[A], in pool order."""
    value_streams: dict[str, torch.Tensor]
    """PPO: value_target, old_value and value_weight, float32[N], or float32[A] with a critic of tokens; else empty."""


def assign_credit(pool: Pool, scores: Scores, sample: torch.Tensor, recipe: Recipe) -> Credit:
    """
    Args:
        sample: int64[A], `pool.action_sample`.
    """
    a = recipe.algorithm
    invalid = recipe.env.invalid_penalty * (~pool.valid).double()
    streams: dict[str, torch.Tensor] = {}
    if a.per_token_values:
        per_token, streams = _token_ppo(_returns(pool, invalid, a), scores, sample, a)
        if a.penalty == "after_normalization":
            per_token = per_token - invalid[sample]
        count = torch.bincount(sample, minlength=len(pool)).clamp(min=1)
        advantage = torch.zeros(len(pool), dtype=torch.float64).index_add(0, sample, per_token) / count
    else:
        if a.name == "ppo":
            advantage, streams = _step_ppo(pool, scores, invalid, a)
        else:
            advantage = _of_group(pool, invalid, a)
        if a.penalty == "after_normalization":
            advantage = advantage - invalid
        per_token = advantage[sample]
    return Credit(advantage.float(), per_token.float(), {name: stream.float() for name, stream in streams.items()})


def _returns(pool: Pool, invalid: torch.Tensor, a: AlgorithmSection) -> torch.Tensor:
    """float64[N]: the return that each transition is scored by, the episode's less the penalties that belong to it."""
    returns = pool.returns.double()
    if a.penalty == "episode":
        returns = returns - torch.zeros_like(returns).index_add(0, pool.episode, invalid)
    scored = returns[pool.episode]
    return scored - invalid if a.penalty == "sample" else scored


def _of_group(pool: Pool, invalid: torch.Tensor, a: AlgorithmSection) -> torch.Tensor:
    """float64[N]: GRPO, RLOO, GiGPO."""
    returns = _returns(pool, invalid, a)
    counted = None if a.statistics == "samples" else _first_step(pool)
    if a.name == "rloo":
        return advantages.rloo(returns, pool.group, counted)
    advantage = advantages.grpo(returns, pool.group, a.normalize_std, counted)
    if a.name == "grpo":
        return advantage
    # A penalty of the episode is a reward of its step, which is discounted; one of the sample alone stays where it is.
    rewards = pool.rewards.double() - (invalid if a.penalty == "episode" else 0.0)
    to_go = advantages.returns_to_go(rewards, pool.episode, pool.step, a.gamma) - (invalid if a.penalty == "sample" else 0.0)
    anchor = [state_key(t.anchor, t.admissible if a.gigpo_anchor == "observation_and_actions" else ()) for t in pool.transitions]
    of_state = advantages.gigpo_steps(to_go, pool.group, anchor, normalize_std=a.normalize_std, similarity=a.gigpo_similarity)
    return advantage + a.gigpo_omega * of_state


def state_key(observation: str, admissible: tuple[str, ...]) -> str:
    """What GiGPO compares."""
    return f"{observation}\n{'|'.join(admissible)}" if admissible else observation


def _step_ppo(pool: Pool, scores: Scores, invalid: torch.Tensor, a: AlgorithmSection) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Whitened advantages float64[N] by GAE over the steps of episodes, and the critic's streams."""
    assert scores.values is not None  # `plan` has looked
    values = scores.values.double()
    rewards = pool.rewards.double() - (invalid if a.penalty == "episode" else 0.0)
    advantage, target = advantages.gae(rewards, values, _last_step(pool), a.gamma, a.gae_lambda)
    if a.penalty == "sample":
        advantage, target = advantage - invalid, target - invalid
    weight = torch.full_like(values, a.value_coefficient / len(values))
    return advantages.whiten(advantage), {"value_target": target, "old_value": values, "value_weight": weight}


def _token_ppo(returns: torch.Tensor, scores: Scores, sample: torch.Tensor, a: AlgorithmSection) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Whitened advantages float64[A] by GAE over the tokens of each response, rewarded at its last one with `returns` (float64[N])."""
    assert scores.values is not None  # `plan` has looked
    values = scores.values.double()
    last = torch.ones(len(sample), dtype=torch.bool)
    last[:-1] = sample[:-1] != sample[1:]
    rewards = torch.where(last, returns[sample], 0.0)
    advantage, target = advantages.gae(rewards, values, last, a.token_gamma, a.token_lambda)
    weight = torch.full_like(values, a.value_coefficient / len(values))
    return advantages.whiten(advantage), {"value_target": target, "old_value": values, "value_weight": weight}


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
