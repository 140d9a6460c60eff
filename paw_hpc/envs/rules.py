"""By which rules environments are played that no recipe file names: the keys of a recipe's `env` section,
given one by one."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from paw_hpc.recipe import PROTOCOLS, EnvSection, load_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.loading import explain
from paw_hpc.recipe.shipped import protocol_recipe
from paw_hpc.system.errors import RecipeError


def rules_of(benchmark: str, protocol: str | None, keys: dict[str, Any]) -> EnvSection:
    """The `env` section of a benchmark: a protocol's, or every key's default, with these keys over it.

    Raises:
        RecipeError: an unknown benchmark, protocol or key, or a value that does not fit; says which would.
    """
    if benchmark not in BENCHMARKS.names():
        raise RecipeError(
            f"'{benchmark}' is no benchmark; expected {BENCHMARKS.expected()}, or one that `plugins` bring"
        )
    if protocol is not None and not (protocol in PROTOCOLS and BENCHMARKS.is_own(benchmark)):
        having = (
            f"one of {', '.join(PROTOCOLS)}"
            if BENCHMARKS.is_own(benchmark)
            else f"{benchmark} has none; leave it out"
        )
        raise RecipeError(f"protocol '{protocol}': {having}")
    if "name" in keys:
        raise RecipeError(
            f"name: the benchmark is the first argument, and that is '{benchmark}'; leave it out"
        )
    rules = (
        {}
        if protocol is None
        else load_recipe(protocol_recipe(benchmark, protocol)).env.model_dump(exclude_unset=True)
    )
    try:
        return EnvSection.model_validate(_over(rules, {"name": benchmark, **keys}))
    except ValidationError as error:
        raise RecipeError("; ".join(f"env.{explain(each, EnvSection)}" for each in error.errors())) from None


def _over(rules: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """The keys over the rules, section by section."""
    both = {
        name: _over(rules[name], value)
        for name, value in keys.items()
        if isinstance(value, dict) and isinstance(rules.get(name), dict)
    }
    return rules | keys | both
