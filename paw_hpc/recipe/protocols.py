"""The two protocols, `reference` and `ours`, as data: what their shipped recipes say key by key, and where
another recipe departs from them.

A protocol's numbers stand in its recipes and nowhere else: recipes/BENCHMARK/PROTOCOL.yaml, and the words of
`algorithm` in recipes/paper/choices.yaml.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from paw_hpc.recipe import PROTOCOLS, TASK_TYPES, ProtocolName, Recipe, load_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.shipped import protocol_recipe, shipped_recipes

_ASIDE = (
    "name",
    "seed",
    "protocol",
    "threads",
    "model.",
    "policy.",
    "megatron.",
    "checkpoint.",
    "cluster.",
    "warm_start.",
    "eval.panel",  # stands above every table
    "eval.every",
    "eval.repeats",
    "env.workers",
    "env.step_timeout_s",
    "env.search.index",
    "env.search.url",
    "env.search.key_file",
    "env.search.max_batch",
    "env.search.timeout_s",
    "rollout.engine",
    "rollout.fleet.",
    "rollout.publish.",
    "rollout.max_logprob_gap",
    "rollout.batching",
    "rollout.max_batch",
    "optimizer.max_tokens_per_micro_batch",
    "wm.",  # the arm, not the set-up; but see below
)
"""Keys (or, ending in '.', sections) that are no part of a protocol: where and how fast a run computes, which
model, which arm."""
_WITH_WORLD_MODEL = ("wm.max_observation_tokens",)
_READ_BY: dict[str, tuple[str, ...]] = {
    "algorithm.gigpo_": ("gigpo",),
    "algorithm.gamma": ("gigpo", "ppo"),
    "algorithm.gae_lambda": ("ppo",),
    "algorithm.ppo_": ("ppo",),
    "algorithm.token_": ("ppo",),
    "algorithm.value_": ("ppo",),
    "optimizer.critic_lr": ("ppo",),
    "algorithm.statistics": ("grpo", "rloo", "gigpo"),
    "algorithm.normalize_std": ("grpo", "gigpo"),
}
"""Beginning of a key -> the algorithms that read it."""
_UNORDERED = ("env.task_types", "env.search.train_sets")
_JUDGING = (
    "env.",
    "eval.temperature",
    "rollout.max_prompt_tokens",
    "rollout.max_response_tokens",
    "rollout.stop",
)
_ONLY_TRAINING = ("env.train_games", "env.success_reward", "env.invalid_penalty", "env.search.train_sets")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a recipe stands to the protocols."""

    named: ProtocolName | None
    """The protocol that it says it follows, or, where it says nothing, whose keys it has; None: no
    protocol's."""
    said: bool
    """Whether the recipe says so itself."""
    departures: Mapping[ProtocolName, tuple[str, ...]]
    """protocol -> `key: its own (protocol: the protocol's)` for every key in which it departs."""


@functools.cache
def protocol(name: ProtocolName, benchmark: str, algorithm: str = "grpo") -> Recipe:
    """A protocol's set-up for a benchmark and an algorithm. Raises DataError where the shipped recipes are
    missing."""
    words: Any = OmegaConf.to_container(OmegaConf.load(shipped_recipes() / "paper" / "choices.yaml"))
    changes = [f"{key}={json.dumps(value)}" for key, value in _flat(words["algorithm"].get(algorithm, {}))]
    return load_recipe(protocol_recipe(benchmark, name), changes)


def standing(recipe: Recipe) -> Standing:
    """Raises DataError where the shipped recipes are missing."""
    found = {name: departures(recipe, name) for name in PROTOCOLS}
    same = [name for name in PROTOCOLS if not found[name]]
    return Standing(recipe.protocol or (same[0] if same else None), recipe.protocol is not None, found)


def departures(recipe: Recipe, name: ProtocolName) -> tuple[str, ...]:
    """`key: its own (protocol: the protocol's)` for every key of the set-up that its algorithm reads, in the
    order of a recipe."""
    return tuple(_departure(*difference, name) for difference in _differences(recipe, name))


def judged_by(recipe: Recipe, temperature: float) -> str:
    """Which protocol an evaluation with these keys is: `reference`, or `reference, except KEY: ...`; empty
    where the recipe names none."""
    if recipe.protocol is None:
        return ""
    judging = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"temperature": temperature})})
    differing = [
        _departure(*d, recipe.protocol) for d in _differences(judging, recipe.protocol) if _is_judging(d[0])
    ]
    return ", except ".join(filter(None, (recipe.protocol, "; ".join(differing))))


def judged_as(recipe: Recipe, judge: Recipe) -> Recipe:
    """A recipe with the keys of a protocol's (`judge`) that decide how an episode of a panel goes; where its
    data are stays its own."""
    own = {key: getattr(recipe.env, key) for key in ("workers", "step_timeout_s")}
    if recipe.env.name == judge.env.name:
        places = {
            key: getattr(recipe.env.search, key)
            for key in ("data", "retriever", "index", "url", "max_batch", "timeout_s")
        }
        own |= {"games": recipe.env.games, "search": judge.env.search.model_copy(update=places)}
    rollout = {
        key: getattr(judge.rollout, key) for key in ("max_prompt_tokens", "max_response_tokens", "stop")
    }
    return recipe.model_copy(
        update={
            "protocol": judge.protocol,
            "env": judge.env.model_copy(update=own),
            "rollout": recipe.rollout.model_copy(update=rollout),
            "eval": judge.eval,
        }
    )


def _is_judging(key: str) -> bool:
    return _under(key, _JUDGING) and key not in _ONLY_TRAINING


def _differences(recipe: Recipe, name: ProtocolName) -> Iterator[tuple[str, object, object]]:
    """(key, the recipe's value, the protocol's)."""
    if not BENCHMARKS.is_own(recipe.env.name):
        yield "env.name", recipe.env.name, "none for it"
        return
    theirs = dict(_flat(protocol(name, recipe.env.name, recipe.algorithm.name).model_dump()))
    for key, ours in _flat(recipe.model_dump()):
        if _counts(key, recipe) and not _same(key, ours, theirs[key]):
            yield key, ours, theirs[key]


def _counts(key: str, recipe: Recipe) -> bool:
    if key in _WITH_WORLD_MODEL:
        return recipe.wm.enabled
    readers = [algorithms for beginning, algorithms in _READ_BY.items() if key.startswith(beginning)]
    return not _under(key, _ASIDE) and all(recipe.algorithm.name in algorithms for algorithms in readers)


def _same(key: str, a: Any, b: Any) -> bool:
    return set(a) == set(b) if key in _UNORDERED else a == b


def _under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def _departure(key: str, ours: object, theirs: object, name: str) -> str:
    return f"{key}: {_text(key, ours)} ({name}: {_text(key, theirs)})"


def _text(key: str, value: object) -> str:
    if isinstance(value, tuple):
        listed = sorted(map(str, value)) if key in _UNORDERED else list(map(str, value))
        return "all six" if set(listed) == set(TASK_TYPES) else ", ".join(listed) or "none"
    if value is None:
        return {
            "env.train_games": "all",
            "env.webshop.num_products": "all",
            "env.prompt_template": "default",
        }.get(key, "off")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
