"""By which rules `paw eval` judges a target: a run's or a folder's own recipe, or one of the two protocols,
whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paw_hpc.recipe import PROTOCOLS, Recipe, load_recipe, panels_of, policy_folder
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.protocols import judged_as
from paw_hpc.recipe.shipped import protocol_recipe
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.errors import UserError

_ALONE = ("algorithm.kl_coefficient=0.0", "wm.enabled=false")
"""Of a protocol when a model is judged alone: no second copy of it as the KL loss's reference, no room kept
for training on observations."""


@dataclass(frozen=True, slots=True)
class Case:
    """Who is judged by which rules."""

    recipe: Recipe
    run: RunDirectory | None
    """The run whose newest checkpoint is judged; None: the policy that the recipe begins with."""


def judged(
    target: str,
    panel: str,
    *,
    protocol: str | None = None,
    benchmark: str | None = None,
    overrides: Sequence[str] = (),
) -> Case:
    """The rules for a target.

    Args:
        target: a run directory, a recipe file, or a model: a folder or a hub name.
        protocol: `reference` or `ours`; none: the target's own recipe (a run's, a recipe file's, a folder's
            recipe.yaml).
        benchmark: whose protocol; none: that of the target's own recipe, else the one that has such a panel.
        overrides: `key.path=value`, over everything else.

    Raises:
        UserError: neither protocol nor recipe, an unknown name, or a panel that several benchmarks have.
        DataError: the shipped recipes are missing.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: one of {', '.join(PROTOCOLS)}")
    if benchmark is not None and benchmark not in BENCHMARKS.names():
        raise UserError(f"--benchmark {benchmark}: one of {', '.join(BENCHMARKS.names())}")
    if benchmark is not None and protocol is None:
        raise UserError("--benchmark: it chooses whose protocol judges; give --protocol as well")
    run = RunDirectory(target)
    if run.exists and not (run.path / "config.json").is_file():  # a model's folder may hold a recipe, too
        run.recipe()  # says what is wrong with it
        return Case(_by(run.recipe_path, (), protocol, benchmark, overrides), run)
    if Path(target).suffix in (".yaml", ".yml"):
        return Case(_by(Path(target), (), protocol, benchmark, overrides), None)
    named = f"model.path={json.dumps(target)}"
    if protocol is not None:
        rules = protocol_recipe(benchmark or _benchmark_of(panel), protocol)
        return Case(load_recipe(rules, [named, *_ALONE, *overrides]), None)
    own = (policy_folder(target) or Path(target)) / "recipe.yaml"
    if not own.is_file():
        raise UserError(
            f"{target}: no recipe.yaml in it says by which rules it is judged; give --protocol reference, "
            "or --protocol ours"
        )
    return Case(load_recipe(own, [named, *overrides]), None)


def _by(
    path: Path, changes: Sequence[str], protocol: str | None, benchmark: str | None, overrides: Sequence[str]
) -> Recipe:
    """A recipe as it is, or with what decides an episode's course taken from a protocol; its model stays."""
    recipe = load_recipe(path, [*changes, *overrides])
    if protocol is None:
        return recipe
    rules = protocol_recipe(benchmark or recipe.env.name, protocol)
    own = [item for item in overrides if item.split("=")[0].split(".")[0] in ("env", "eval", "rollout")]
    return judged_as(recipe, load_recipe(rules, own))


def _benchmark_of(panel: str) -> str:
    name = panel.partition(":")[0]
    having = [benchmark for benchmark in BENCHMARKS.names() if name in panels_of(benchmark)]
    if len(having) == 1:
        return having[0]
    known = "; ".join(f"{benchmark}: {', '.join(panels_of(benchmark))}" for benchmark in BENCHMARKS.names())
    if having:
        raise UserError(f"--panel {panel}: {' and '.join(having)} have one of this name; give --benchmark")
    raise UserError(f"--panel {panel}: no such panel ({known})")
