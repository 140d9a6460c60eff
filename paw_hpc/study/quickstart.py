"""`make run`: from one warm start, vanilla RL and RL with PaW on the same games and seeds: the study of two
arms and one seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from paw_hpc.recipe import load_recipe
from paw_hpc.study import local
from paw_hpc.system.errors import RecipeError

ARMS = {"vanilla": False, "paw": True}


def for_the_games_at_hand() -> Path:
    """The quickstart's name: on official games where there are any, else on the generated ones that come with
    the package. Says so."""
    from paw_hpc.envs.alfworld import official

    found = official.find()
    games = (
        f"official games at {found.path}"
        if found
        else "no official games here: generated ones, and a policy that was cloned on such"
    )
    print(f"quickstart: {games}", file=sys.stderr)
    return Path("quickstart" if found else "quickstart-generated")


def run(recipe_path: str | Path, overrides: Sequence[str], directory: Path) -> bool:
    """Train both arms side by side in `directory`/ARM, judge them, write `directory`/report.

    Returns:
        False when it ended early (see `local.run`).

    Raises:
        RecipeError: a recipe without a world model: there is nothing to compare.
    """
    recipe = load_recipe(recipe_path, overrides)
    if not recipe.wm.enabled:
        raise RecipeError(
            f"{recipe_path}: wm.enabled: the quickstart compares a recipe with its vanilla arm; leave it "
            "true here"
        )
    runs = [
        local.PlannedRun(
            arm,
            Path(recipe_path),
            (*overrides, f"name={recipe.name}-{arm}", f"wm.enabled={str(enabled).lower()}"),
            directory / arm,
        )
        for arm, enabled in ARMS.items()
    ]
    return local.run(runs, directory / "report", parallel=len(ARMS)) is not None
