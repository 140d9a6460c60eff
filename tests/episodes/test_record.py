"""Every column of a kept step is what the update, or the evaluation, had in hand; the columns themselves are
frozen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from paw_hpc.evaluation.episodes import record
from paw_hpc.evaluation.episodes.schema import STEP, VERSION
from paw_hpc.evaluation.episodes.spelling import Speller, pieces
from paw_hpc.experience import OBSERVATION
from tests.episodes import made
from tests.factories import random_groups, tiny_recipe

FROZEN = (
    "purpose:string! update:int32! label:string! group:int32! member:int32! step:int32! task_id:string! "
    "task_type:string! seed:int64! steps:int32! "
    "success:bool! score:double! episode_return:double! prompt:string! response:string! action:string! "
    "observation:string! prompt_ids:[int32]! "
    "response_ids:[int32]! response_ends:[int32]! bridge_ids:[int32]! observation_ids:[int32]! "
    "observation_ends:[int32]! reward:double! valid:bool! "
    "weight_version:int32! token_versions:[int32] behaviour_logp:[float]! old_logp:[float] "
    "token_entropy:[float] entropy:double advantage:double "
    "selected:bool wm_lambda:double wm_weight:double observation_logp:[float] silenced:[bool] "
    "predicted:string predicted_ids:[int32]"
)
"""The columns of version 1; `!`: never null."""


def said(schema: pa.Schema) -> str:
    def kind(type_: pa.DataType) -> str:
        return f"[{type_.value_type}]" if pa.types.is_list(type_) else str(type_)

    return " ".join(f"{column.name}:{kind(column.type)}{'' if column.nullable else '!'}" for column in schema)


def test_the_columns_are_frozen() -> None:
    assert (VERSION, said(STEP)) == (1, FROZEN), (
        "a column that is renamed, removed or means another thing: raise VERSION, and say so in "
        "docs/episodes.md"
    )


def test_every_field_of_training_comes_back() -> None:
    update, recipe = made.update()
    kept = record.training_rows(update, recipe, made.tokenizer()).to_pylist()
    pool, planned, scores = update.pool, update.planned, update.scores
    chosen = record.chosen_groups(recipe, 0)
    mine = [n for n, t in enumerate(pool.transitions) if t.group in chosen]
    assert len(chosen) == 2 and len(kept) == len(mine) and len(mine) < len(pool)
    sample, text = pool.action_sample, made.tokenizer()
    of_row = torch.repeat_interleave(
        torch.arange(len(pool)), planned.batch.row_cu[1:] - planned.batch.row_cu[:-1]
    )
    for n, row in zip(mine, kept, strict=True):
        t, episode = pool.transitions[n], pool.episodes[int(pool.episode[n])]
        seen = (of_row == n) & (planned.batch.row_kind == OBSERVATION)
        logp = update.row_logp[seen].tolist()
        weight = float(planned.batch.streams["weight"][seen].sum())
        expected = {
            "purpose": "train",
            "update": 0,
            "label": "",
            "group": t.group,
            "member": episode.index - t.group * recipe.rollout.group_size,
            "step": t.step,
            "task_id": episode.task_id,
            "task_type": episode.task_type,
            "seed": episode.seed,
            "steps": len(episode.transitions),
            "success": episode.success,
            "score": episode.score,
            "episode_return": episode.episode_return,
            "prompt": text.decode(t.prompt_ids),
            "response": text.decode(t.response_ids),
            "action": t.action,
            "observation": text.decode(t.observation_ids),
            "prompt_ids": t.prompt_ids.tolist(),
            "response_ids": t.response_ids.tolist(),
            "bridge_ids": t.bridge_ids.tolist(),
            "observation_ids": t.observation_ids.tolist(),
            "reward": t.reward,
            "valid": t.valid,
            "weight_version": 0,
            "token_versions": None,
            "behaviour_logp": t.response_logprobs.tolist(),
            "old_logp": scores.old_logp[sample == n].tolist(),
            "token_entropy": scores.entropy[sample == n].tolist(),
            "entropy": pytest.approx(float(scores.entropy[sample == n].double().mean())),
            "advantage": float(planned.advantage[n]),
            "selected": bool(planned.selected[n]),
            "wm_lambda": float(planned.coefficient[pool.group[n]]),
            "wm_weight": pytest.approx(weight),
            "observation_logp": logp or None,
            "silenced": [bool(np.exp(np.float32(v)) > 0.2) for v in logp] or None,
            "predicted": None,
            "predicted_ids": None,
        }
        for name in ("response", "observation"):
            tokens = pieces(row[name], row.pop(f"{name}_ends"))
            assert "".join(tokens) == row[name] and len(tokens) == len(row[f"{name}_ids"])
        assert row == expected
    assert {row["selected"] for row in kept} == {True, False} and any(
        any(row["silenced"] or ()) for row in kept
    )
    assert all((row["wm_weight"] > 0) == (row["observation_logp"] is not None) for row in kept)


def test_an_observation_that_was_exchanged_has_no_probability_of_its_own() -> None:
    """The control trains on another transition's observation: its log-probs are not of the text that is
    kept."""
    recipe = tiny_recipe(**{"episodes.groups": 2, "wm.target": "shuffled"})
    kept = made.rows(recipe=recipe).to_pylist()
    assert any(row["wm_weight"] > 0 for row in kept) and all(row["observation_logp"] is None for row in kept)


def test_silenced_is_said_of_clipped_mae_alone() -> None:
    recipe = tiny_recipe(**{"episodes.groups": 2, "wm.loss": "cross_entropy"})
    kept = made.rows(recipe=recipe).to_pylist()
    assert any(row["observation_logp"] for row in kept) and all(row["silenced"] is None for row in kept)


def test_arms_with_one_seed_keep_the_same_groups_and_updates_others() -> None:
    arms = [
        tiny_recipe(**{"episodes.groups": 2, "rollout.groups": 12, "wm.enabled": on}) for on in (True, False)
    ]
    chosen = [[record.chosen_groups(arm, number) for number in range(8)] for arm in arms]
    assert chosen[0] == chosen[1] and len({tuple(groups) for groups in chosen[0]}) > 4
    assert all(len(set(groups)) == 2 for groups in chosen[0])
    other = tiny_recipe(**{"episodes.groups": 2, "rollout.groups": 12, "seed": 1})
    assert [record.chosen_groups(other, number) for number in range(8)] != chosen[0]


def test_an_evaluation_is_whole_and_says_what_was_asked() -> None:
    groups = random_groups(1, 3, 2)
    broken = groups[1].episodes[0]
    broken.failed_by_environment = True
    asked, t = (groups[2].episodes[1].index, 0), groups[2].episodes[1].transitions[0]
    logp = np.linspace(-3, -0.1, len(t.observation_ids), dtype=np.float32)
    played = record.Played(
        7, "end", 2, groups, {asked: np.float32([1.0, 2.0])}, {asked: logp}, {asked: t.observation_ids[:1]}
    )  # the entropies need not fit to be kept as they are
    kept = record.evaluation_rows(played, tiny_recipe(), made.tokenizer()).to_pylist()
    assert len(kept) == sum(len(e.transitions) for g in groups for e in g.episodes if e is not broken)
    assert {(row["purpose"], row["update"], row["label"]) for row in kept} == {("eval", 7, "end")}
    assert {(row["group"], row["member"]) for row in kept} == {(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)}
    [row] = [row for row in kept if (row["group"] * 2 + row["member"], row["step"]) == asked]
    assert (
        row["observation_logp"] == logp.tolist()
        and row["silenced"] == (np.exp(logp) > 0.2).tolist()
        and row["entropy"] == 1.5
    )
    assert row["predicted_ids"] == t.observation_ids[:1].tolist() and row[
        "predicted"
    ] == made.tokenizer().decode(t.observation_ids[:1])
    others = [other for other in kept if other is not row]
    assert all(
        other[name] is None
        for other in others
        for name in ("observation_logp", "silenced", "predicted", "entropy", "advantage", "old_logp")
    )


def test_where_tokens_end_in_the_text() -> None:
    """Characters of several bytes are spelled by the token that completes them; what never becomes a
    character belongs to the last token."""
    tokenizer = made.tokenizer()
    text = "a drawer <|im_end|> in the café: 日本 🎉"
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
    spelled, ends = Speller(tokenizer).ends(ids)
    assert spelled == tokenizer.decode(ids) and ends == sorted(ends) and ends[-1] == len(spelled)
    assert "".join(pieces(spelled, ends)) == spelled
    assert Speller(tokenizer).ends(ids[:0]) == ("", [])


def test_a_step_whose_weights_changed_within() -> None:
    update, recipe = made.update()
    update.pool.transitions[:] = [
        dataclasses.replace(t, token_versions=np.arange(len(t.response_ids), dtype=np.int32))
        for t in update.pool.transitions
    ]
    kept = record.training_rows(update, recipe, made.tokenizer()).to_pylist()
    assert all(row["token_versions"] == list(range(len(row["response_ids"]))) for row in kept)
