"""An independent, slow reading of the paper: Python floats, loops, nested means. Shares no code with
`paw_hpc.objective`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paw_hpc.experience import Pool, Scores
from paw_hpc.recipe import Recipe


def mean(xs: Sequence[float]) -> float:
    return sum(xs) / len(xs)


def normalize(x: float, xs: Sequence[float], by_std: bool) -> float:
    """Deviation of x from the mean of its group; 0 in a group without contrast."""
    if len(set(xs)) == 1:
        return 0.0
    return (x - mean(xs)) / (float(np.std(xs, ddof=1)) + 1e-6 if by_std else 1.0)


def grpo(returns: Sequence[float], group: Sequence[int], by_std: bool = True) -> list[float]:
    return [
        normalize(r, [q for q, h in zip(returns, group, strict=True) if h == g], by_std)
        for r, g in zip(returns, group, strict=True)
    ]


def rloo(returns: Sequence[float], group: Sequence[int]) -> list[float]:
    result = []
    for i, (r, g) in enumerate(zip(returns, group, strict=True)):
        others = [returns[j] for j in range(len(returns)) if j != i and group[j] == g]
        result.append(r - mean(others) if others else 0.0)
    return result


def return_to_go(
    n: int, rewards: Sequence[float], episode: Sequence[int], step: Sequence[int], gamma: float
) -> float:
    return sum(
        gamma ** (step[m] - step[n]) * rewards[m]
        for m in range(len(rewards))
        if episode[m] == episode[n] and step[m] >= step[n]
    )


def gigpo(returns, rewards, group, anchor, episode, step, omega, gamma, by_std) -> list[float]:
    n_all = range(len(rewards))
    members = [sorted({episode[m] for m in n_all if group[m] == group[n]}) for n in n_all]
    of_episode = [normalize(returns[episode[n]], [returns[e] for e in members[n]], by_std) for n in n_all]
    to_go = [return_to_go(n, rewards, episode, step, gamma) for n in n_all]
    return [x + omega * y for x, y in zip(of_episode, of_state(to_go, group, anchor, by_std), strict=True)]


def of_state(to_go, group, anchor, by_std) -> list[float]:
    """GiGPO's step part."""
    n_all = range(len(to_go))
    return [
        normalize(
            to_go[n], [to_go[m] for m in n_all if group[m] == group[n] and anchor[m] == anchor[n]], by_std
        )
        for n in n_all
    ]


def of_group(score, counted, group, by_std, leave_one_out) -> list[float]:
    """Score of each sample against those of its group's counted samples; 0 in a group all of whose samples
    have the same score."""
    result = []
    for x, g in zip(score, group, strict=True):
        everyone = [y for y, h in zip(score, group, strict=True) if h == g]
        members = [y for y, h, c in zip(score, group, counted, strict=True) if h == g and c]
        if len(set(everyone)) == 1:
            result.append(0.0)
        elif leave_one_out:
            result.append(
                (x - mean(members)) * (len(members) / (len(members) - 1) if len(members) > 1 else 1.0)
            )
        else:
            deviation = float(np.std(members, ddof=1)) if len(members) > 1 else 0.0
            result.append((x - mean(members)) / (deviation + 1e-6 if by_std else 1.0))
    return result


