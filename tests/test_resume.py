"""What may be different when a run goes on: every key of a recipe changed once, and the table in
docs/resuming.md.

`python -m tests.test_resume` prints the table.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paw_hpc import loop
from paw_hpc.cluster.submit import Launchable, prepare
from paw_hpc.evaluation.panel import evaluate_path
from paw_hpc.policy.loading import WARM_START
from paw_hpc.recipe import Recipe, load_recipe, parse_recipe
from paw_hpc.recipe.resume import differences, known_verdict
from paw_hpc.run import metrics
from paw_hpc.run.changes import Change, begin, read_changes, record
from paw_hpc.run.metrics import RunDirectory, read_metrics
from paw_hpc.study.report import write_report
from paw_hpc.system.errors import CheckpointError
from tests.recipe_values import KEYS, changed, get_key

DOCUMENT = Path(__file__).parents[1] / "docs" / "resuming.md"
MEANING = {
    "free": "goes through",
    "by name": "`--change`",
    "checksum": "goes through if the weights are the same",
    "never": "another run",
}


def table() -> str:
    """The verdict on every key, in the order of the models."""
    rows = [
        (
            key,
            MEANING[known_verdict(key) or "never"]
            + (" (`--change` under a schedule)" if key == "updates" else ""),
        )
        for key in KEYS
    ]
    return "\n".join(
        ["| key | when a run goes on |", "|---|---|", *(f"| `{key}` | {what} |" for key, what in rows)]
    )


def test_somebody_has_thought_about_every_key() -> None:
    assert [key for key in KEYS if known_verdict(key) is None] == [], (
        "put them into a list of recipe/resume.py"
    )


def test_the_table_in_the_documents_is_that_of_the_models() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "python -m tests.test_resume prints the table"


def opens(run: Path, recipe: Recipe, *change: str) -> bool:
    try:
        RunDirectory(run).open(recipe, "test", change)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("key", KEYS)
def test_every_key_changed_once(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "revision", str)
    old, new = changed(key)
    assert get_key(old, key) != get_key(new, key) and {
        known_verdict(each.key) for each in differences(old, new)
    } == {known_verdict(key)}
    RunDirectory(tmp_path).open(old, "test")
    verdict = known_verdict(key)
    assert opens(tmp_path, new) == (verdict in ("free", "checksum"))
    if verdict in ("free", "checksum"):
        assert not opens(tmp_path, old, key) or key == "updates", "a wish for what needs none is a mistake"
    elif verdict == "by name":
        assert RunDirectory(tmp_path).recipe() == old and read_changes(tmp_path) == []
        assert opens(tmp_path, new, key) and RunDirectory(tmp_path).recipe() == new
        assert [(each.key, each.new, each.update) for each in read_changes(tmp_path)] == [
            (key, get_key(new, key), None)
        ]
        assert opens(tmp_path, new, key) and opens(tmp_path, new), (
            "the same command again, and what comes after"
        )
        assert len(read_changes(tmp_path)) == 1
    else:
        assert not opens(tmp_path, new, key) and RunDirectory(tmp_path).recipe() == old


def test_a_refusal_says_how_to_go_on(tmp_path: Path) -> None:
    def recipe(**sections: Any) -> Recipe:
        return parse_recipe({"model": {"path": "m"}, **sections})

    RunDirectory(tmp_path).open(recipe(), "test")
    lower = {"optimizer": {"lr": 5e-7}, "algorithm": {"truncated_importance": 2.0}}
    with pytest.raises(
        CheckpointError,
        match=r"\(algorithm\.truncated_importance: None -> 2\.0\); .*importance --change optimizer\.lr; or",
    ):
        RunDirectory(tmp_path).open(recipe(**lower), "test", ["optimizer.lr"])
    with pytest.raises(
        CheckpointError, match=r"\(seed: 0 -> 1, optimizer\.lr.*\); give another --run-dir, or --fresh"
    ):
        RunDirectory(tmp_path).open(recipe(seed=1, optimizer={"lr": 1.0}), "test", ["optimizer.betas"])
    for key, why in (
        ("optimizer.lrr", "no such key"),
        ("seed", "a run keeps it"),
        ("threads", "it needs no --change"),
        ("optimizer", "no such key"),
    ):
        with pytest.raises(CheckpointError, match=f"--change {re.escape(key)}: {why}"):
            RunDirectory(tmp_path).open(recipe(), "test", [key])


def test_a_change_holds_from_where_the_run_goes_on(tmp_path: Path) -> None:
    old, new = (parse_recipe({"model": {"path": "m"}, "optimizer": {"lr": lr}}) for lr in (1e-6, 2e-6))
    record(tmp_path, differences(old, new))
    begin(tmp_path, 10)
    record(tmp_path, differences(new, old))
    assert list(map(str, read_changes(tmp_path))) == [
        "optimizer.lr: 1e-06 -> 2e-06 from update 10 on",
        "optimizer.lr: 2e-06 -> 1e-06 from its next start on",
    ]
    begin(tmp_path, 8)  # checkpoint 10 was torn
    assert [change.update for change in read_changes(tmp_path)] == [8, 8]


def small(model: str = "warm-start", **more: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "small",
        "updates": 1,
        "threads": 1,
        "env": {
            "prompt": "compact",
            "max_steps": 3,
            "train_games": 6,
            "task_types": ["pick_and_place_simple"],
        },
        "model": {"path": model},
        "rollout": {"groups": 1, "group_size": 2, "max_prompt_tokens": 512, "max_response_tokens": 12},
        "algorithm": {"kl_coefficient": 0.0},
        "optimizer": {"lr": 1e-4},
        "checkpoint": {"every": 1},
    }
    for key, value in more.items():
        section, _, name = key.partition("__")
        data[section] = {**data.get(section, {}), name: value} if name else value
    return parse_recipe(data)


FREE = {
    "optimizer__max_tokens_per_micro_batch": 700,
    "model__head_chunk_rows": 64,
    "model__gradient_checkpointing": True,
    "model__device": "cpu",
    "rollout__max_batch": 1,
    "env__step_timeout_s": 60.0,
}


def test_a_run_goes_on_with_what_its_errors_advise_and_tells_of_it(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "the same model"
    shutil.copytree(WARM_START, elsewhere)
    loop.train(small(), run, command="test")
    loop.train(small(str(elsewhere), updates=2, **FREE), run, command="test")
    names = [
        "optimizer.lr",
        "optimizer.betas",
        "optimizer.weight_decay",
        "algorithm.truncated_importance",
        "rollout.max_prompt_tokens",
    ]
    other = {
        "optimizer__lr": 3e-5,
        "optimizer__betas": [0.5, 0.6],
        "optimizer__weight_decay": 0.5,
        "algorithm__truncated_importance": 2.0,
        "rollout__max_prompt_tokens": 600,
    }
    changed = small(str(elsewhere), updates=3, **FREE, **other)
    with pytest.raises(CheckpointError, match=r"--change rollout\.max_prompt_tokens"):
        loop.train(changed, run, command="test")
    loop.train(changed, run, command="test", change=names)
    assert [line["policy/lr"] for line in read_metrics(run / "metrics.jsonl")] == [1e-4, 1e-4, 3e-5]
    assert {(change.key, change.update) for change in read_changes(run)} == {(name, 2) for name in names}
    text = write_report([run]).markdown.read_text(encoding="utf-8")
    assert "small was changed on its way: optimizer.lr: 0.0001 -> 3e-05 from update 2 on" in text
    assert evaluate_path(str(run), panel="valid_seen:1@0", overrides=["env.max_steps=2"]).update == 3, (
        "judged by other rules than it was trained by"
    )
    # An attempt that has only the checkpoint from before the change goes on with it, too, unasked.
    shutil.rmtree(run / "checkpoints" / "update_000003")
    assert loop.train(changed, run, command="test").updates == 3


def test_the_recipes_settings_of_the_optimizer_hold_after_a_resume(tmp_path: Path) -> None:
    """AdamW would go on with those that are stored with its moments."""
    from paw_hpc.policy.huggingface import HuggingFacePolicy

    first = HuggingFacePolicy(small())
    first.save(tmp_path, 1, {"recipe": small().model_dump(mode="json")}, keep=1)
    second = HuggingFacePolicy(
        small(optimizer__betas=[0.5, 0.6], optimizer__eps=1e-3, optimizer__weight_decay=0.5)
    )
    second.resume(tmp_path, ["optimizer"])
    settings = [
        (group["betas"], group["eps"], group["weight_decay"]) for group in second.optimizer.adamw.param_groups
    ]
    assert settings == [((0.5, 0.6), 1e-3, 0.5), ((0.5, 0.6), 1e-3, 0.0)]


def test_another_model_under_another_path_is_found_out(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    run, elsewhere = tmp_path / "run", tmp_path / "another model"
    shutil.copytree(WARM_START, elsewhere)
    loop.train(small(), run, command="test")
    [weights] = elsewhere.glob("*.safetensors")
    tensors = load_file(weights)
    name = sorted(tensors)[3]
    tensors[name] = tensors[name] + torch.ones_like(tensors[name]) * 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model\.path: its weights are not those that the run began with"
    ):
        loop.train(small(str(elsewhere), updates=2), run, command="test")


def test_launched_runs_are_changed_alike(tmp_path: Path) -> None:
    run, model = tmp_path / "run", str(WARM_START)
    RunDirectory(run).open(small(model), "test")
    lower = small(model, optimizer__lr=1e-5)
    with pytest.raises(CheckpointError, match=r"--change optimizer\.lr"):
        Launchable.of(lower, run)
    prepare(Launchable.of(lower, run, ["optimizer.lr"]))
    assert (
        read_changes(run) == [Change("optimizer.lr", 1e-4, 1e-5, None)]
        and load_recipe(run / "recipe.yaml") == lower
    )


def test_the_command_line_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paw_hpc.cli.main import app

    called: dict[str, Any] = {}
    monkeypatch.setattr(loop, "train", lambda *_, **options: called.update(options))
    path = tmp_path / "r.yaml"
    path.write_text("model: {path: m}\n")
    done = CliRunner().invoke(
        app, ["train", str(path), "optimizer.lr=1", "--change", "optimizer.lr", "--change", "wm.rho"]
    )
    assert done.exit_code == 0, done.output
    assert called["change"] == ["optimizer.lr", "wm.rho"]
    assert json.dumps(called["change"])


if __name__ == "__main__":
    print(table())
