"""Runs, their kept files, episodes and steps, as plain values that JSON can carry. Reads what is there now:
also of a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paw_hpc.evaluation.episodes import folder
from paw_hpc.evaluation.episodes.folder import EpisodeFile
from paw_hpc.study.view.kept import EpisodeSummary, KeptFile
from paw_hpc.system.errors import DataError


class Library:
    """Runs and their kept files.

    Args:
        runs: run directories (or folders with `episodes/` alone, as `paw eval --out` makes them).

    Raises:
        DataError: a path without kept episodes.
    """

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = dict(zip(_names(runs), runs, strict=True))
        for path in runs:
            if not folder.find(path):
                there = "no such folder" if not path.exists() else f"nothing is kept in {path / folder.NAME}"
                raise DataError(
                    f"{path}: {there}; a recipe with episodes.groups above 0 keeps episodes of every update"
                )
        self._open: dict[Path, tuple[tuple[int, int], KeptFile]] = {}

    def index(self) -> list[dict[str, Any]]:
        """Every run with its files, as they are now."""
        return [
            {"name": name, "files": [_file(file) for file in folder.find(path)]}
            for name, path in self.runs.items()
        ]

    def files(self, run: str) -> list[KeptFile]:
        """Raises DataError for a run that is not here."""
        if run not in self.runs:
            raise DataError(f"no run {run}; there are {', '.join(self.runs)}")
        return [self._kept(file) for file in folder.find(self.runs[run])]

    def file(self, run: str, key: str) -> KeptFile:
        """Raises DataError for what is not here (it may have been dropped: `episodes.max_megabytes`)."""
        found = next((kept for kept in self.files(run) if kept.file.key == key), None)
        if found is None:
            raise DataError(
                f"{self.runs[run]}: no kept file {key}; there are "
                f"{', '.join(f.key for f in folder.find(self.runs[run])[-5:])} and earlier"
            )
        return found

    def episodes(self, run: str, key: str) -> list[dict[str, Any]]:
        """See `EpisodeSummary`."""
        return [asdict(episode) for episode in self.file(run, key).episodes]

    def steps(self, run: str, key: str, group: int, member: int) -> list[dict[str, Any]]:
        """Raises DataError for an episode that was not kept."""
        kept = self.file(run, key)
        episode = kept.episode(group, member)
        if episode is None:
            raise DataError(f"{run}, {key}: no episode {member} of group {group} is kept")
        return kept.steps(episode)

    def same_task(self, run: str, key: str, group: int, member: int) -> list[dict[str, Any]]:
        """Other episodes of the same task, those with the same seed first: in other runs at the same update,
        then at other updates. Of a group that has the task with other seeds, its first member alone."""
        mine = self.file(run, key).episode(group, member)
        return (
            []
            if mine is None
            else same_task({name: self.files(name) for name in self.runs}, (run, key, group), mine)
        )

    def _kept(self, file: EpisodeFile) -> KeptFile:
        """The same object as long as the file is the same: what it has computed is not computed again."""
        try:
            stat = file.path.stat()
        except OSError:
            return KeptFile(file)  # reading it says what is wrong
        state = (stat.st_mtime_ns, stat.st_size)
        if self._open.get(file.path, (None,))[0] != state:
            self._open[file.path] = (state, KeptFile(file))
        return self._open[file.path][1]


def same_task(
    files: Mapping[str, Sequence[KeptFile]], mine: tuple[str, str, int], episode: EpisodeSummary
) -> list[dict[str, Any]]:
    """See `Library.same_task`; `files`: of every run; `mine`: run, file and group of the episode, in which
    none is looked for."""
    found = []
    for name, kept_files in files.items():
        for kept in kept_files:
            groups: set[int] = set()
            for other in kept.by_task.get(episode.task_id, ()):
                place = (name, kept.file.key, other.group, other.member)
                if place[:3] == mine:
                    continue
                same = other.seed == episode.seed
                if same or other.group not in groups:
                    where = dict(zip(("run", "file", "group", "member"), place, strict=True))
                    found.append(where | {"same_seed": same, "success": other.success})
                groups.add(other.group)
    return sorted(found, key=lambda each: (not each["same_seed"], each["file"] != mine[1]))


def _names(runs: Sequence[Path]) -> Iterator[str]:
    """The last part of each path; all of it where two are called alike."""
    last = [path.resolve().name for path in runs]
    for path, name in zip(runs, last, strict=True):
        yield name if last.count(name) == 1 else str(path)


def _file(file: EpisodeFile) -> dict[str, Any]:
    return {"key": file.key, "update": file.update, "training": file.training}