def gae(rewards, values, dones, gamma, lam) -> tuple[list[float], list[float]]:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, written out for every t."""
    n_all = len(rewards)
    delta = [rewards[t] + (0.0 if dones[t] else gamma * values[t + 1]) - values[t] for t in range(n_all)]
    advantages = []
    for t in range(n_all):
        end = next(k for k in range(t, n_all) if dones[k])
        advantages.append(sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, end + 1)))
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def advantages(pool: Pool, scores: Scores, recipe: Recipe) -> list[float]:
    """A_n of every transition, the invalid-action penalty included; with PPO over tokens the mean over each
    response."""
    if recipe.algorithm.per_token_values:
        return [
            mean(tokens) if tokens else 0.0
            for tokens in per_transition(pool, token_advantages(pool, scores, recipe))
        ]
    a, n_all = recipe.algorithm, range(len(pool))
    cost = [0.0 if t.valid else recipe.env.invalid_penalty for t in pool.transitions]
    of_episode, of_sample, late = (
        [c if a.penalty == where else 0.0 for c in cost]
        for where in ("episode", "sample", "after_normalization")
    )
    episode, step, group = pool.episode.tolist(), pool.step.tolist(), pool.group.tolist()
    rewards = [t.reward - c for t, c in zip(pool.transitions, of_episode, strict=True)]
    if a.name == "ppo":
        assert scores.values is not None
        dones = [n + 1 == len(pool) or episode[n + 1] != episode[n] for n in n_all]
        raw, _ = gae(rewards, scores.values.tolist(), dones, a.gamma, a.gae_lambda)
        raw = [x - c for x, c in zip(raw, of_sample, strict=True)]
        result = [normalize(x, raw, True) for x in raw]
    else:
        score = sample_scores(pool, recipe)
        counted = [a.statistics == "samples" or n == 0 or episode[n - 1] != episode[n] for n in n_all]
        result = of_group(score, counted, group, a.normalize_std, a.name == "rloo")
    if a.name == "gigpo":
        to_go = [return_to_go(n, rewards, episode, step, a.gamma) - of_sample[n] for n in n_all]
        anchor = [
            (t.anchor, t.admissible if a.gigpo_anchor == "observation_and_actions" else None)
            for t in pool.transitions
        ]
        result = [
            x + a.gigpo_omega * y
            for x, y in zip(result, of_state(to_go, group, anchor, a.normalize_std), strict=True)
        ]
    return [x - c for x, c in zip(result, late, strict=True)]


def sample_scores(pool: Pool, recipe: Recipe) -> list[float]:
    """The return that each transition is judged by."""
    a, cost = recipe.algorithm, [0.0 if t.valid else recipe.env.invalid_penalty for t in pool.transitions]
    episode, result = pool.episode.tolist(), []
    for n, e in enumerate(episode):
        score = sum(t.reward for t, f in zip(pool.transitions, episode, strict=True) if f == e)
        if a.penalty == "episode":
            score -= sum(c for c, f in zip(cost, episode, strict=True) if f == e)
        result.append(score - (cost[n] if a.penalty == "sample" else 0.0))
    return result


def token_advantages(pool: Pool, scores: Scores, recipe: Recipe) -> list[float]:
    """PPO over the tokens of each response: float[A]."""
    a = recipe.algorithm
    assert scores.values is not None
    rewards, dones, cost = [], [], []
    for t, score in zip(pool.transitions, sample_scores(pool, recipe), strict=True):
        for j in range(len(t.response_ids)):
            last = j + 1 == len(t.response_ids)
            rewards.append(score if last else 0.0)
            dones.append(last)
            cost.append(
                recipe.env.invalid_penalty if a.penalty == "after_normalization" and not t.valid else 0.0
            )
    raw, _ = gae(rewards, scores.values.tolist(), dones, a.token_gamma, a.token_lambda)
    return [normalize(x, raw, True) - c for x, c in zip(raw, cost, strict=True)]


def per_transition(pool: Pool, flat: Sequence[float]) -> list[list[float]]:
    """Split values of action tokens by transition."""
    result, start = [], 0
    for t in pool.transitions:
        result.append(list(flat[start : start + len(t.response_ids)]))
        start += len(t.response_ids)
    return result


def selected(pool: Pool, scores: Scores, alpha: float) -> set[int]:
    """Eq. 4 over the whole update, among transitions that have a next observation."""
    entropy = [mean(h) for h in per_transition(pool, scores.entropy.tolist())]
    candidates = [n for n, t in enumerate(pool.transitions) if len(t.observation_ids)]
    return set(sorted(candidates, key=lambda n: (-entropy[n], n))[: round(alpha * len(candidates))])


def action_token_loss(
    logp: float, old: float, ref: float, behaviour: float, advantage: float, entropy: float, recipe: Recipe
) -> float:
    a = recipe.algorithm
    ratio = math.exp(logp - old)
    clipped = min(max(ratio, 1 - a.clip_low), 1 + a.clip_high)
    loss = -min(ratio * advantage, clipped * advantage)
    if a.dual_clip is not None and advantage < 0:
        loss = min(loss, -a.dual_clip * advantage)
    if a.truncated_importance is not None:
        loss *= min(math.exp(old - behaviour), a.truncated_importance)
    d = logp - ref
    loss += (
        a.kl_coefficient * {"k1": d, "k2": d * d / 2, "low_variance": math.exp(-d) + d - 1}[a.kl_estimator]
    )
    return loss - a.entropy_bonus * entropy


def observation_token_loss(logp: float, recipe: Recipe) -> float:
    p = math.exp(logp)
    if recipe.wm.loss == "cross_entropy":
        return -logp
    return 1 - p if recipe.wm.loss == "mae" or p <= recipe.wm.rho else 0.0


def objective(
    pool: Pool, scores: Scores, recipe: Recipe, logp: list[dict[str, list[float]]], update: int = 0
) -> tuple[float, float]:
    """Eq. 11 as (RL part, world-model part). `logp[n]` holds the current "action", "entropy" and
    "observation" values of transition n."""
    a = recipe.algorithm
    assert scores.ref_logp is not None
    if a.per_token_values:
        advantage = per_transition(pool, token_advantages(pool, scores, recipe))
    else:
        advantage = [
            [x] * len(t.response_ids)
            for x, t in zip(advantages(pool, scores, recipe), pool.transitions, strict=True)
        ]
    old, ref = per_transition(pool, scores.old_logp.tolist()), per_transition(pool, scores.ref_logp.tolist())
    token_losses = [
        [
            action_token_loss(
                logp[n]["action"][j],
                old[n][j],
                ref[n][j],
                float(t.response_logprobs[j]),
                advantage[n][j],
                logp[n]["entropy"][j],
                recipe,
            )
            for j in range(len(t.response_ids))
        ]
        for n, t in enumerate(pool.transitions)
    ]
    if a.aggregation == "token":
        rl = mean([x for losses in token_losses for x in losses])
    elif a.aggregation == "transition":
        rl = mean([mean(losses) for losses in token_losses])
    else:
        episodes = range(len(pool.episodes))
        rl = mean(
            [
                mean(
                    [x for n, losses in enumerate(token_losses) if int(pool.episode[n]) == e for x in losses]
                )
                for e in episodes
            ]
        )
    chosen = selected(pool, scores, recipe.wm.alpha)
    wm = 0.0
    for g in range(pool.num_groups):
        mine = [n for n in chosen if int(pool.group[n]) == g]
        returns = [
            e.episode_return
            for e, h in zip(pool.episodes, pool.episode_group.tolist(), strict=True)
            if h == g
        ]
        lam = (
            min(max(1 - mean(returns) / recipe.env.success_reward, 0.0), 1.0)
            if recipe.wm.coefficient == "reward_adaptive"
            else 1.0
        )
        if mine and lam > 0:  # a group that always succeeds has no observation rows to read losses from
            losses = [[observation_token_loss(x, recipe) for x in logp[n]["observation"]] for n in mine]
            if recipe.wm.aggregation == "token":
                tokens = sum(len(pool.transitions[n].observation_ids) for n in chosen)
                wm += (
                    recipe.wm.scale
                    * lam
                    * sum(x for of_one in losses for x in of_one)
                    * pool.num_groups
                    / tokens
                )
            else:
                wm += recipe.wm.scale * lam * mean([mean(of_one) for of_one in losses])
    return rl, wm / pool.num_groups
