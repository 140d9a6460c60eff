"""Trackers beside the run directory: wandb, trackio, mlflow, each behind its own package (`tracking:
[tensorboard, wandb]`).

metrics.jsonl is the record; a tracker is a copy of it for looking at. It works in a thread of its own behind
a queue, so it cannot slow a run, and whatever goes wrong with it is said once, in the run's log, and ends
that tracker alone. Each takes its usual environment variables (WANDB_MODE, WANDB_API_KEY,
MLFLOW_TRACKING_URI, TRACKIO_DIR, ...); without any, nothing leaves the machine: files lie in RUN/wandb,
RUN/mlflow, RUN/trackio.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paw_hpc.recipe import Recipe

QUEUE = 1000
"""Updates that a tracker may lag behind; those beyond are left out, and it is said."""
PATIENCE_S = 60.0
"""How long the end of a run waits for a tracker."""
Rows = Sequence[Mapping[str, Any]]
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One tracker. Every method may raise anything, and is called from one thread."""

    def write(self, update: int, values: Mapping[str, float]) -> None: ...

    def table(self, name: str, rows: Rows) -> None:
        """A few rows of text and numbers, all with the same keys."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracker is told of a run."""

    path: Path
    recipe: Recipe

    @property
    def key(self) -> str:
        """The same for every attempt of this run."""
        return hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=8).hexdigest()

    @property
    def title(self) -> str:
        return f"{self.recipe.name}-s{self.recipe.seed}"

    def folder(self, name: str) -> Path:
        """RUN/NAME, made where it is missing."""
        found = self.path.resolve() / name
        found.mkdir(exist_ok=True)
        return found


class _Wandb:
    """Offline unless WANDB_MODE or WANDB_API_KEY say something else; `wandb sync RUN/wandb/wandb/offline-*`
    sends it later."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        config = run.recipe.model_dump(mode="json")
        where = {"project": os.environ.get("WANDB_PROJECT") or "paw_hpc", "dir": str(run.folder("wandb"))}
        self._run = wandb.init(
            **where,
            name=run.title,
            id=run.key,
            resume="allow",
            mode=mode,
            config=config,
            settings=wandb.Settings(silent=True),
        )
        # Not wandb's own step: an attempt that goes on from a checkpoint plays updates again, and its steps
        # must not go back.
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")
        self._table = wandb.Table

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._run.log({"update": update, **values})

    def table(self, name: str, rows: Rows) -> None:
        self._run.log({name: self._table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Local unless TRACKIO_SPACE_ID names a space."""

    def __init__(self, run: Tracked) -> None:
        if "TRACKIO_DIR" not in os.environ:
            os.environ["TRACKIO_DIR"] = str(run.folder("trackio"))
        import trackio

        config = run.recipe.model_dump(mode="json")
        self._trackio, space = trackio, os.environ.get("TRACKIO_SPACE_ID")
        self._run = trackio.init(
            project="paw_hpc",
            name=f"{run.title}-{run.key}",
            resume="allow",
            config=config,
            space_id=space,
            embed=False,
        )

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=update)

    def table(self, name: str, rows: Rows) -> None:
        import pandas  # trackio asks for it

        self._trackio.log({name: self._trackio.Table(dataframe=pandas.DataFrame(list(rows)))})

    def close(self) -> None:
        self._trackio.finish()


def mlflow_store(run: Tracked) -> str:
    """MLFLOW_TRACKING_URI, or files in the run directory."""
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        return named
    # files need no database beside mlflow's smallest package
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return run.folder("mlflow").as_uri()


class _Mlflow:
    """Files in the run directory unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, run: Tracked) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(mlflow_store(run))
        found = self._client.get_experiment_by_name("paw_hpc")
        experiment = found.experiment_id if found is not None else self._client.create_experiment("paw_hpc")
        earlier = self._client.search_runs(
            [experiment], filter_string=f"tags.paw_hpc = '{run.key}'", max_results=1
        )
        made = (
            earlier[0]
            if earlier
            else self._client.create_run(experiment, run_name=run.title, tags={"paw_hpc": run.key})
        )
        self._id = made.info.run_id
        self._client.log_dict(self._id, run.recipe.model_dump(mode="json"), "recipe.json")

    def write(self, update: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[Metric(name, value, now, update) for name, value in values.items()]
        )

    def table(self, name: str, rows: Rows) -> None:
        self._client.log_text(self._id, json.dumps(list(rows), indent=1), f"{name}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)


MAKERS: Mapping[str, Callable[[Tracked], Tracker]] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _Mlflow}


class Guarded:
    """A tracker in a thread of its own, which can neither stop nor slow the run.

    Args:
        name: for what is said in the log.
        make: makes the tracker, in that thread.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._jobs: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(QUEUE)
        self._said, self._broken = False, False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Metrics of an update; what is no finite number is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._put(lambda tracker: tracker.write(update, finite))

    def table(self, name: str, rows: Rows) -> None:
        """A few rows; none: nothing happens."""
        if rows:
            self._put(lambda tracker: tracker.table(name, rows))

    def close(self) -> None:
        """Wait for what is pending, for PATIENCE_S at most."""
        self._put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._complain(
                f"has not finished within {PATIENCE_S:g} s; what it had not sent is in metrics.jsonl"
            )

    def _put(self, job: Callable[[Tracker], None] | None) -> None:
        if self._broken:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._complain(f"is {QUEUE} updates behind; what it misses is in metrics.jsonl")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (job := self._jobs.get()) is not None:
                job(tracker)
            tracker.close()
        except (
            BaseException
        ) as error:  # whatever it is, also a SystemExit: the run goes on without this tracker
            self._broken = True
            missing = isinstance(error, ModuleNotFoundError) and f" (pip install 'paw-hpc[{self._name}]')"
            self._complain(
                f"has failed and is left out from here on: {type(error).__name__}: "
                f"{' '.join(str(error).split())}{missing or ''}"
            )

    def _complain(self, what: str) -> None:
        if not self._said:
            self._said = True
            _log.warning("tracking: %s %s", self._name, what)


def start(run: Tracked) -> list[Guarded]:
    """The trackers that the recipe asks for beside TensorBoard."""

    def maker(name: str) -> Callable[[], Tracker]:
        return lambda: MAKERS[name](run)

    return [Guarded(name, maker(name)) for name in run.recipe.tracking if name in MAKERS]
