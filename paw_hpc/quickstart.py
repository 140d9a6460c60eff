"""`make run`: from one warm start, vanilla RL and RL with PaW on the same games and seeds: the study of two arms and one seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paw_hpc import study
from paw_hpc.errors import RecipeError
from paw_hpc.recipe import load_recipe

ARMS = {"vanilla": False, "paw": True}


def run(recipe_path: str | Path, overrides: Sequence[str], directory: Path) -> bool:
    """Train both arms side by side in `directory`/ARM, judge them, write `directory`/report.

    Returns:
        False when it ended early (see `study.run`).

    Raises:
        RecipeError: a recipe without a world model: there is nothing to compare.
    """
    recipe = load_recipe(recipe_path, overrides)
    if not recipe.wm.enabled:
        raise RecipeError(f"{recipe_path}: wm.enabled: the quickstart compares a recipe with its vanilla arm; leave it true here")
    runs = [
        study.PlannedRun(arm, Path(recipe_path), (*overrides, f"name={recipe.name}-{arm}", f"wm.enabled={str(enabled).lower()}"), directory / arm)
        for arm, enabled in ARMS.items()
    ]
    return study.run(runs, directory / "report", parallel=len(ARMS)) is not None
