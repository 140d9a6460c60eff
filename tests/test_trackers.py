"""Trackers get the metrics under their names, and cannot stop or slow a run; wandb, trackio and mlflow each
once for real, where installed."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from paw_hpc.evaluation.episodes.record import excerpt
from paw_hpc.run import trackers
from paw_hpc.run.metrics import MetricsWriter, RunDirectory, read_metrics
from paw_hpc.run.trackers import Guarded, Rows, Tracked
from tests.episodes import made
from tests.factories import tiny_recipe

VALUES = {"train/success": 0.5, "wm/loss": 0.25, "train/nothing": math.nan}


class Listening:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self.heard.append((update, dict(values)))

    def table(self, name: str, rows: Rows) -> None:
        self.heard.append((name, list(rows)))

    def close(self) -> None:
        self.heard.append("closed")


def test_a_tracker_hears_everything_in_order_and_no_nan() -> None:
    tracker = Listening()
    guarded = Guarded("wandb", lambda: tracker)
    for update in range(3):
        guarded.write(update, VALUES)
    guarded.table("episodes", [{"a": 1}])
    guarded.table("none", [])
    guarded.close()
    finite = {"train/success": 0.5, "wm/loss": 0.25}
    assert tracker.heard == [(0, finite), (1, finite), (2, finite), ("episodes", [{"a": 1}]), "closed"]


@pytest.mark.parametrize("when", ["make", "write", "close"])
def test_one_that_fails_is_said_once_and_stops_nothing(when: str, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Listening):
        def __init__(self) -> None:
            super().__init__()
            if when == "make":
                raise SystemExit("no\nlogin")

        def write(self, update: int, values: Mapping[str, float]) -> None:
            if when == "write":
                raise ConnectionError("no network")

        def close(self) -> None:
            raise RuntimeError("not closed")

    with caplog.at_level(logging.WARNING):
        guarded = Guarded("mlflow", Failing)
        for update in range(20):
            guarded.write(update, VALUES)
        guarded.close()
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("tracking: mlflow has failed and is left out from here on: ") and "\n" not in said


def test_one_that_hangs_slows_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = threading.Event()

    class Hanging(Listening):
        def write(self, update: int, values: Mapping[str, float]) -> None:
            free.wait(60)

    monkeypatch.setattr(trackers, "QUEUE", 5)
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.2)
    start = time.monotonic()
    guarded = Guarded("trackio", Hanging)
    for update in range(100):
        guarded.write(update, VALUES)
    guarded.close()
    assert time.monotonic() - start < 10
    assert [record.getMessage() for record in caplog.records] == [
        "tracking: trackio is 5 updates behind; what it misses is in metrics.jsonl"
    ]
    free.set()


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "wandb", None)
    run = RunDirectory(tmp_path / "run")
    recipe = tiny_recipe(tracking=["wandb"])
    run.open(recipe, "test")
    with MetricsWriter(run, 0, recipe) as writer:
        writer.write(0, VALUES)
    assert "pip install 'paw-hpc[wandb]'" in caplog.text and len(read_metrics(run.metrics_path)) == 1
    assert not list((tmp_path / "run").glob("tensorboard/*")), (
        "TensorBoard is one of them, and was not asked for"
    )


def test_tensorboard_is_the_default(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_recipe(), "test")
    with MetricsWriter(run, 0, tiny_recipe()) as writer:
        assert writer.trackers == []
        writer.write(0, VALUES)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def track(path: Path, name: str, caplog: pytest.LogCaptureFixture) -> Tracked:
    """Two attempts of a run: three updates, of which the last is played again, one more, and a table."""
    recipe = tiny_recipe(tracking=[name])
    run = RunDirectory(path)
    run.open(recipe, "test")
    for updates in (range(3), range(2, 4)):
        with MetricsWriter(run, updates.start, recipe) as writer:
            for update in updates:
                writer.write(update, VALUES | {"train/success": update / 10})
            for tracker in writer.trackers:
                tracker.table("episodes", excerpt(made.rows()))
    said = [record.getMessage() for record in caplog.records if "tracking" in record.getMessage()]
    assert said == []
    return Tracked(path, recipe)


def test_wandb_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    summaries: list[dict[str, float]] = []
    close = trackers._Wandb.close

    def noted(self: trackers._Wandb) -> None:
        summaries.append(dict(self._run.summary))
        close(self)

    monkeypatch.setattr(trackers._Wandb, "close", noted)
    track(tmp_path / "run", "wandb", caplog)
    assert len(list((tmp_path / "run" / "wandb").rglob("offline-run-*/*.wandb"))) == 2
    assert [(each["update"], each["train/success"]) for each in summaries] == [(2, 0.2), (3, 0.3)]
    assert list((tmp_path / "run" / "wandb").rglob("episodes*.table.json"))


def test_trackio_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    track(tmp_path / "run", "trackio", caplog)
    [database] = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as opened:
        found = "".join(
            str(row) for table in ("metrics",) for row in opened.execute(f"select * from {table}")
        )
    assert "train/success" in found


def test_mlflow_in_local_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = track(tmp_path / "run", "mlflow", caplog)
    client = mlflow.MlflowClient(trackers.mlflow_store(run))
    [found] = client.search_runs([client.get_experiment_by_name("paw_hpc").experiment_id])
    history = {(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/success")}
    assert history == {(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)} and found.info.status == "FINISHED"
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert artifacts == {"recipe.json", "episodes.json"}
    listed = json.loads(Path(client.download_artifacts(found.info.run_id, "episodes.json")).read_text())
    assert listed == excerpt(made.rows())
