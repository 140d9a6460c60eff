"""Advantages of recorded batches against what another implementation returned for them, through `plan`: the
path that training takes.

    python -m tests.objective.reference_cases FILE.json.gz

The file: a list of cases, each with `penalty, gamma, omega, similarity`, `samples` (group, episode, step,
anchor, valid, reward, length in tokens; in order of episode and step) and `expected` (estimator -> one
advantage per sample; `ppo_token_gae` -> values, advantages, returns per sample and token). Prints the worst
absolute error of each estimator and ends with status 1 above `TOLERANCE` of its largest value.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_hpc.experience import ACTION, Episode, Group, Pool, Scores, Transition
from paw_hpc.objective.plan import Plan, plan
from tests.factories import tiny_recipe

TOLERANCE = 1e-5
"""Of the largest value of an estimator in a case: the recorded values are float32."""
_SAMPLES = {"penalty": "sample", "statistics": "samples"}
_SWITCHED = {"penalty": "sample", "statistics": "episodes"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo_over_steps": {"name": "grpo", **_SAMPLES},
    "grpo_mean_only_over_steps": {"name": "grpo", "normalize_std": False, **_SAMPLES},
    "rloo_over_steps": {"name": "rloo", **_SAMPLES},
    "grpo_over_episodes": {"name": "grpo", **_SWITCHED},
    "grpo_mean_only_over_episodes": {"name": "grpo", "normalize_std": False, **_SWITCHED},
    "rloo_over_episodes": {"name": "rloo", **_SWITCHED},
    "gigpo_mean_std_norm": {"name": "gigpo", "gigpo_anchor": "observation", **_SAMPLES},
    "gigpo_mean_norm": {"name": "gigpo", "gigpo_anchor": "observation", "normalize_std": False, **_SAMPLES},
    "ppo_token_gae": {"name": "ppo", "ppo_advantages": "tokens", **_SAMPLES},
}
"""Estimator of the file -> keys of `algorithm`."""


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(path.read_bytes()))


def errors(
    case: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, float, float]]:
    """(estimator, worst absolute error, largest absolute value) for everything that a case expects.

    Args:
        changes: other keys of `algorithm`, for negative controls.
    """
    pool = pool_of(case["samples"])
    for name, expected in case["expected"].items():
        keys = {**ESTIMATORS[name], **(changes or {})}
        if name == "ppo_token_gae":
            yield from _token_errors(name, planned(case, pool, keys, expected["values"]), expected)
        else:
            similar = (
                ", similar anchors" if keys["name"] == "gigpo" and case["similarity"] is not None else ""
            )
            yield name + similar, *_compared(planned(case, pool, keys).advantage, expected)


def planned(
    case: Mapping[str, Any],
    pool: Pool,
    keys: Mapping[str, Any],
    values: Sequence[Sequence[float]] | None = None,
) -> Plan:
    """The plan of a case by these keys of `algorithm`; `values` of the critic per sample and token."""
    setting = {
        "gamma": case["gamma"],
        "gigpo_omega": case["omega"],
        "gigpo_similarity": case["similarity"],
        "kl_coefficient": 0.0,
    }
    dotted = {f"algorithm.{key}": value for key, value in {**setting, **keys}.items()}
    recipe = tiny_recipe(
        **dotted, **{"env.invalid_penalty": case["penalty"], "env.max_steps": 1000, "wm.enabled": False}
    )
    nothing = torch.zeros(len(pool.action_sample))
    flat = None if values is None else torch.tensor([x for tokens in values for x in tokens])
    return plan(pool, Scores(nothing, nothing, values=flat), recipe, 0)


def pool_of(samples: Sequence[Mapping[str, Any]]) -> Pool:
    """A pool of these samples, in their order."""
    groups: dict[int, Group] = {}
    episodes: dict[int, Episode] = {}
    for sample in samples:
        group = groups.setdefault(sample["group"], Group(sample["group"], f"task {sample['group']}", "task"))
        episode = episodes.get(sample["episode"])
        if episode is None:
            episode = episodes[sample["episode"]] = Episode(
                sample["episode"], group.index, group.task_id, "task", seed=0
            )
            group.episodes.append(episode)
        episode.transitions.append(_transition(sample))
    pool = Pool.from_groups(list(groups.values()))
    order = [(sample["episode"], sample["step"]) for sample in samples]
    if [(t.episode, t.step) for t in pool.transitions] != order:
        raise ValueError("the samples of a case are not in the order of group, episode and step")
    return pool


def _transition(sample: Mapping[str, Any]) -> Transition:
    return Transition(
        group=sample["group"],
        episode=sample["episode"],
        step=sample["step"],
        prompt_ids=np.ones(2, dtype=np.int32),
        response_ids=np.ones(sample["length"], dtype=np.int32),
        response_logprobs=np.zeros(sample["length"], dtype=np.float32),
        bridge_ids=np.empty(0, dtype=np.int32),
        observation_ids=np.empty(0, dtype=np.int32),
        reward=sample["reward"],
        valid=sample["valid"],
        anchor=sample["anchor"],
        weight_version=0,
    )


def _token_errors(name: str, found: Plan, expected: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    batch = found.batch
    for stream, key in (("advantage", "advantages"), ("value_target", "returns")):
        rows = batch.streams[stream][batch.row_kind == ACTION]
        yield f"{name} {key}", *_compared(rows, [x for tokens in expected[key] for x in tokens])


def _compared(found: torch.Tensor, expected: Sequence[float]) -> tuple[float, float]:
    theirs = torch.tensor(expected, dtype=torch.float64)
    return float((found.double() - theirs).abs().max()), float(theirs.abs().max())


def main(path: Path) -> int:
    """Prints the table; the status."""
    worst: dict[str, tuple[float, float]] = {}
    for number, case in enumerate(load(path)):
        for name, error, largest in errors(case):
            share = error / max(largest, 1e-12)
            if share >= worst.get(name, (0.0, -1.0))[1]:
                worst[name] = (error, share)
            if share > TOLERANCE:
                print(
                    f"case {number}: {name} is off by {error:.1e}, {share:.1e} of its largest value",
                    file=sys.stderr,
                )
    for name, (error, share) in worst.items():
        print(f"{name:38} worst error {error:.1e}, {share:.1e} of the largest value")
    return int(any(share > TOLERANCE for _, share in worst.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
