"""Advantage estimators: GRPO, RLOO, GiGPO, and GAE over steps or tokens.

E episodes, N transitions; `group` holds 0-based group numbers. Everything is computed in float64 and returned
in the dtype of the first argument. A group without contrast (all values equal, or a single member) gives
exactly 0: rounding must not become a signal when it is divided by a tiny std.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch

EPS = 1e-6
"""Added to standard deviations."""


def grpo(
    returns: torch.Tensor,
    group: torch.Tensor,
    normalize_std: bool = True,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Group-relative advantage A_i = (R_i - mean_g) / (std_g + EPS), std with n - 1 (DeepSeekMath, eq. 4;
    without division: Dr. GRPO).

    Args:
        returns: float[n], of episodes, or of samples.
        group: int64[n].
        counted: bool[n], whose returns make up mean and deviation, at least one of each group; None: all.

    Returns: float[n].
    """
    return _center(returns.double(), group, normalize_std, counted).to(returns.dtype)


def rloo(returns: torch.Tensor, group: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Leave-one-out advantage A_i = R_i - mean of the other members' returns (Ahmadian et al. 2024, eq. 8); 0
    for a single member.

    Args:
        returns: float[n], of episodes, or of samples.
        group: int64[n].
        counted: bool[n], who the members are, at least one of each group; None: all.

    Returns: float[n].
    """
    x = returns.double()
    count = _count(group if counted is None else group[counted])[group]
    centred = _center(x, group, normalize_std=False, counted=counted)
    return (centred * count / (count - 1).clamp(min=1)).to(returns.dtype)


def gigpo_steps(
    to_go: torch.Tensor,
    group: torch.Tensor,
    anchor: Sequence[str],
    *,
    normalize_std: bool = True,
    similarity: float | None = None,
) -> torch.Tensor:
    """The step part A_S of GiGPO's advantage A_E + omega * A_S (arXiv 2505.10978, eq. 3-8); the episode part
    A_E is `grpo`.

    A_S is `grpo` over the discounted returns-to-go of those transitions of a task group that were taken in
    the same anchor state; a state met once gives 0.

    Args:
        to_go: float[N], discounted return-to-go of each transition.
        group: int64[N], task group of each transition.
        anchor: N state keys; compared within a task group only.
        similarity: None: keys must be equal; else keys whose difflib ratio to the first key of a cluster
            reaches this are one state.

    Returns: float[N].
    """
    return _center(to_go.double(), anchor_states(group, anchor, similarity), normalize_std).to(to_go.dtype)


def returns_to_go(
    rewards: torch.Tensor, episode: torch.Tensor, step: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Discounted return of each transition to the end of its episode, sum_k gamma^k r_{t+k} (float[N], any
    order of transitions)."""
    order = sorted(
        range(len(rewards)),
        key=list(zip(episode.tolist(), step.tolist(), strict=True)).__getitem__,
        reverse=True,
    )
    reward_of, episode_of = rewards.tolist(), episode.tolist()
    result = [0.0] * len(order)
    running, current = 0.0, None
    for n in order:
        running = reward_of[n] + (gamma * running if episode_of[n] == current else 0.0)
        result[n], current = running, episode_of[n]
    return torch.tensor(result, dtype=rewards.dtype)


def anchor_states(
    group: torch.Tensor, anchor: Sequence[str], similarity: float | None = None
) -> torch.Tensor:
    """Number the anchor states: int64[N], equal for transitions of one task group whose keys are equal (or
    similar, see `gigpo`)."""
    if similarity is None:
        numbers: dict[tuple[int, str], int] = {}
        return torch.tensor(
            [numbers.setdefault(key, len(numbers)) for key in zip(group.tolist(), anchor, strict=True)],
            dtype=torch.long,
        )
    states = 0
    state_of: dict[tuple[int, str], int] = {}
    clusters: dict[int, list[tuple[str, int]]] = {}  # task group -> (first key, state) in order of appearance
    for g, key in zip(group.tolist(), anchor, strict=True):
        # also spares equal long keys the ratio, which ignores frequent characters and may call them different
        if (g, key) in state_of:
            continue
        known = clusters.setdefault(g, [])
        found = next((state for first, state in known if _ratio_reaches(first, key, similarity)), None)
        if found is None:
            found = states
            states += 1
            known.append((key, found))
        state_of[g, key] = found
    return torch.tensor([state_of[key] for key in zip(group.tolist(), anchor, strict=True)], dtype=torch.long)


def gae(
    rewards: torch.Tensor, values: torch.Tensor, dones: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the steps of episodes, or the
    tokens of responses; an end is worth 0.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where V_{t+1} = A_{t+1} = 0 at
    `dones`.

    Args:
        rewards, values: float[n], episode after episode in the order of their steps (or response after
            response, its tokens).
        dones: bool[n], True at the last step of each episode.

    Returns: (advantages float[n], value targets A + V float[n]).
    """
    reward_of, value_of, done_of = rewards.tolist(), values.tolist(), dones.tolist()
    advantages = [0.0] * len(reward_of)
    next_value = running = 0.0
    for t in reversed(range(len(reward_of))):
        if done_of[t]:
            next_value = running = 0.0
        running = reward_of[t] + gamma * next_value - value_of[t] + gamma * lam * running
        next_value = value_of[t]
        advantages[t] = running
    result = torch.tensor(advantages, dtype=torch.float64)
    return result.to(rewards.dtype), (result + values.double()).to(rewards.dtype)


def whiten(advantages: torch.Tensor) -> torch.Tensor:
    """(A - mean) / (std + EPS) over the whole update (PPO); 0 where all are equal. float[N] -> float[N]."""
    return grpo(advantages, torch.zeros(len(advantages), dtype=torch.long))


def _count(group: torch.Tensor) -> torch.Tensor:
    return torch.bincount(group).double()


def _center(
    x: torch.Tensor, group: torch.Tensor, normalize_std: bool, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """float64[n] -> float64[n]: deviations from the group's mean, divided by its deviation (n - 1) + EPS if
    asked; both of the counted (bool[n])."""
    chosen = slice(None) if counted is None else counted
    count = _count(group[chosen])
    zeros = torch.zeros_like(count)
    mean = zeros.index_add(0, group[chosen], x[chosen]) / count.clamp(min=1)
    centred = x - mean[group]
    low = zeros.scatter_reduce(0, group, x, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, x, "amax", include_self=False)
    if normalize_std:
        std = (zeros.index_add(0, group[chosen], centred[chosen].square()) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (std[group] + EPS)
    return torch.where((low == high)[group], 0.0, centred)


def _ratio_reaches(a: str, b: str, threshold: float) -> bool:
    """difflib ratio >= threshold, its two cheap upper bounds first."""
    matcher = SequenceMatcher(None, a, b)
    return (
        matcher.real_quick_ratio() >= threshold
        and matcher.quick_ratio() >= threshold
        and matcher.ratio() >= threshold
    )
