"""The run directory explains itself, refuses other recipes, and its metrics stream survives kills, tears and
full disks."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import subprocess
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paw_hpc.recipe import Recipe, load_recipe, parse_recipe
from paw_hpc.recipe.resume import differing_keys
from paw_hpc.run import metrics as metrics_module
from paw_hpc.run.metrics import MetricsWriter, RunDirectory, read_metrics
from paw_hpc.run.progress import Progress
from paw_hpc.system.errors import CheckpointError, DataError, StorageError


def recipe(**changes: Any) -> Recipe:
    return parse_recipe({"name": "small", "model": {"path": "tiny"}} | changes)


def update_metrics(update: int) -> dict[str, float]:
    return {"train/success": update / 7, "wm/loss": 1 / (1 + update), "time/update_s": 0.5}


def without_time(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


# --- the directory ---


def test_a_run_explains_itself_from_its_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not run.exists
    assert run.open(recipe(), "paw train r.yaml seed=0") == 1
    assert load_recipe(run.recipe_path) == recipe() == run.recipe()
    assert (run.path / "command.txt").read_text() == "paw train r.yaml seed=0\n"
    revision = dict(line.split(": ", 1) for line in (run.path / "revision.txt").read_text().splitlines())
    assert revision.keys() >= {"code", "paw_hpc", "python", "torch", "transformers"}
    import torch

    # the package's version; torch itself adds what it was built for where the plain index names none
    assert revision["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_every_start_is_an_attempt_with_its_own_command_and_the_folder_shows_the_latest(
    tmp_path: Path,
) -> None:
    assert RunDirectory(tmp_path).open(recipe(), "first") == 1
    again = RunDirectory(tmp_path)
    assert again.open(recipe(updates=300), "second") == 2
    assert again.attempt == tmp_path / "attempt_2"
    assert (tmp_path / "attempt_1/command.txt").read_text() == "first\n"
    assert (
        (tmp_path / "attempt_2/command.txt").read_text()
        == (tmp_path / "command.txt").read_text()
        == "second\n"
    )
    assert again.recipe().updates == 300
    assert load_recipe(tmp_path / "attempt_1/recipe.yaml").updates == 150


def test_another_recipe_is_refused_and_its_keys_are_named(tmp_path: Path) -> None:
    RunDirectory(tmp_path).open(recipe(), "first")
    with pytest.raises(CheckpointError) as caught:
        RunDirectory(tmp_path).open(recipe(optimizer={"lr": 2e-6}, wm={"alpha": 0.5}, updates=7), "second")
    message = str(caught.value)
    assert (
        "optimizer.lr: 1e-06 -> 2e-06" in message
        and "wm.alpha: 0.75 -> 0.5" in message
        and "updates" not in message
    )
    assert "\n" not in message
    assert (tmp_path / "command.txt").read_text() == "first\n" and not (tmp_path / "attempt_2").exists()


def test_harmless_keys_may_change_and_each_of_them_is_harmless_alone() -> None:
    harmless = recipe(
        updates=9,
        threads=1,
        env={"workers": 7},
        checkpoint={"every": 3, "keep": 5},
        eval={"panel": "valid_unseen", "every": 4},
    )
    assert differing_keys(recipe(), harmless) == []
    assert differing_keys(recipe(), recipe(env={"workers": 7, "max_steps": 9})) == ["env.max_steps: 50 -> 9"]
    # a section that was null before
    assert differing_keys(recipe(), recipe(model={"tiny": {}, "tokenizer": "t"}))


def test_the_number_of_updates_matters_to_a_schedule_over_them() -> None:
    fading = {"final_scale": 0.1}
    assert differing_keys(recipe(wm=fading), recipe(wm=fading, updates=9)) == ["updates: 150 -> 9"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="not a run directory"):
        RunDirectory(tmp_path).open(recipe(), "x")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml"):
        RunDirectory(tmp_path).recipe()


def test_a_recipe_of_another_version_is_an_error_of_one_line(tmp_path: Path) -> None:
    RunDirectory(tmp_path).open(recipe(), "x")
    (tmp_path / "recipe.yaml").write_text("name: small\nunheard_of: 3\n")
    with pytest.raises(CheckpointError, match=r"unheard_of.*another version"):
        RunDirectory(tmp_path).open(recipe(), "x")


def test_a_run_that_was_killed_while_it_was_being_created_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, survived = os.replace, 0
    for last in range(9):
        calls = 0

        def dying(source: Any, target: Any, last: int = last) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", dying)
        path = tmp_path / str(last)
        try:
            RunDirectory(path).open(recipe(), "x")
            survived += 1
        except Killed:
            pass
        monkeypatch.setattr(os, "replace", real)
        RunDirectory(path).open(recipe(), "x")
        assert load_recipe(path / "recipe.yaml") == recipe()
    assert 0 < survived < 9


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            RunDirectory(tmp_path).open(recipe(), "child")
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            code = 0
        finally:
            os._exit(code)
    assert os.read(ready[0], 1) == b"1"
    with pytest.raises(CheckpointError, match="another process"):
        RunDirectory(tmp_path).open(recipe(), "parent")
    with pytest.raises(CheckpointError, match="another process"):
        RunDirectory(tmp_path).set_aside()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert RunDirectory(tmp_path).open(recipe(), "parent") == 2


def test_fresh_sets_the_old_run_aside_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert RunDirectory(path).set_aside() is None
    for number in (1, 2):
        RunDirectory(path).open(recipe(seed=number), "x")
        aside = RunDirectory(path).set_aside()
        assert aside == tmp_path / f"run.old-{number}" and RunDirectory(aside).recipe().seed == number
        assert not path.exists()


def test_the_log_of_a_role_holds_messages_and_the_traceback_that_ended_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    with pytest.raises(ZeroDivisionError), run.log("trainer"):
        logging.getLogger("paw_hpc.rollout.collector").info("played %d groups", 16)
        _ = 1 / 0
    logging.getLogger("paw_hpc.rollout.collector").warning("after the run")
    text = (tmp_path / "attempt_1/trainer.log").read_text()
    assert "INFO paw_hpc.rollout.collector: played 16 groups" in text
    assert "Traceback" in text and "ZeroDivisionError" in text
    assert "after the run" not in text


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_revision_is_of_the_checkout_that_holds_the_code(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    revision = metrics_module._git_revision
    assert revision(package) == "no git checkout"
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "x")
    assert revision(package) == "no git checkout"  # inside somebody's checkout, but not of it
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-qm", "y")
    clean = revision(package)
    assert len(clean) == 40
    (package / "__init__.py").write_text("changed")
    assert revision(package) == f"{clean} (dirty)"


# --- the stream ---


def test_a_killed_and_resumed_stream_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    for run in (whole, broken):
        run.open(recipe(), "x")
    with MetricsWriter(whole) as writer:
        for update in range(8):
            writer.write(update, update_metrics(update))
    with MetricsWriter(broken) as writer:
        for update in range(6):
            writer.write(update, update_metrics(update) | {"time/update_s": 9.0})
    with broken.metrics_path.open("a") as file:
        file.write('{"update": 6, "train/succ')  # killed while writing
    with MetricsWriter(broken, start=4) as writer:  # the last checkpoint was of 4 updates
        for update in range(4, 8):
            writer.write(update, update_metrics(update))
    assert without_time(read_metrics(broken.metrics_path)) == without_time(read_metrics(whole.metrics_path))
    assert read_metrics(broken.metrics_path) != read_metrics(whole.metrics_path)
    assert [line["update"] for line in read_metrics(broken.metrics_path)] == list(range(8))


def test_a_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    child = os.fork()
    if child == 0:
        try:
            MetricsWriter(run).write(0, {"a": 1.0})
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert read_metrics(run.metrics_path) == [{"update": 0, "a": 1.0}]


def test_dropping_lines_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    with MetricsWriter(run) as writer:
        for update in range(3):
            writer.write(update, {"a": 1.0})
    before = run.metrics_path.read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(run, start=1)
    assert run.metrics_path.read_bytes() == before


def test_numbers_that_are_not_finite_are_valid_json_and_come_back_as_nan(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    with MetricsWriter(run) as writer:
        writer.write(0, {"a": math.nan, "b": math.inf, "c": 2})

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(run.metrics_path.read_text(), parse_constant=refuse)
    assert line == {"update": 0, "a": None, "b": None, "c": 2.0}
    (read,) = read_metrics(run.metrics_path)
    assert math.isnan(read["a"]) and math.isnan(read["b"]) and read["c"] == 2.0


def test_only_the_last_line_may_be_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"update": 0}\n{"update": 1}\n{"upd')
    assert read_metrics(path) == [{"update": 0}, {"update": 1}]
    for damaged in (
        '{"update": 0}\n{"upd\n{"update": 2}\n',
        '{"update": 0}\n[]\n',
        '{"update": 0}\n{"a": 1}\n',
    ):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
            read_metrics(path)


def test_a_full_disk_is_one_line_and_the_lines_before_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    with MetricsWriter(run) as writer:
        writer.write(0, {"a": 1.0})
        before = run.metrics_path.read_bytes()

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(
                StorageError, match=r"metrics\.jsonl: no space left on the disk.*resume"
            ) as caught:
                writer.write(1, {"a": 2.0})
        assert "\n" not in str(caught.value)
        assert run.metrics_path.read_bytes() == before
        writer.write(1, {"a": 2.0})
    assert [line["update"] for line in read_metrics(run.metrics_path)] == [0, 1]


def test_an_error_that_is_not_about_room_passes_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with MetricsWriter(run) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            writer.write(0, {"a": 2.0})


def test_tensorboard_shows_the_same_numbers_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    with MetricsWriter(run) as writer:
        for update in range(4):
            writer.write(update, {"train/success": 0.9})
    with MetricsWriter(run, start=2) as writer:
        for update in range(2, 5):
            writer.write(update, update_metrics(update))
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [(e.step, round(e.value, 5)) for e in events.Scalars("train/success")] == [
        (line["update"], round(line["train/success"], 5)) for line in read_metrics(run.metrics_path)
    ]


@pytest.mark.parametrize("back_s", [86_400.0, 0.0, -86_400.0])
def test_tensorboard_shows_a_resumed_run_whatever_the_clock_says(
    back_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts whose clock is a day back, of the same second, a day ahead; by process ids that sort the other
    way."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path)
    run.open(recipe(), "x")
    real, at = time.time, int(time.time())
    for attempt in range(3):
        monkeypatch.setattr(time, "time", lambda attempt=attempt: at + 0.5 - attempt * back_s)
        monkeypatch.setattr(os, "getpid", lambda attempt=attempt: 1000 - attempt)
        with MetricsWriter(run, start=2 * attempt) as writer:
            # the last two are lost with the attempt, and played again
            for update in range(2 * attempt, 2 * attempt + 4):
                writer.write(update, {"train/success": attempt / 2, "train/return": math.inf})
    monkeypatch.setattr(time, "time", real)
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    shown = events.Scalars("train/success")
    assert [(e.step, e.value) for e in shown] == [
        (0, 0.0),
        (1, 0.0),
        (2, 0.5),
        (3, 0.5),
        (4, 1.0),
        (5, 1.0),
        (6, 1.0),
        (7, 1.0),
    ]
    assert [e.wall_time for e in shown] == sorted(e.wall_time for e in shown)
    assert len(list(run.tensorboard.iterdir())) == 3


# --- progress ---


def test_progress_is_one_plain_line_per_update_where_there_is_no_terminal() -> None:
    out = StringIO()
    with Progress("grpo", 3, console=Console(file=out, width=20)) as progress:
        progress.phase("playing")
        progress.update(
            0, {"train/success": 0.25, "train/lambda": 0.75, "wm/loss": 0.1234, "time/update_s": 4.96}
        )
        progress.update(1, {"train/success": 0.5, "time/update_s": 5.0})
    assert out.getvalue().splitlines() == [
        "grpo  update 1/3  success 0.25  lambda 0.75  wm loss 0.123  5.0 s",
        "grpo  update 2/3  success 0.50  5.0 s",
    ]


def test_progress_is_a_bar_on_a_terminal() -> None:
    out = StringIO()
    with Progress(
        "grpo", 150, start=40, console=Console(file=out, width=160, force_terminal=True)
    ) as progress:
        progress.update(40, {"train/success": 0.25})
        progress.phase("training")
    text = out.getvalue()
    assert "41/150" in text and "success 0.25" in text and "training" in text and "update 41" not in text
