"""Where the paper meets data: a pool and its scores become a packed batch whose rows carry every weight,
advantage and target.

A trainer sums weight * loss over rows and is done: all normalizers are global (over the whole update) and
already in the streams, so the result depends neither on micro-batches, nor on sample order, nor on
data-parallel ranks. Every arm and control of the recipe is made here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch, Ids, Pool, Scores
from paw_hpc.objective import world_model
from paw_hpc.objective.batching import micro_batches, mini_batches
from paw_hpc.objective.credit import Credit, assign_credit
from paw_hpc.objective.packing import last_prompt_tokens, lengths_of, pack
from paw_hpc.recipe import Recipe, WorldModelSection
from paw_hpc.system.errors import TrainingError
from paw_hpc.system.seeding import generator

__all__ = ["Plan", "last_prompt_tokens", "micro_batches", "mini_batches", "pack", "plan", "world_model_scale"]


@dataclass(slots=True)
class Plan:
    """One update, ready to train on."""

    batch: Batch
    """Samples in pool order (`transition` = 0 .. N-1), and so are its sequences."""
    metrics: dict[str, float]
    advantage: torch.Tensor  # float32[N]; with a critic of tokens the mean over a response
    entropy: torch.Tensor  # float64[N], H(a|h) as selection sees it
    selected: torch.Tensor  # bool[N], S_alpha
    coefficient: torch.Tensor  # float64[G], lambda_g (1 for the constant coefficient), before the scale


@dataclass(slots=True)
class _WorldModelPlan:
    """The world-model half of a plan. Transitions that are not trained on have weight 0 and no
    observation."""

    entropy: torch.Tensor  # float64[N], H(a|h)
    selectable: torch.Tensor  # bool[N], has a next observation
    selected: torch.Tensor  # bool[N], S_alpha
    coefficient: torch.Tensor  # float64[G]
    scale: float
    weight: torch.Tensor  # float64[N], of the mean over the observation's tokens
    observations: list[Ids]
    shuffled_equal_share: float | None


def plan(pool: Pool, scores: Scores, recipe: Recipe, update: int) -> Plan:
    """Turn one update's experience into a batch of weighted rows (eq. 11 of the paper; Algorithm 1, "plan").

    Streams per row: `weight`, `advantage`, `old_logp`, with `ref_logp` when `algorithm.kl_coefficient` > 0
    and `behaviour_logp` when `algorithm.truncated_importance` is set; observation rows hold 0 in all but
    `weight`. PPO adds `value_position` and the streams `value_target`, `old_value` and `value_weight`: one
    per sample, or per row with `algorithm.ppo_advantages: tokens`.

    A transition's observation (and the bridge before it) is appended only where its world-model weight is
    above 0. Transitions without a next observation have no world-model target: they are no part of the pool
    that selection draws from, nor of the N in round(alpha * N).

    Args:
        update: number of the update, from 0: world-model schedule and seeds of the random controls.

    Raises:
        TrainingError: no transition, or not one response token.
        ValueError: scores that do not belong to this pool, or lack what the recipe needs.
    """
    if not len(pool):
        raise TrainingError(
            f"update {update}: no transition to train on, every episode was failed by its environment; see "
            "the log, or raise env.step_timeout_s"
        )
    sample = pool.action_sample
    if not len(sample):
        raise TrainingError(
            f"update {update}: no response has a single token; check rollout.max_response_tokens and "
            "rollout.stop"
        )
    _check(scores, pool, sample, recipe)
    credit = assign_credit(pool, scores, sample, recipe)
    wm = _world_model(pool, scores, sample, recipe, update)
    batch = pack(pool, wm.observations, recipe.policy.merge_turns)
    action_weight = _action_weights(
        pool, torch.bincount(sample, minlength=len(pool)), recipe.algorithm.aggregation
    )
    _add_streams(batch, pool, scores, recipe, credit, action_weight, wm.weight)
    if recipe.algorithm.values is not None:
        batch.value_position = last_prompt_tokens(batch, pool)
    return Plan(
        batch,
        _metrics(pool, scores, batch, credit, wm),
        credit.advantage,
        wm.entropy,
        wm.selected,
        wm.coefficient,
    )


def world_model_scale(wm: WorldModelSection, update: int, updates: int) -> float:
    """What multiplies lambda_g at this update: 0 when the loss is off or skips it (every k-th counts from
    update 0), else `scale`, or a cosine from `scale` at the first update to `final_scale` at the last."""
    if not wm.enabled or update % wm.every:
        return 0.0
    if wm.final_scale is None:
        return wm.scale
    progress = min(update / max(updates - 1, 1), 1.0)
    return wm.final_scale + 0.5 * (wm.scale - wm.final_scale) * (1.0 + math.cos(math.pi * progress))


def _check(scores: Scores, pool: Pool, sample: torch.Tensor, recipe: Recipe) -> None:
    needed = {"old_logp": len(sample), "entropy": len(sample)}
    if recipe.algorithm.kl_coefficient > 0:
        needed["ref_logp"] = len(sample)
    if recipe.algorithm.values is not None:
        needed["values"] = len(sample) if recipe.algorithm.per_token_values else len(pool)
    for name, length in needed.items():
        value = getattr(scores, name)
        if value is None or len(value) != length:
            raise ValueError(
                f"scores.{name}: expected {length} entries for this pool, got "
                f"{'none' if value is None else len(value)}"
            )
    if any(not len(t.prompt_ids) for t in pool.transitions):
        raise ValueError(
            "a transition has an empty prompt: its first response token has no position to be predicted from"
        )


# ------------------------------------------------------------------------------------------------ the RL half


def _action_weights(pool: Pool, response_lengths: torch.Tensor, aggregation: str) -> torch.Tensor:
    """float64[N]: the weight of each action row of a transition; over all action rows of the update they sum
    to 1."""
    lengths = response_lengths.double()
    if aggregation == "token":
        return torch.full_like(lengths, 1.0 / float(lengths.sum()))
    if aggregation == "transition":
        return 1.0 / (int((lengths > 0).sum()) * lengths.clamp(min=1.0))
    per_episode = torch.zeros(len(pool.episodes), dtype=torch.float64).index_add(0, pool.episode, lengths)
    return 1.0 / (int((per_episode > 0).sum()) * per_episode.clamp(min=1.0))[pool.episode]


# --------------------------------------------------------------------------------------- the world-model half


def _world_model(
    pool: Pool, scores: Scores, sample: torch.Tensor, recipe: Recipe, update: int
) -> _WorldModelPlan:
    wm, n = recipe.wm, len(pool)
    if wm.entropy == "full":
        entropy = world_model.token_entropy_mean(scores.entropy, sample, n)
    else:
        entropy = world_model.sampled_token_entropy_mean(scores.old_logp, sample, n)
    selectable = torch.tensor([len(t.observation_ids) > 0 for t in pool.transitions])
    selected = torch.zeros(n, dtype=torch.bool)
    if wm.selection == "entropy":
        selected[selectable] = world_model.select_top_entropy(entropy[selectable], wm.alpha)
    else:
        selected[selectable] = world_model.select_random(int(selectable.sum()), wm.alpha, recipe.seed, update)
    coefficient = torch.ones(pool.num_groups, dtype=torch.float64)
    if wm.coefficient == "reward_adaptive" and recipe.env.success_reward > 0:
        coefficient = world_model.reward_adaptive_coefficient(
            pool.returns, pool.episode_group, recipe.env.success_reward
        )
    scale = world_model_scale(wm, update, recipe.updates)
    trained = (selected & (scale * coefficient[pool.group] > 0)).nonzero().flatten().tolist()
    source = trained
    equal_share = None
    if wm.target == "shuffled":
        if len(trained) == 1:  # nothing to exchange it with; training on the truth would not be the control
            trained = []
        source = derange(trained, recipe.seed, update)
        same = [
            np.array_equal(_observation(pool, a), _observation(pool, b))
            for a, b in zip(trained, source, strict=True)
        ]
        equal_share = float(np.mean(same)) if same else None
    observations = [t.observation_ids for t in pool.transitions]
    for to, origin in zip(trained, source, strict=True):
        observations[to] = _observation(pool, origin)
    if wm.aggregation == "token":
        weight = scale * world_model.token_weights(
            selected, pool.group, coefficient, lengths_of(observations)
        )
    else:
        weight = scale * world_model.transition_weights(selected, pool.group, coefficient)
    left_out = torch.ones(n, dtype=torch.bool)
    left_out[trained] = False
    weight[left_out] = 0.0
    for index in left_out.nonzero().flatten().tolist():
        observations[index] = np.empty(0, dtype=np.int32)
    return _WorldModelPlan(
        entropy, selectable, selected, coefficient, scale, weight, observations, equal_share
    )


def derange(items: list[int], run_seed: int, update: int) -> list[int]:
    """The items in another order with none in its own place (a random cycle, hence a derangement of two or
    more; a function of its arguments)."""
    order = generator(run_seed, "wm.shuffle", update).permutation(len(items))
    moved = np.array(items, dtype=np.int64)
    moved[order] = moved[np.roll(order, -1)]
    return moved.tolist()


def _observation(pool: Pool, n: int) -> Ids:
    return pool.transitions[n].observation_ids


# ---------------------------------------------------------------------------------------------------- streams


def _add_streams(
    batch: Batch,
    pool: Pool,
    scores: Scores,
    recipe: Recipe,
    credit: Credit,
    action_weight: torch.Tensor,
    wm_weight: torch.Tensor,
) -> None:
    """Fill `batch.streams` (float32[R]) and, for a critic of steps, `batch.sample_streams` (float32[N])."""
    sample = torch.repeat_interleave(torch.arange(len(batch)), batch.row_cu[1:] - batch.row_cu[:-1])
    is_action = batch.row_kind == ACTION
    observation_rows = torch.bincount(sample[~is_action], minlength=len(batch)).clamp(min=1)
    weight = torch.where(is_action, action_weight[sample], (wm_weight / observation_rows)[sample])
    batch.streams["weight"] = weight.float()
    per_token = {"advantage": credit.per_token, "old_logp": scores.old_logp}
    if recipe.algorithm.kl_coefficient > 0:
        assert scores.ref_logp is not None  # `_check`
        per_token["ref_logp"] = scores.ref_logp
    if recipe.algorithm.truncated_importance is not None:
        per_token["behaviour_logp"] = _behaviour_logp(pool)
    if recipe.algorithm.per_token_values:
        per_token |= credit.value_streams
    else:
        batch.sample_streams = credit.value_streams
    for name, values in per_token.items():
        batch.streams[name] = torch.zeros(batch.num_rows).masked_scatter(is_action, values.float())


def _behaviour_logp(pool: Pool) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([t.response_logprobs for t in pool.transitions]).astype(np.float32)
    )


# ---------------------------------------------------------------------------------------------------- metrics


def _metrics(
    pool: Pool, scores: Scores, batch: Batch, credit: Credit, wm: _WorldModelPlan
) -> dict[str, float]:
    """What to log of a plan. Names end in _mean, _share and the like; bare nouns are counts. The same names
    for every arm, vanilla included.

    lambda_* is the coefficient per group before `wm_scale`; entropy_* are nats per action (eq. 4),
    entropy_threshold the lowest selected one; selected_transitions is |S_alpha|, wm_transitions those of it
    with a weight above 0, wm_weight the sum of their weights; behaviour_gap_* is the absolute difference of
    old_logp and the behaviour log-prob per token; zero_signal_groups the share of groups without any
    advantage; shuffled_equal_share (control only) the share of exchanged observations that equal the true
    one.
    """
    response = lengths_of([t.response_ids for t in pool.transitions]).double()
    observation = lengths_of([t.observation_ids for t in pool.transitions]).double()
    drift = (scores.old_logp - _behaviour_logp(pool)).abs()
    of_token = pool.group[pool.action_sample]
    signal = torch.zeros(pool.num_groups).scatter_reduce(0, of_token, credit.per_token.abs(), "amax")
    advantage = credit.advantage
    trained = wm.weight > 0
    metrics = {
        "success": float(np.mean([e.success for e in pool.episodes])),
        "score": float(np.mean([e.score for e in pool.episodes])),
        "return_mean": float(pool.returns.mean()),
        "steps_mean": len(pool) / len(pool.episodes),
        "invalid_share": float((~pool.valid).double().mean()),
        "response_length_mean": float(response.mean()),
        "prompt_length_mean": float(np.mean([len(t.prompt_ids) for t in pool.transitions])),
        "observation_length_mean": float(observation[wm.selectable].mean())
        if bool(wm.selectable.any())
        else 0.0,
        "truncated_prompts": float(sum(e.truncated_prompts for e in pool.episodes)),
        "truncated_observations": float(sum(e.truncated_observations for e in pool.episodes)),
        "groups": float(pool.num_groups),
        "episodes": float(len(pool.episodes)),
        "transitions": float(len(pool)),
        "sequences": float(batch.num_sequences),
        "tokens": float(batch.num_tokens),
        "action_tokens": float(response.sum()),
        "advantage_mean": float(advantage.double().mean()),
        "advantage_abs_mean": float(advantage.double().abs().mean()),
        "zero_signal_groups": float((signal == 0).double().mean()),
        "behaviour_gap_mean": float(drift.double().mean()),
        "behaviour_gap_p99": float(np.quantile(drift.double().numpy(), 0.99)),
        "behaviour_gap_max": float(drift.max()),
        "entropy_mean": float(wm.entropy.mean()),
        "selected_transitions": float(wm.selected.sum()),
        "lambda_mean": float(wm.coefficient.mean()),
        "lambda_min": float(wm.coefficient.min()),
        "lambda_max": float(wm.coefficient.max()),
        "wm_scale": wm.scale,
        "wm_weight": float(wm.weight.sum()),
        "wm_transitions": float(trained.sum()),
        "wm_tokens": float((batch.row_kind == OBSERVATION).sum()),
    }
    if bool(wm.selected.any()):
        metrics["entropy_threshold"] = float(wm.entropy[wm.selected].min())
    if wm.shuffled_equal_share is not None:
        metrics["shuffled_equal_share"] = wm.shuffled_equal_share
    return metrics
