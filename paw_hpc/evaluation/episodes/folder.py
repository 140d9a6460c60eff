"""The folder `episodes` of a run: whole files, one writer, a bound, any number of readers.

A file is written under a hidden name and renamed, so that a reader, and a kill at any moment, sees whole
files alone. What a file holds is a function of the run: a run that was resumed writes again what it plays
again, and ends with the files of one that was not.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paw_hpc.evaluation.episodes.schema import VERSION, VERSION_KEY
from paw_hpc.run import fence
from paw_hpc.system.errors import DataError
from paw_hpc.system.storage import storage_errors, sync_file, sync_folder

NAME = "episodes"
ROW_GROUP = 512
"""Rows that are compressed together: who looks at one episode of a large evaluation reads so many."""
_UPDATE, _EVALUATION = re.compile(r"update_(\d{6,})\.parquet"), re.compile(r"eval_(\d{6,})_(.+)\.parquet")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class EpisodeFile:
    """One kept file. They sort as they were played: by update, training after the evaluation that has seen as
    many."""

    update: int
    """Training: the update's number; an evaluation: updates that the policy has had."""
    training: bool
    path: Path

    @property
    def key(self) -> str:
        """Its name without the ending: how links and commands call it."""
        return self.path.stem

    @classmethod
    def of(cls, path: Path) -> EpisodeFile | None:
        """None: the name is none of ours."""
        if match := _UPDATE.fullmatch(path.name):
            return cls(int(match[1]), True, path)
        return cls(int(match[1]), False, path) if (match := _EVALUATION.fullmatch(path.name)) else None


def find(run: Path) -> list[EpisodeFile]:
    """The kept files of a run, in order; none where nothing was kept."""
    return sorted(
        found for path in (run / NAME).glob("*.parquet") if (found := EpisodeFile.of(path)) is not None
    )


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A kept file, or some of its columns.

    Raises:
        DataError: not a file of kept episodes, or one of a newer version of the columns.
    """
    try:
        said = (pq.read_schema(path).metadata or {}).get(VERSION_KEY)
        if said is None or int(said) > VERSION:
            what = (
                "not kept episodes"
                if said is None
                else f"its columns are of version {int(said)}, and this paw_hpc knows those up to {VERSION}"
            )
            raise DataError(f"{path}: {what}; remove it, or read it with the paw_hpc that wrote it")
        return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(
            f"{path}: cannot be read as kept episodes ({' '.join(str(error).split())}); remove it"
        ) from None


class EpisodeFolder:
    """Writes kept episodes. The process that writes a run's metrics writes its updates; an evaluation writes
    its own file.

    Args:
        run: the run directory.
        max_bytes: of all files together.
    """

    def __init__(self, run: Path, max_bytes: int) -> None:
        self.path, self._run, self._max_bytes = run / NAME, run, max_bytes

    def begin(self, start: int) -> None:
        """An attempt goes on after `start` updates: what an earlier one kept of later ones is removed, and
        what it left unfinished.

        Raises:
            StaleAttempt: a later attempt writes this run.
        """
        fence.check(self.path)
        with storage_errors(self.path):
            for file in find(self._run):
                if file.training and file.update >= start:
                    file.path.unlink(missing_ok=True)
            for torn in self.path.glob(".update_*.tmp"):
                torn.unlink(missing_ok=True)

    def write_update(self, update: int, rows: pa.Table) -> dict[str, float]:
        """Keep the chosen episodes of an update. Returns metrics: rows and bytes written, files dropped to
        stay within the bound.

        Raises:
            StorageError: full disk; the files before stay whole.
            StaleAttempt: a later attempt writes this run.
        """
        size = self._write(self.path / f"update_{update:06d}.parquet", rows)
        return {
            "episodes/steps": float(rows.num_rows),
            "episodes/bytes": float(size),
            "episodes/dropped_files": float(self._drop()),
        }

    def write_evaluation(self, update: int, label: str, rows: pa.Table) -> None:
        """Keep all episodes of an evaluation; one of the same label and update is replaced. Raises as
        `write_update`."""
        self._write(self.path / f"eval_{update:06d}_{re.sub(r'[^A-Za-z0-9._@+-]', '-', label)}.parquet", rows)
        self._drop()

    def _write(self, path: Path, rows: pa.Table) -> int:
        fence.check(self.path)
        temporary = path.with_name(f".{path.name}.tmp")
        with storage_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                pq.write_table(
                    rows, temporary, compression="zstd", use_dictionary=_REPEATED, row_group_size=ROW_GROUP
                )
                sync_file(temporary)
                size = temporary.stat().st_size
                fence.check(self.path)
                os.replace(temporary, path)
                sync_folder(self.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return size

    def _drop(self) -> int:
        """Remove files until the rest is within the bound; how many.

        Oldest updates first and the first one last: what is left is the newest that fits, a function of what
        was written and not of when an attempt began. The first one stays for what later ones are compared
        with.
        """
        files = find(self._run)
        training, evaluations = ([f for f in files if f.training is kind] for kind in (True, False))
        sizes = {file: file.path.stat().st_size for file in files}
        total, dropped = sum(sizes.values()), []
        for file in [*training[1:], *training[:1], *evaluations]:
            if total <= self._max_bytes:
                break
            file.path.unlink(missing_ok=True)
            total -= sizes[file]
            dropped.append(file.key)
        if dropped:
            _log.info(
                "episodes of %s were dropped, to stay within episodes.max_megabytes=%g",
                ", ".join(dropped),
                self._max_bytes / 1e6,
            )
        return len(dropped)


_REPEATED = ["purpose", "label", "task_id", "task_type", "prompt", "action", "observation", "predicted"]
"""Columns that hold the same text again and again."""
