"""ALFWorld's games: found, checked, listed in one global order, read one by one.

Whatever form the official games come in, they are packed once into one file of the cache (see store.py),
which is what workers read. Where there are none, games are generated (see generate.py).
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paw_hpc.envs.alfworld import official
from paw_hpc.envs.alfworld.store import Store, open_store, write_store
from paw_hpc.envs.base import Task
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system import data_paths, downloads
from paw_hpc.system.errors import DataError

GamesSource = Literal["auto", "official", "generated"]

OFFICIAL_COUNTS = {"train": 3553, "valid_seen": 140, "valid_unseen": 134, "valid_train": 200}
OFFICIAL_CHECKSUMS = {
    "train": "85a8f951d790340d2e2792987f9d36fb6a9a8bedd61ddb176aee5c812e5c3b05",
    "valid_seen": "f04d1bc695017c37709f1d4cea4f55986788f759e7924249314758c73f0f0569",
    "valid_unseen": "eb2ed2d2613a6fe54b988ed122f11ff0421d5e4fef71d68035a731b3e4837de2",
    "valid_train": "54ae104b37b7e969df2e4149d70f5b7da04202b7aaac20fdc514d796d1151c68",
}
"""Of the ALFWorld 0.4 release: `checksum` of each split."""

RELEASE_URL = "https://github.com/alfworld/alfworld/releases/download/0.4.0/json_2.1.2_tw-pddl.zip"
"""The address from which ALFWorld's own `alfworld-download` takes the text games (the images, plans and
detectors it also fetches are not needed)."""


def tasks(split: str, source: GamesSource = "auto", task_types: Sequence[str] = TASK_TYPES) -> list[Task]:
    """The games of a split, sorted by task id (`<split>/<task>/<trial>`), the same list on every machine.

    Args:
        split: train, valid_seen, valid_unseen or valid_train.
        source: auto takes the official games where they are at hand, else generated ones (made on first use).

    Raises:
        DataError: unknown split or task type, no official games though asked for, torn files, a mix of
            releases.
    """
    if split not in OFFICIAL_COUNTS:
        raise DataError(f"ALFWorld has no split '{split}'; one of {', '.join(OFFICIAL_COUNTS)}")
    if unknown := sorted(set(task_types) - set(TASK_TYPES)):
        raise DataError(f"ALFWorld has no task type '{unknown[0]}'; one of {', '.join(TASK_TYPES)}")
    listed = [task for store in _stores(split, source, task_types) for task in tasks_of(store, split)]
    return sorted((task for task in listed if task.task_type in task_types), key=lambda task: task.task_id)


def tasks_of(store: Store, split: str) -> list[Task]:
    """The games of a split (official or generated) in one store, sorted by task id."""
    by_split = _by_split(store.path, tuple(store.digests))
    return list(by_split.get(split) or by_split.get(f"generated-{split}") or ())


def load_game(task: Task) -> dict[str, Any]:
    """The game of a task, as TextWorld's PddlEnv.load takes it (pddl_domain, grammar, pddl_problem,
    walkthrough, solvable), in about a millisecond.

    Raises:
        DataError: the store is gone or torn, or belongs to another ALFWorld release than the installed one.
    """
    store = open_store(task.source)
    _check_verb(store)
    return store.read(task.task_id)


def source_name(source: GamesSource = "auto") -> str:
    """Which games a run plays, for its report: "official games (archive)", "official games (folder,
    incomplete)", "generated games"."""
    origin = _origin(source)
    if origin is None:
        return "generated games"
    whole = all(len(tasks(split, source)) == count for split, count in OFFICIAL_COUNTS.items())
    return f"official games ({origin.kind}{'' if whole else ', incomplete'})"


def is_official(source: GamesSource = "auto") -> bool:
    """Whether `tasks(..., source)` lists official games here."""
    return _origin(source) is not None


def content_digests(listed: Sequence[Task]) -> list[str]:
    """SHA-256 of each game's content, in the order given."""
    return [open_store(task.source).digests[task.task_id] for task in listed]


