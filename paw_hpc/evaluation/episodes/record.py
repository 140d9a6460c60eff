"""Rows of what an update, or an evaluation, has in hand anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from paw_hpc.evaluation.episodes.schema import STEP, VERSION, VERSION_KEY
from paw_hpc.evaluation.episodes.spelling import Speller
from paw_hpc.experience import OBSERVATION, Episode, Floats, Group, Ids, Pool, Scores, Transition
from paw_hpc.objective.plan import Plan
from paw_hpc.recipe import Recipe
from paw_hpc.system.seeding import generator

Place = tuple[int, int]
"""(index of the episode, step)."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update of training, after its policy was trained."""

    number: int
    pool: Pool
    scores: Scores
    planned: Plan
    row_logp: torch.Tensor
    """float32[R]: of every row's target, as the pass of the first epoch saw it."""


@dataclass(frozen=True, slots=True)
class Played:
    """One evaluation. What nobody asked about has no entry."""

    update: int
    label: str
    repeats: int
    groups: Sequence[Group]
    entropies: Mapping[Place, Floats] = field(default_factory=dict)
    """float32[response tokens]."""
    observation_logp: Mapping[Place, Floats] = field(default_factory=dict)
    """float32[observation tokens]."""
    predicted: Mapping[Place, Ids] = field(default_factory=dict)


def chosen_groups(recipe: Recipe, update: int) -> list[int]:
    """Numbers of the groups of an update that are kept: a seeded choice, the same for every recipe with this
    seed and number of groups."""
    order = generator(recipe.seed, "episodes", update).permutation(recipe.rollout.groups)
    return sorted(int(number) for number in order[: recipe.episodes.groups])


def training_rows(update: Update, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    """The steps of the chosen groups, in pool order (schema.STEP). Episodes that the environment broke are in
    no pool and not here."""
    pool, planned, speller = update.pool, update.planned, Speller(tokenizer)
    batch, members = planned.batch, recipe.rollout.group_size
    wanted = set(chosen_groups(recipe, update.number))
    action_at = np.cumsum([0, *(len(t.response_ids) for t in pool.transitions)])
    row_at = batch.row_cu.tolist()
    true_targets = recipe.wm.target == "true"  # the control trains on another transition's observation
    rows = []
    for n, t in enumerate(pool.transitions):
        if t.group not in wanted:
            continue
        own = slice(int(action_at[n]), int(action_at[n + 1]))
        row = _row(t, pool.episodes[int(pool.episode[n])], speller, members)
        row |= {"purpose": "train", "update": update.number, "label": ""}
        row |= {
            "old_logp": update.scores.old_logp[own].numpy(),
            "token_entropy": update.scores.entropy[own].numpy(),
        }
        row |= {
            "entropy": float(planned.entropy[n]),
            "advantage": float(planned.advantage[n]),
            "selected": bool(planned.selected[n]),
        }
        seen = slice(row_at[n], row_at[n + 1])
        observed = batch.row_kind[seen] == OBSERVATION
        weight = float(batch.streams["weight"][seen][observed].double().sum())
        row |= {"wm_lambda": float(planned.coefficient[pool.group[n]]), "wm_weight": weight}
        if true_targets and bool(observed.any()):
            row |= _prediction(update.row_logp[seen][observed].numpy(), recipe)
        rows.append(row)
    return _table(rows, recipe)


def excerpt(rows: pa.Table, episodes: int = 4) -> list[dict[str, Any]]:
    """A few episodes of kept rows, in the columns that a person reads."""
    columns = [
        "update",
        "group",
        "member",
        "step",
        "task_id",
        "action",
        "observation",
        "valid",
        "reward",
        "advantage",
        "selected",
        "success",
    ]
    listed = rows.select(columns).to_pylist()
    first = list(dict.fromkeys((row["group"], row["member"]) for row in listed))[:episodes]
    return [row for row in listed if (row["group"], row["member"]) in first]


def evaluation_rows(played: Played, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    """All steps of an evaluation (schema.STEP), in the order of tasks, repeats, steps; without the episodes
    that the environment broke."""
    speller, rows = Speller(tokenizer), []
    for episode in (e for group in played.groups for e in group.episodes if not e.failed_by_environment):
        for t in episode.transitions:
            place = (episode.index, t.step)
            row = _row(t, episode, speller, played.repeats)
            row |= {"purpose": "eval", "update": played.update, "label": played.label}
            if (entropies := played.entropies.get(place)) is not None:
                row |= {
                    "token_entropy": entropies,
                    "entropy": float(np.mean(entropies, dtype=np.float64)) if len(entropies) else 0.0,
                }
            if (logp := played.observation_logp.get(place)) is not None:
                row |= _prediction(logp, recipe)
            if (ids := played.predicted.get(place)) is not None:
                row |= {"predicted_ids": ids, "predicted": speller.text(ids)}
            rows.append(row)
    return _table(rows, recipe)


def _row(t: Transition, episode: Episode, speller: Speller, members: int) -> dict[str, Any]:
    """What every step has; the other columns are null until they are said."""
    response, response_ends = speller.ends(t.response_ids)
    observation, observation_ends = speller.ends(t.observation_ids)
    return dict.fromkeys(STEP.names) | {
        "group": t.group,
        "member": episode.index % members,
        "step": t.step,
        "task_id": episode.task_id,
        "task_type": episode.task_type,
        "seed": episode.seed,
        "steps": len(episode.transitions),
        "success": episode.success,
        "score": episode.score,
        "episode_return": episode.episode_return,
        "prompt": speller.text(t.prompt_ids),
        "response": response,
        "action": t.action,
        "observation": observation,
        "prompt_ids": t.prompt_ids,
        "response_ids": t.response_ids,
        "response_ends": response_ends,
        "bridge_ids": t.bridge_ids,
        "observation_ids": t.observation_ids,
        "observation_ends": observation_ends,
        "reward": t.reward,
        "valid": t.valid,
        "weight_version": t.weight_version,
        "token_versions": t.token_versions,
        "behaviour_logp": t.response_logprobs,
    }


def _prediction(logp: Floats, recipe: Recipe) -> dict[str, Any]:
    masks = recipe.wm.enabled and recipe.wm.loss == "clipped_mae"
    # in the loss's own words (objective.world_model.clipped_mae)
    silenced = ~(torch.from_numpy(logp).exp() <= recipe.wm.rho) if masks else None
    return {"observation_logp": logp, "silenced": None if silenced is None else silenced.numpy()}


def _table(rows: Sequence[dict[str, Any]], recipe: Recipe) -> pa.Table:
    columns = [pa.array([row[column.name] for row in rows], type=column.type) for column in STEP]
    said = {
        VERSION_KEY: str(VERSION).encode(),
        b"paw_hpc.recipe": recipe.name.encode(),
        b"paw_hpc.seed": str(recipe.seed).encode(),
    }
    return pa.Table.from_arrays(columns, schema=STEP.with_metadata(said))
