"""The run directory and its metrics stream. Any run explains itself from its folder alone:

    recipe.yaml  command.txt  revision.txt     of the latest attempt: recipe, command, versions
    changes.json                               recipe keys that were changed on the way
    attempt_N/                                 per start: the same files, a log per role
    metrics.jsonl  tensorboard/                one line per update
    checkpoints/                               see policy/checkpoint_folder.py
    evaluations/LABEL.json  LABEL.jsonl        summary and outcomes of each evaluation
    episodes/*.parquet                         whole episodes (see docs/episodes.md)

Names of metrics, parts separated by '/': `train/success`, `train/return`, `train/lambda`, `train/episodes`,
`train/transitions`, `train/steps` (mean per episode), `train/response_tokens` (mean per response),
`train/invalid` (share of actions that were malformed or not admissible), `train/behaviour_gap_{mean,p99,max}`
(|trainer's - engine's log-prob| per action token); `fleet/...` (what happened to servers, see
docs/rollout.md); `wm/loss`, `wm/observation_ce` (nats per token), `wm/clipped_token_ratio` (share of
observation tokens that clipping masks), `wm/entropy_threshold`; `policy/...` (the backend's); `time/update_s`
(the whole update) and `time/PHASE_s`; `system/tokens_per_s`, `system/rows_per_s` (trained on, of the policy's
update), `system/model_flops_per_s`, `system/mfu` (of the devices' bfloat16 peak, where it is known),
`system/memory_peak_bytes` (of the rank that needed most); `episodes/steps`, `episodes/bytes` (kept of this
update), `episodes/dropped_files` (to stay within their bound). Only `time/`, `system/` and `policy/seconds`
differ between two runs of one recipe.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import stat
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from paw_hpc import __version__
from paw_hpc.recipe import Recipe, dump_recipe, load_recipe
from paw_hpc.recipe.resume import Difference
from paw_hpc.run import changes, fence, trackers
from paw_hpc.run.event_file import EventFile
from paw_hpc.system.errors import CheckpointError, DataError, RecipeError
from paw_hpc.system.outside import read_json
from paw_hpc.system.storage import append, storage_errors, write_atomically

_log = logging.getLogger(__name__)


class RunDirectory:
    """The folder of one run. Constructing it touches nothing; `open` creates or reopens it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "evaluations"
        self.attempt: Path | None = None
        """`attempt_N` of this process, after `open`."""
        self.lost_updates = 0
        """After `open`: updates that earlier attempts recorded, where so many cannot be without a checkpoint
        having been written; else 0."""
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        """There is a run here (perhaps without a single finished update)."""
        return self.recipe_path.is_file()

    def recipe(self) -> Recipe:
        """The resolved recipe. Raises CheckpointError where there is none or another version wrote it."""
        if not self.exists:
            raise CheckpointError(f"{self.path}: not a run directory (it has no recipe.yaml)")
        try:
            return load_recipe(self.recipe_path)
        except RecipeError as error:
            raise CheckpointError(f"{error} (was this run made by another version of paw_hpc?)") from None

    def open(self, recipe: Recipe, command: str, change: Collection[str] = ()) -> int:
        """Create the run, or reopen it for another attempt with the same recipe. Returns the number of the
        attempt.

        Args:
            change: keys that may differ although they change what an update computes (see recipe/resume.py);
                that they do is recorded.

        Raises:
            CheckpointError: the folder holds something else, a run of another recipe (the differing keys are
                named), or a run that is being written now.
            StorageError: full disk.
        """
        made: list[Difference] = []
        if self.exists:
            before = self.recipe()
            # Twice: a backend that writes in the background has the last one pending.
            recorded = len(read_metrics(self.metrics_path))
            self.lost_updates = recorded if recorded > 2 * before.checkpoint.every else 0
            made = changes.permitted(self.path, before, recipe, change)
        elif self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
            raise CheckpointError(
                f"{self.path}: the folder is not empty and not a run directory; give a new one"
            )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.path.stat().st_mode & stat.S_IWOTH:
                _log.warning(
                    "%s: every user of this machine may write here, and so decide what this run does; run "
                    "chmod o-w on it",
                    self.path,
                )
            inherited = fence.inherit(self.path)
            self._take_lock(insist=inherited is None)
            changes.record(self.path, made)
            # first: from here on the folder is known as a run
            write_atomically(self.recipe_path, dump_recipe(recipe))
            number = inherited or fence.claim(self.path)
            self.attempt = self.path / f"attempt_{number}"
            for folder in (self.attempt, self.checkpoints, self.evaluations):
                if folder.exists() and not folder.is_dir():
                    raise CheckpointError(f"{folder}: not a folder, as a run has it; move it away")
                folder.mkdir(exist_ok=True)
        for name, text in (
            ("command.txt", command + "\n"),
            ("revision.txt", revision()),
            ("recipe.yaml", dump_recipe(recipe)),
        ):
            write_atomically(self.attempt / name, text)
            write_atomically(self.path / name, text)
        return number

    def set_aside(self) -> Path | None:
        """Rename an existing folder to PATH.old-N, so that nothing is lost; the new name, or None where there
        was nothing.

        Raises:
            CheckpointError: the run is being written now.
        """
        if not self.path.exists():
            return None
        if (self.path / ".lock").exists():
            self._take_lock()
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(target)
        return target

    @contextmanager
    def log(self, role: str) -> Iterator[logging.Logger]:
        """Inside, what paw_hpc logs (INFO and above) also goes to attempt_N/ROLE.log, and an error that
        leaves it too, with traceback."""
        if self.attempt is None:
            raise RuntimeError("open the run directory first")
        logger = logging.getLogger("paw_hpc")
        handler = logging.FileHandler(self.attempt / f"{role}.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield logger
        except BaseException as error:
            record = logger.makeRecord(
                logger.name,
                logging.ERROR,
                __file__,
                0,
                "ended by %s",
                (type(error).__name__,),
                sys.exc_info(),
            )
            handler.emit(record)
            raise
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            handler.close()

    def _take_lock(self, *, insist: bool = True) -> None:
        # A POSIX record lock: gone when this process dies, and not inherited by forked workers that may
        # outlive it. A job that has claimed the fence does not insist: who holds the lock is an earlier
        # attempt, on a node that was cut off.
        if self._lock is not None:
            os.close(self._lock)
        # less the umask: a run may be its group's
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if insist:
                raise CheckpointError(
                    f"{self.path}: another process is writing this run; wait for it, or give another "
                    "--run-dir"
                ) from None
        except OSError:
            pass  # a file system without locks


def revision() -> str:
    """Lines `name: version`: git revision of the code (with `dirty` where files differ from it), Python, and
    the libraries that decide results."""
    lines = [
        f"code: {_git_revision(Path(__file__).parent)}",
        f"paw_hpc: {__version__}",
        f"python: {sys.version.split()[0]}",
    ]
    for name in ("torch", "transformers", "numpy", "textworld", "alfworld"):
        try:
            lines.append(f"{name}: {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name}: not installed")
    return "\n".join(lines) + "\n"


def _git_revision(package: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        # a package installed inside somebody's checkout is not of that checkout
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + (" (dirty)" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "no git checkout"


class MetricsWriter:
    """Writes one line per update to metrics.jsonl, durable before `write` returns, and the same numbers to
    TensorBoard.

    Args:
        start: the first update to come (the number of updates that are done). Lines of this update and later
            ones, left by an attempt that got further than its last checkpoint, are dropped first, so that a
            killed and resumed run has the stream of an uninterrupted one.
        recipe: says by `tracking` who else gets them; none: TensorBoard.

    Raises:
        StorageError: full disk; the lines before stay whole.
        StaleAttempt: a later attempt writes this run.
        DataError: metrics.jsonl is damaged before its last line.
    """

    def __init__(self, run: RunDirectory, start: int = 0, recipe: Recipe | None = None) -> None:
        self.path = run.metrics_path
        if self.path.exists():
            kept = [line for line, record in _records(self.path) if record["update"] < start]
            # Always a new file: an earlier attempt that still runs somewhere holds the old one.
            write_atomically(self.path, "".join(line + "\n" for line in kept))
        with storage_errors(self.path):
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
            self._tensorboard = (
                EventFile(run.tensorboard, start)
                if recipe is None or "tensorboard" in recipe.tracking
                else None
            )
        self.trackers = [] if recipe is None else trackers.start(trackers.Tracked(run.path, recipe))

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one update. Values that are not finite are written as null."""
        values = {name: float(value) for name, value in metrics.items()}
        fence.check(self.path)
        line = json.dumps(
            {"update": update} | {k: v if math.isfinite(v) else None for k, v in values.items()},
            allow_nan=False,
        )
        with storage_errors(self.path):
            append(self._file, line.encode() + b"\n", durable=True)
            if self._tensorboard is not None:
                self._tensorboard.write(update, values)
        for tracker in self.trackers:
            tracker.write(update, values)

    def close(self) -> None:
        """Close both files, for which nothing is pending: every line is already durable; and the trackers,
        whose rest is waited for."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        for tracker in self.trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl in order, null as NaN; a torn last line (a writer was killed, or is
    writing now) is left out; no file: no lines.

    Raises:
        DataError: a line before the last one is not a metrics line.
    """
    path = Path(path)
    if not path.exists():
        return []
    return [
        {k: math.nan if v is None else v if k == "update" else float(v) for k, v in record.items()}
        for _, record in _records(path)
    ]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            return  # the part after the last newline: empty, or torn
        try:
            record = read_json(line)
            if not isinstance(record["update"], int) or not 0 <= record["update"] < 2**63:
                raise TypeError
            for value in record.values():
                # an error for what is no number, or too large for one
                math.isnan(0.0 if value is None else value)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise DataError(
                f"{path}:{number}: not a metrics line; the file was changed by something else: restore it, "
                "or start a fresh run"
            ) from None
        yield line, record
