"""The loop on real games: it resumes where it stopped, obeys signals, refuses what is not its own, and lambda
= 0 is vanilla."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from paw_hpc import loop
from paw_hpc.envs.base import Task
from paw_hpc.evaluation.panel import evaluate_path
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.policy import checkpoint
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.recipe import Recipe, dump_recipe, parse_recipe
from paw_hpc.rollout.collector import Collector
from paw_hpc.run.metrics import MetricsWriter, RunDirectory, read_metrics
from paw_hpc.study.report import print_evaluation
from paw_hpc.system.errors import CheckpointError, StorageError, TrainingError

SMALL = {
    "name": "small",
    "seed": 3,
    "updates": 4,
    "threads": 1,
    "env": {"prompt": "compact", "max_steps": 3, "train_games": 6, "task_types": ["pick_and_place_simple"]},
    "model": {"path": "warm-start"},
    "rollout": {"groups": 2, "group_size": 3, "max_prompt_tokens": 512, "max_response_tokens": 12},
    "algorithm": {"kl_coefficient": 0.01},
    "optimizer": {"lr": 1e-4, "mini_batch": 8},
    "checkpoint": {"every": 1},
}


def small(**sections: dict[str, object] | object) -> Recipe:
    merged = {**SMALL}
    for name, value in sections.items():
        merged[name] = (
            {**merged[name], **value}
            if isinstance(value, dict) and isinstance(merged.get(name), dict)
            else value
        )
    return parse_recipe(merged)


def stream(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, less wall-clock times."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "system/")) and k != "policy/seconds"}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, nested in value.items():
                collect(f"{name}/{key}", nested)

    collect("", checkpoint.load(newest)[0])
    return found


def kept(run: Path) -> dict[str, bytes]:
    """The files of kept episodes."""
    return {path.name: path.read_bytes() for path in (run / "episodes").iterdir()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates without a stop."""
    run = tmp_path_factory.mktemp("loop") / "straight"
    outcome = loop.train(small(), run, command="test")
    assert outcome.updates == 4 and outcome.stopped_by is None
    return run


