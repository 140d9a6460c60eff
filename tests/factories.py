"""Random pools, scores and recipes for tests. Everything is a function of its arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from paw_hpc.experience import Episode, Group, Pool, Scores, Transition
from paw_hpc.recipe import Recipe, parse_recipe


def random_groups(
    seed: int,
    groups: int = 3,
    members: int = 4,
    *,
    max_steps: int = 5,
    vocabulary: int = 50,
    prompt: tuple[int, int] = (3, 12),
    response: tuple[int, int] = (1, 6),
    observation: tuple[int, int] = (1, 8),
    bridge: int = 2,
    success: float = 0.5,
    success_reward: float = 10.0,
    invalid: float = 0.2,
    no_observation: float = 0.1,
    states: int = 3,
) -> list[Group]:
    """Groups of episodes of 1 .. max_steps transitions with random token ids.

    Args:
        prompt, response, observation: smallest and largest length in tokens.
        success: probability that an episode ends with `success_reward` (all other rewards are 0).
        invalid: probability that a step's action is invalid.
        no_observation: probability that an episode's last step has no next observation.
        states: number of distinct anchors in a group.
    """
    rng = np.random.default_rng([seed, 1])

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(0, vocabulary, rng.integers(low, high + 1)).astype(np.int32)

    result = []
    for g in range(groups):
        group = Group(index=g, task_id=f"task-{seed}-{g}", task_type="pick_and_place_simple")
        for m in range(members):
            won = bool(rng.random() < success)
            steps = int(rng.integers(1, max_steps + 1))
            episode = Episode(
                g * members + m, g, group.task_id, group.task_type, seed=m, success=won, score=float(won)
            )
            for s in range(steps):
                last = s == steps - 1
                response_ids = ids(*response)
                silent = last and rng.random() < no_observation
                episode.transitions.append(
                    Transition(
                        group=g,
                        episode=episode.index,
                        step=s,
                        prompt_ids=ids(*prompt),
                        response_ids=response_ids,
                        response_logprobs=-rng.exponential(1.0, len(response_ids)).astype(np.float32),
                        bridge_ids=ids(bridge, bridge),
                        observation_ids=np.empty(0, dtype=np.int32) if silent else ids(*observation),
                        reward=success_reward if last and won else 0.0,
                        valid=bool(rng.random() >= invalid),
                        anchor=(state := f"state {rng.integers(states)}"),
                        weight_version=0,
                        admissible=("look", f"go {len(response_ids) % 2}") if state == "state 0" else (),
                    )
                )
            group.episodes.append(episode)
        result.append(group)
    return result


def random_pool(seed: int, groups: int = 3, members: int = 4, **options: Any) -> Pool:
    """`random_groups`, flattened."""
    return Pool.from_groups(random_groups(seed, groups, members, **options))


def as_conversations(
    groups: list[Group], seed: int = 0, *, breaks: float = 0.0, vocabulary: int = 50
) -> list[Group]:
    """The same groups (changed in place) with prompts that go on from one another: prompt, response, bridge,
    observation and a few tokens more.

    Args:
        breaks: probability that a prompt begins anew all the same, as after the limit was reached.
    """
    rng = np.random.default_rng([seed, 3])
    for episode in (episode for group in groups for episode in group.episodes):
        for before, after in zip(episode.transitions, episode.transitions[1:], strict=False):
            if rng.random() >= breaks:
                rest = rng.integers(0, vocabulary, rng.integers(0, 4)).astype(np.int32)
                parts = [
                    before.prompt_ids,
                    before.response_ids,
                    before.bridge_ids,
                    before.observation_ids,
                    rest,
                ]
                after.prompt_ids = np.concatenate(parts)
    return groups


def random_scores(
    pool: Pool, seed: int = 0, *, vocabulary: int = 50, per_token_values: bool = False
) -> Scores:
    """Scores of a trainer near the behaviour policy, with a reference policy and a critic (of steps, or of
    tokens)."""
    rng = np.random.default_rng([seed, 2])
    behaviour = np.concatenate([t.response_logprobs for t in pool.transitions])

    def near(x: np.ndarray, width: float) -> torch.Tensor:
        return torch.from_numpy(np.minimum(x + rng.normal(0.0, width, len(x)), -1e-4).astype(np.float32))

    return Scores(
        old_logp=near(behaviour, 0.05),
        entropy=torch.from_numpy(rng.uniform(0.0, math.log(vocabulary), len(behaviour)).astype(np.float32)),
        ref_logp=near(behaviour, 0.2),
        values=torch.from_numpy(
            rng.normal(2.0, 1.0, len(behaviour) if per_token_values else len(pool)).astype(np.float32)
        ),
    )


def tiny_recipe(**dotted: Any) -> Recipe:
    """A small valid recipe; override keys by path, either `wm__alpha=0.5` or `**{"wm.alpha": 0.5}`."""
    data: dict[str, Any] = {
        "name": "test",
        "updates": 4,
        "env": {"max_steps": 5},
        "model": {
            "tiny": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64},
            "tokenizer": "tokenizer",
        },
        "rollout": {"groups": 3, "group_size": 4, "max_prompt_tokens": 64, "max_response_tokens": 8},
    }
    for key, value in dotted.items():
        *sections, name = key.replace("__", ".").split(".")
        section = data
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return parse_recipe(data, where="tiny_recipe")
