"""Kept episodes of random experience, for tests: nothing is played and no model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from paw_hpc.evaluation.episodes import record
from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.experience import Pool
from paw_hpc.objective.plan import plan
from paw_hpc.policy.loading import WARM_START
from paw_hpc.recipe import Recipe, dump_recipe
from tests.factories import random_groups, random_scores, tiny_recipe

ALL = 10**9


def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WARM_START)


def update(
    number: int = 0, seed: int = 0, recipe: Recipe | None = None, **options: Any
) -> tuple[record.Update, Recipe]:
    """An update of random groups, and the log-probs that its training pass would have seen."""
    recipe = recipe or tiny_recipe(**{"episodes.groups": 2})
    pool = Pool.from_groups(random_groups(seed, recipe.rollout.groups, recipe.rollout.group_size, **options))
    scores = random_scores(pool, seed)
    planned = plan(pool, scores, recipe, number)
    rows = (
        -np.random.default_rng([seed, number, 5]).exponential(1.5, planned.batch.num_rows).astype(np.float32)
    )
    return record.Update(number, pool, scores, planned, torch.from_numpy(rows)), recipe


def rows(number: int = 0, seed: int = 0, recipe: Recipe | None = None, **options: Any) -> pa.Table:
    """The kept steps of such an update."""
    made, chosen = update(number, seed, recipe, **options)
    return record.training_rows(made, chosen, tokenizer())


def run_of(path: Path, updates: int = 3, *, name: str = "made", seed: int = 0, **dotted: Any) -> Path:
    """A run directory that has a recipe and kept updates alone."""
    recipe = tiny_recipe(**{"name": name, "episodes.groups": 2, "rollout.max_prompt_tokens": 64, **dotted})
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    folder = EpisodeFolder(path, ALL)
    for number in range(updates):
        folder.write_update(number, rows(number, seed + number, recipe))
    return path