def test_resumed_equals_uninterrupted_on_another_number_of_workers(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "resumed"
    loop.train(small(updates=2, env={"workers": 4}), run, command="test")
    assert len(stream(run)) == 2
    loop.train(small(env={"workers": 1}), run, command="test")
    assert stream(run) == stream(straight)
    assert same(weights(run), weights(straight))
    assert kept(run) == kept(straight) and len(kept(run)) == 4


def test_another_seed_is_another_run(straight: Path, tmp_path: Path) -> None:
    loop.train(small(updates=1, seed=4), tmp_path / "other", command="test")
    assert stream(tmp_path / "other")[0] != stream(straight)[0]


def test_fresh_sets_aside_resume_demands_and_the_default_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(resume: bool | None) -> Path:
        return loop._open(RunDirectory(tmp_path / "run"), small(), "x", resume)

    with pytest.raises(CheckpointError, match="no run to resume here; leave out --resume"):
        opened(True)
    assert [opened(resume).name for resume in (None, True, None)] == ["attempt_1", "attempt_2", "attempt_3"]
    assert opened(False).name == "attempt_1" and "run.old-1" in capsys.readouterr().err
    assert RunDirectory(tmp_path / "run.old-1").exists


def _start(recipe: Recipe, run: Path) -> subprocess.Popen[bytes]:
    path = run.with_suffix(".yaml")
    path.write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "paw_hpc.cli.main", "train", str(path), "--run-dir", str(run)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def _wait_for_updates(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(run / "metrics.jsonl")) < count:
        assert process.poll() is None and time.monotonic() < deadline, (
            process.communicate()[1] or b""
        ).decode()
        time.sleep(0.02)


def test_a_signal_saves_and_a_kill_loses_nothing(straight: Path, tmp_path: Path) -> None:
    """SIGTERM ends the run cleanly after the update it is in; SIGKILL leaves whole checkpoints; the final
    stream is the uninterrupted one."""
    run = tmp_path / "stopped"
    first = _start(small(), run)
    _wait_for_updates(run, 1, first)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said.decode()
    assert b"SIGTERM" in said
    done = len(stream(run))
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and checkpoint.load(newest)[1]["update"] == done
    second = _start(small(), run)
    try:
        _wait_for_updates(run, min(done + 1, 4), second)
    finally:
        second.kill()
        second.wait()
    loop.train(small(), run, command="test")
    assert stream(run) == stream(straight)
    assert same(weights(run), weights(straight))
    assert kept(run) == kept(straight) and len(kept(run)) == 4


def test_a_run_of_another_recipe_is_refused_with_the_key(straight: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wm\.alpha"):
        loop.train(small(wm={"alpha": 0.5}), straight, command="test")


def _without(what: str, checkpoints: Path) -> None:
    if what == "torn":
        for state in checkpoints.glob("*/state.pt"):
            state.write_bytes(state.read_bytes()[:100])
    else:
        shutil.rmtree(checkpoints)
        if what == "empty":
            checkpoints.mkdir()
        if what == "unreadable":  # as root, permissions would not stop anybody
            checkpoints.write_text("")


@pytest.mark.parametrize("what", ["torn", "gone", "empty", "unreadable"])
def test_without_a_readable_checkpoint_nothing_is_begun_anew_and_no_untrained_policy_is_judged(
    what: str, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    _without(what, run / "checkpoints")
    for resume in (None, True):
        with pytest.raises((CheckpointError, StorageError), match="checkpoint"):
            loop.train(small(updates=6), run, command="test", resume=resume)
    with pytest.raises((CheckpointError, StorageError), match="checkpoint"):
        evaluate_path(str(run), panel="valid_seen:1@0")
    assert stream(run) == stream(straight) and not list((run / "evaluations").glob("*.json"))


def test_fresh_and_the_recipe_are_the_wish_for_the_start(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    _without("torn", run / "checkpoints")
    assert loop.train(small(updates=1), run, command="test", resume=False).updates == 1
    started = evaluate_path(str(run / "recipe.yaml"), panel="valid_seen:1@0")
    trained = evaluate_path(str(run), panel="valid_seen:1@0")
    shown = Console(file=StringIO(), width=200)
    for result in (started, trained):
        print_evaluation(result, shown)
    assert "before any update" in shown.file.getvalue() and "after 1 updates" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the refusals above."""
    run, late = tmp_path / "run", {"every": 10}

    def killed(self: MetricsWriter, update: int, metrics: dict[str, float]) -> None:
        write(self, update, metrics)
        if update == 1:
            raise InterruptedError

    write = MetricsWriter.write
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(MetricsWriter, "write", killed)
        loop.train(small(checkpoint=late), run, command="test")
    assert len(stream(run)) == 2 and checkpoint.latest(run / "checkpoints") is None
    assert loop.train(small(updates=1, checkpoint=late), run, command="test").updates == 1


def test_a_stop_does_not_wait_for_an_evaluation_and_the_next_attempt_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while the panel is played, at a checkpoint that is not due: what is trained is on the
    disk by then, and the play is left."""
    run, recipe = (
        tmp_path / "run",
        small(updates=2, eval={"every": 1, "panel": "valid_seen:2@0"}, checkpoint={"every": 10}),
    )
    saved: list[int] = []
    waited: list[int] = []
    turn = Collector._turn

    async def slow(self: Collector, *arguments: Any) -> Any:
        if self._settings.purpose == "eval":
            if not saved:
                found = checkpoint.latest(run / "checkpoints")
                saved.append(0 if found is None else checkpoint.load(found)[1]["update"])
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
            waited.append(1)
        return await turn(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "_turn", slow)
        outcome = loop.train(recipe, run, command="test")
    assert saved == [1] and (outcome.updates, outcome.stopped_by) == (1, "SIGTERM") and not waited
    assert read_evaluations(run) == []
    assert loop.train(recipe, run, command="test").stopped_by is None
    assert [result.update for result in read_evaluations(run)] == [1, 2]


def test_lambda_zero_is_vanilla_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    for name, wm in (("vanilla", {"enabled": False}), ("zero", {"scale": 0.0})):
        loop.train(small(updates=2, wm=wm), tmp_path / name, command="test")
    assert same(weights(tmp_path / "vanilla"), weights(tmp_path / "zero"))
    loop.train(small(updates=2), tmp_path / "paw", command="test")
    assert not same(weights(tmp_path / "vanilla"), weights(tmp_path / "paw"))


def test_three_updates_without_a_finite_loss_stop_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = HuggingFacePolicy.update

    def broken(
        self: HuggingFacePolicy, batch: object, number: int, rows: torch.Tensor | None = None
    ) -> dict[str, float]:
        batch.streams["advantage"].fill_(float("nan"))  # type: ignore[attr-defined]
        return update(self, batch, number, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(HuggingFacePolicy, "update", broken)
    with pytest.raises(TrainingError, match="3 updates in a row"):
        loop.train(small(updates=10, checkpoint={"every": 100}), tmp_path / "run", command="test")
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None and checkpoint.load(newest)[1]["update"] == 3
    assert [line["policy/skipped_steps"] > 0 for line in stream(tmp_path / "run")] == [True] * 3
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values() if t.is_floating_point())


def test_tasks_of_an_update_are_a_seeded_pass_over_all_tasks() -> None:
    tasks = [Task(f"t{i}", "", "") for i in range(5)]
    recipe = small(rollout={"groups": 2})
    played = [t.task_id for update in range(5) for t in loop.tasks_of(tasks, recipe, update)]
    assert sorted(played[:5]) == sorted(played[5:]) == [t.task_id for t in tasks]
    assert played[:5] != played[5:]
    assert [t.task_id for t in loop.tasks_of(tasks, recipe, 3)] == played[6:8]


def test_a_run_explains_itself(straight: Path) -> None:
    assert (straight / "recipe.yaml").is_file() and (straight / "revision.txt").is_file()
    assert (straight / "attempt_1" / "trainer.log").is_file() and (
        straight / "command.txt"
    ).read_text() == "test\n"
    first = json.loads((straight / "metrics.jsonl").read_text().splitlines()[0])
    for name in (
        "train/success",
        "train/lambda",
        "wm/loss",
        "wm/observation_ce",
        "wm/clipped_token_ratio",
        "time/update_s",
        "rollout/generated_tokens",
    ):
        assert name in first, name