def checksum(listed: Sequence[Task]) -> str:
    """SHA-256 over the sorted (task id, content digest) pairs: equal on two machines when and only when they
    would play the same games."""
    lines = sorted(
        f"{task.task_id} {digest}\n" for task, digest in zip(listed, content_digests(listed), strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class SplitReport:
    """What `verify` found of one official split."""

    split: str
    found: int
    expected: int
    intact: bool
    """The games are exactly those of the release, by content."""


def verify() -> list[SplitReport]:
    """Compare the official games at hand with the release, counts and contents per split, and read every one
    of them.

    Raises:
        DataError: there are none, or torn ones, or ones of another release.
    """
    reports = []
    for split, expected in OFFICIAL_COUNTS.items():
        listed = tasks(split, "official")
        for task in listed:
            load_game(task)
        reports.append(
            SplitReport(split, len(listed), expected, checksum(listed) == OFFICIAL_CHECKSUMS[split])
        )
    return reports


def fetch() -> Path:
    """Download the official games (the text games alone) into the cache, and pack them. Returns the
    downloaded file.

    Raises:
        DataError: the release cannot be reached, or what came is torn.
    """
    target = data_paths.cache_dir("alfworld") / official.RELEASE
    with data_paths.atomic_file(target) as file:
        for block in _download(target.parent):
            file.write(block)
    try:
        _pack(official.Origin("release", target), target.parent)
    except DataError:
        target.unlink()
        raise
    return target


def _download(folder: Path) -> Iterator[bytes]:
    try:
        yield from downloads.blocks(RELEASE_URL)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{RELEASE_URL} cannot be reached ({getattr(error, 'reason', error)}); download it elsewhere "
            f"and put it into {folder}, "
            "point PAW_DATA or ALFWORLD_DATA to a folder with json_2.1.1, or play generated games "
            "(env.games=generated)"
        ) from None


def _origin(source: GamesSource) -> official.Origin | None:
    origin = None if source == "generated" else official.find()
    if source == "official" and origin is None:
        looked = ", ".join(str(folder) for folder in official.search_folders())
        raise DataError(
            f"no official ALFWorld games found in {looked}; run `paw data alfworld fetch`, set PAW_DATA, "
            "or use env.games=generated"
        )
    return origin


def _stores(split: str, source: GamesSource, task_types: Sequence[str]) -> list[Store]:
    origin = _origin(source)
    if origin is None:
        from paw_hpc.envs.alfworld import generate

        return generate.default_stores(split, task_types)
    store = open_store(_pack(origin, data_paths.cache_dir("alfworld")))
    _check_verb(store)
    return [store]


@functools.lru_cache(maxsize=4)
def _pack(origin: official.Origin, folder: Path) -> Path:
    """The packed form of official games, made on first use: 20 MB that are read at random, in place of 217 MB
    in 4,027 files."""
    path = folder / f"official-{origin.fingerprint()}.zip"
    if _usable(path):
        return path
    with data_paths.locked(path):
        if not _usable(path):
            print(
                f"packing the official ALFWorld games of {origin.path} into {path} (once) ...",
                file=sys.stderr,
            )
            write_store(path, origin.games(), {"verb": official.installed_verb(), "origin": str(origin.path)})
    return path


def _usable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        return bool(open_store(path).digests)
    except DataError:
        return False


def _check_verb(store: Store) -> None:
    verb, installed = store.about.get("verb"), official.installed_verb()
    if verb != installed:
        raise DataError(
            f"{store.path}: games that say '{verb} ...' where the installed alfworld package says "
            f"'{installed} ...'; use games of its release"
        )


@functools.lru_cache(maxsize=16)
def _by_split(path: Path, task_ids: tuple[str, ...]) -> Mapping[str, list[Task]]:
    splits: dict[str, list[Task]] = {}
    for task_id in sorted(task_ids):
        split, name, _ = task_id.split("/")
        splits.setdefault(split, []).append(Task(task_id, name.split("-")[0], str(path)))
    return splits
