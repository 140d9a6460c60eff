"""The layout nearest to one that does not fit: which keys to change, and as few of them as possible."""

from __future__ import annotations

import itertools
from typing import Any

from paw_hpc.cluster.layout import lay_out
from paw_hpc.cluster.memory import too_much
from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.system.errors import RecipeError


def nearest_that_fits(recipe: Recipe, model: Architecture) -> tuple[list[str], Recipe] | None:
    """The overrides that change least and make it fit: fewest further nodes first, then fewest changed keys,
    then the least model parallelism.

    Returns None where nothing up to sixteen times the nodes does.
    """
    best: tuple[tuple[int, int, int], list[str], Recipe] | None = None
    for changes in _candidates(recipe, model):
        try:
            candidate = apply_overrides(recipe, changes)
            layout = lay_out(candidate)
        except RecipeError:
            continue
        if too_much(candidate, layout, model) is None:
            m = candidate.megatron
            cost = (layout.nodes, len(changes), m.tensor_parallel * m.pipeline_parallel)
            if best is None or cost < best[0]:
                best = (cost, [f"{key}={value}" for key, value in changes.items()], candidate)
    return None if best is None else best[1:]


def apply_overrides(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with some keys changed. Raises RecipeError where the result is impossible."""
    data = recipe.model_dump(mode="json")
    for path, value in changes.items():
        *sections, key = path.split(".")
        inner = data
        for section in sections:
            inner = inner[section]
        inner[key] = value
    return parse_recipe(data)


def _candidates(recipe: Recipe, model: Architecture) -> list[dict[str, Any]]:
    """Changes to try. Sizes that cannot divide the model are left out; what else is impossible is found when
    it is applied."""
    c, fleet = recipe.cluster, recipe.rollout.fleet
    tensors = [t for t in (1, 2, 4, 8) if model.kv_heads % t == 0 and model.ffn_hidden % t == 0]
    values: dict[str, tuple[Any, ...]] = {
        "policy.backend": ("megatron",),
        "cluster.trainer_nodes": tuple(c.trainer_nodes * times for times in (1, 2, 4, 8, 16)),
        "cluster.processes_per_node": (None,)
        if recipe.policy.backend == "huggingface"
        else (c.processes_per_node,),
        "megatron.tensor_parallel": tuple(tensors),
        "megatron.pipeline_parallel": tuple(p for p in (1, 2, 4, 8) if model.layers % p == 0),
        "megatron.data_parallel": (None,),
        "megatron.recompute": (recipe.megatron.recompute, "full"),
        "rollout.fleet.memory_fraction": (fleet.memory_fraction,),
    }
    if recipe.rollout.starts_servers:
        values["rollout.fleet.memory_fraction"] = (
            fleet.memory_fraction,
            *((0.5, 0.35) if fleet.colocated else (0.9,)),
        )
        values["rollout.fleet.tensor_parallel"] = (fleet.tensor_parallel, *tensors)
    return [
        {key: value for key, value in zip(values, chosen, strict=True) if value != _value(recipe, key)}
        for chosen in itertools.product(*(dict.fromkeys(each) for each in values.values()))
    ]


def _value(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for part in path.split("."):
        value = getattr(value, part)
    return value
