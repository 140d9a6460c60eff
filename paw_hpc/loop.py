"""Algorithm 1: collect groups, score them, plan the rows, update the policy, publish its weights. The same on
a laptop and on a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from paw_hpc.build import Machinery, processes_of
from paw_hpc.envs.base import Task
from paw_hpc.evaluation.episodes import record
from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.panel import evaluate, write
from paw_hpc.experience import Pool
from paw_hpc.objective.plan import plan
from paw_hpc.policy.backend import Metrics
from paw_hpc.policy.checkpoint_folder import ever_saved
from paw_hpc.recipe import Recipe
from paw_hpc.rollout.collector import CollectStats
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.run.changes import begin as begin_changes
from paw_hpc.run.changes import read_changes
from paw_hpc.run.metrics import MetricsWriter, RunDirectory
from paw_hpc.run.progress import Progress
from paw_hpc.run.public_names import public_names
from paw_hpc.run.signals import EvaluationLeft, StopRequest
from paw_hpc.system import distributed
from paw_hpc.system.errors import CheckpointError, TrainingError, UserError
from paw_hpc.system.seeding import generator

SKIPPED_UPDATES_ALLOWED = 2
"""Updates in a row whose every step had a loss that was not finite; one more stops the run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `updates` are done; `stopped_by` is the signal that cut it short, or None when it is
    complete."""

    directory: Path
    updates: int
    stopped_by: str | None


def train(
    recipe: Recipe, directory: Path, *, command: str, resume: bool | None = None, change: Collection[str] = ()
) -> Outcome:
    """Run, or resume, a recipe in a run directory.

    Args:
        resume: True: there must be a run to go on with; False: set an existing one aside; None: go on where
            there is one.
        change: keys that may differ from the run's recipe although they change what an update computes (see
            recipe/resume.py).

    Raises:
        CheckpointError: the directory belongs to another recipe, there is nothing to resume, or checkpoints
            were written and none can be read.
        TrainingError: three updates in a row without a finite loss (a checkpoint was written first).
    """
    run = RunDirectory(directory)
    with processes_of(recipe):
        run.attempt, lost = distributed.on_main(
            lambda: (_open(run, recipe, command, resume, change), _lost(run))
        )
        changed = distributed.on_main(lambda: [each.key for each in read_changes(directory)])
        role = "trainer" if distributed.is_main() else f"trainer-{distributed.rank()}"
        with (
            run.log(role),
            EventLoop() as runner,
            Machinery(recipe, runner, run.attempt) as machinery,
            StopRequest() as stop,
        ):
            start = machinery.policy.resume(run.checkpoints, changed)
            if lost and not start:
                raise CheckpointError(
                    f"{directory}: {lost}; restore them from a copy, or begin anew with --fresh, which "
                    "sets this run aside"
                )
            distributed.on_main(lambda: begin_changes(directory, start))
            distributed.on_main(lambda: _episodes(run, recipe).begin(start))
            with (
                _writer(run, start, recipe) as writer,
                Progress(recipe.name, recipe.updates, start, _console()) as progress,
            ):
                progress.say(f"{recipe.name}: {machinery.describe()}; run directory {directory}")
                return _Loop(run, recipe, machinery, writer, progress, stop).run_from(start)


def _open(
    run: RunDirectory, recipe: Recipe, command: str, resume: bool | None, change: Collection[str] = ()
) -> Path:
    if resume and not run.exists:
        raise CheckpointError(f"{run.path}: no run to resume here; leave out --resume to start one")
    if resume is False and (aside := run.set_aside()):
        print(f"set the earlier run aside as {aside}", file=sys.stderr)
    run.open(recipe, command, change)
    assert run.attempt is not None
    return run.attempt


def _lost(run: RunDirectory) -> str | None:
    """What says that earlier attempts wrote a checkpoint; None: nothing does. Then a run without one begins
    at its beginning."""
    if run.lost_updates:
        return f"it has recorded {run.lost_updates} updates, and {run.checkpoints} holds no checkpoint"
    return f"{run.checkpoints} held checkpoints, and holds none now" if ever_saved(run.checkpoints) else None


def _episodes(run: RunDirectory, recipe: Recipe) -> EpisodeFolder:
    return EpisodeFolder(run.path, recipe.episodes.max_megabytes * 10**6)


def _writer(run: RunDirectory, start: int, recipe: Recipe) -> AbstractContextManager[MetricsWriter | None]:
    """Metrics are the same on every rank; one writes them."""
    return MetricsWriter(run, start, recipe) if distributed.is_main() else nullcontext()


def _console() -> Console | None:
    return None if distributed.is_main() else Console(quiet=True)


@dataclass(slots=True)
class _Loop:
    """The updates of one attempt."""

    run: RunDirectory
    recipe: Recipe
    machinery: Machinery
    writer: MetricsWriter | None
    progress: Progress
    stop: StopRequest
    saved: int = 0
    """Updates in the newest checkpoint."""

    def run_from(self, start: int) -> Outcome:
        recipe, machinery, progress = self.recipe, self.machinery, self.progress
        tasks, skipped, self.saved = (
            distributed.main_first(lambda: machinery.benchmark.tasks("train")),
            0,
            start,
        )
        machinery.publisher.publish(version=start)
        asked = (
            self._evaluate(start) if start and self._evaluated_at(start) and self._is_missing(start) else None
        )
        if asked is not None and start < recipe.updates:
            return self._stopped(start, asked)
        for update in range(start, recipe.updates):
            try:
                metrics = one_update(
                    recipe,
                    machinery,
                    tasks,
                    update,
                    progress.phase,
                    self._keep if recipe.episodes.groups else None,
                )
            except LogprobGapError:
                self._save(update)
                raise
            if self.writer is not None:
                self.writer.write(update, metrics)
            progress.update(update, metrics)
            done = update + 1
            skipped = skipped + 1 if metrics["policy/steps"] == 0 else 0
            asked = distributed.first(self.stop.name)  # by a signal that reached any rank: they stop together
            hopeless = skipped > SKIPPED_UPDATES_ALLOWED
            # Before an evaluation, too: it takes long, and who asks for a stop may not wait for its end.
            wait = done == recipe.updates or asked is not None or hopeless or self._evaluated_at(done)
            if wait or done % recipe.checkpoint.every == 0:
                self._save(done, wait=wait)
            if hopeless:
                raise TrainingError(
                    f"update {update}: the loss was not finite in {skipped} updates in a row; the run "
                    "stopped with a checkpoint of update "
                    f"{self.saved}. Go on with a lower optimizer.lr (--change optimizer.lr), or begin anew "
                    "with model.dtype=float32"
                )
            if asked is None and self._evaluated_at(done):
                asked = self._evaluate(done)
            if asked is not None and done < recipe.updates:
                return self._stopped(done, asked)
        return Outcome(self.run.path, recipe.updates, None)

    def _keep(self, played: record.Update) -> Metrics:
        """The chosen episodes of an update into the run directory, by the rank that writes it."""
        if not distributed.is_main():
            return {}
        rows = record.training_rows(played, self.recipe, self.machinery.policy.tokenizer)
        if self.writer is not None and played.number + 1 == self.recipe.updates:
            for tracker in self.writer.trackers:
                tracker.table("episodes", record.excerpt(rows))
        return _episodes(self.run, self.recipe).write_update(played.number, rows)

    def _stopped(self, done: int, asked: str) -> Outcome:
        self.progress.say(
            f"{self.recipe.name}: stopped by {asked} after update {done}, saved; the same command "
            "continues it"
        )
        return Outcome(self.run.path, done, asked)

    def _save(self, done: int, *, wait: bool = True) -> None:
        if done > self.saved:
            self.progress.phase("saving")
            meta = {"recipe": self.recipe.model_dump(mode="json"), "update": done}
            self.machinery.policy.save(
                self.run.checkpoints, done, meta, keep=self.recipe.checkpoint.keep, wait=wait
            )
            self.saved = done

    def _evaluated_at(self, done: int) -> bool:
        return self.recipe.eval.every > 0 and done % self.recipe.eval.every == 0

    def _is_missing(self, done: int) -> bool:
        """Whether an earlier attempt was stopped before or in the evaluation after this update."""
        return distributed.on_main(lambda: not (self.run.evaluations / f"{_label(done)}.json").is_file())

    def _evaluate(self, done: int) -> str | None:
        """The signal that asked for a stop, on which the evaluation was left: the next attempt makes up for
        it. None: it is written."""
        self.progress.phase("evaluating")
        try:
            found = evaluate(
                self.machinery, self.recipe, update=done, label=_label(done), leave=lambda: bool(self.stop)
            )
        except EvaluationLeft:
            return distributed.first(self.stop.name)
        if distributed.is_main():
            write(self.run.path, found, self.recipe)
        return distributed.first(self.stop.name)


def _label(done: int) -> str:
    """Of the evaluation after so many updates."""
    return f"update-{done:05d}"


def one_update(
    recipe: Recipe,
    machinery: Machinery,
    tasks: Sequence[Task],
    update: int,
    phase: Callable[[str], None] = lambda _: None,
    keep: Callable[[record.Update], Metrics] | None = None,
) -> Metrics:
    """One turn of the loop; returns its metrics under their public names.

    Args:
        keep: given what was played and what became of it, on every rank; its metrics are among those that are
            returned.
    """
    policy, clock = machinery.policy, _Clock()
    phase("playing")
    groups, stats = machinery.collect(tasks_of(tasks, recipe, update), recipe.rollout.group_size, update)
    clock.lap("collect")
    if recipe.rollout.staleness and update + 1 < recipe.updates:
        machinery.collect_ahead(tasks_of(tasks, recipe, update + 1), recipe.rollout.group_size, update + 1)
    pool = Pool.from_groups(groups)
    if not len(pool):
        raise UserError(_nothing_played(recipe, update, stats))
    phase("scoring")
    scores = (
        machinery.scores_of(pool, stats) if recipe.algorithm.old_logp == "rollout" else policy.score(pool)
    )
    clock.lap("score")
    planned = plan(pool, scores, recipe, update)
    clock.lap("plan")
    _check_gap(planned.metrics, recipe, update)
    phase("training")
    row_logp = None if keep is None else torch.empty(planned.batch.num_rows)
    trained = policy.update(planned.batch, update, row_logp)
    clock.lap("train")
    machinery.publisher.publish(version=update + 1)
    clock.lap("publish")
    kept: Metrics = {}
    if keep is not None and row_logp is not None:
        kept = keep(record.Update(update, pool, scores, planned, row_logp))
        clock.lap("keep")
    return public_names(planned.metrics, trained) | stats.metrics() | kept | clock.metrics()


def _nothing_played(recipe: Recipe, update: int, stats: CollectStats) -> str:
    if stats.overlong_prompts:
        return (
            f"update {update}: no first prompt of {stats.overlong_prompts} episodes fits (see the messages "
            "above); raise "
            f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
        )
    return (
        f"update {update}: the environments failed in every episode; see the messages above, or raise "
        "env.step_timeout_s"
    )


class LogprobGapError(TrainingError):
    """Engine and trainer do not agree about the policy (any more)."""


def _check_gap(planned: dict[str, float], recipe: Recipe, update: int) -> None:
    """Before the update trains on it. Raises LogprobGapError."""
    limit, gap = recipe.rollout.max_logprob_gap, planned["behaviour_gap_mean"]
    if limit is not None and gap > limit:
        raise LogprobGapError(
            f"update {update}: trainer and engine differ by {gap:.4f} nats per action token (p99 "
            f"{planned['behaviour_gap_p99']:.4f}, max "
            f"{planned['behaviour_gap_max']:.4f}), above rollout.max_logprob_gap={limit:g}; the run "
            f"stopped, with a checkpoint of {update} updates. "
            "Compare model.dtype with the servers' (rollout.fleet.arguments), or go on with "
            "algorithm.truncated_importance or a lower optimizer.lr "
            "(--change KEY)"
        )


def tasks_of(tasks: Sequence[Task], recipe: Recipe, update: int) -> list[Task]:
    """The tasks of an update: every training task once per pass, in an order that depends on (seed, pass)
    alone."""
    first = update * recipe.rollout.groups
    chosen = []
    for position in range(first, first + recipe.rollout.groups):
        order = generator(recipe.seed, "task-order", position // len(tasks)).permutation(len(tasks))
        chosen.append(tasks[int(order[position % len(tasks)])])
    return chosen


class _Clock:
    """Seconds per phase of one update."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[f"time/{name}_s"], self._last = now - self._last, now

    def metrics(self) -> dict[str, float]:
        return self._laps | {"time/update_s": self._last - self._start}
