"""A set of games in one file: what 4,027 small files become, so that a worker reads one game in a millisecond
from any file system.

The file is a zip archive. `index.json` names the games, in sorted order, with the digest of their content;
`logic/<digest>.json` holds a PDDL domain and a grammar, shared by all games that have the same; `games/<task
id>.json` holds the rest of a game. The archive's own CRCs guard every read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict

from paw_hpc.system.data_paths import atomic_file
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import checked, read_json

FORMAT = 1
LARGEST_BYTES = 64 << 20
"""Of a game, or of a set's index."""
ZIP_ERRORS = (
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    OSError,
    ValueError,
    RuntimeError,
)
"""What reading an archive can raise, beside BadZipFile; RuntimeError: it asks for a password, or knows a way
to pack that Python does not."""
T = TypeVar("T")


class _Format(TypedDict):
    format: Any


class _Index(TypedDict):
    games: dict[str, str]
    about: dict[str, Any]


class _Game(TypedDict):
    task: str
    pddl_problem: str
    walkthrough: list[str]
    solvable: bool
    logic: str


class _Logic(TypedDict):
    pddl_domain: str
    grammar: str


TASK_SENTENCE = re.compile(r'"rhs":\s*"(Your task is to:(?:[^"\\]|\\.)*)"')
TASK_HOLE = "@@TASK@@"
GAME_KEYS = ("pddl_domain", "grammar", "pddl_problem", "walkthrough", "solvable")
_DOS_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Store:
    """An open set of games. `digests` maps task ids, sorted, to the SHA-256 of a game's content; `about` is
    what the writer noted."""

    path: Path
    digests: Mapping[str, str]
    about: Mapping[str, Any]

    def read(self, task_id: str) -> dict[str, Any]:
        """The game as TextWorld's PddlEnv.load takes it: pddl_domain, grammar, pddl_problem, walkthrough,
        solvable. Raises DataError."""
        if task_id not in self.digests:
            raise DataError(f"{self.path}: no game '{task_id}' in it")
        game = _typed(self.path, f"games/{task_id}.json", _Game)
        logic = _logic(self.path, game["logic"])
        return {
            "pddl_domain": logic["pddl_domain"],
            "grammar": logic["grammar"].replace(TASK_HOLE, game["task"], 1),
            "pddl_problem": game["pddl_problem"],
            "walkthrough": list(game["walkthrough"]),
            "solvable": game["solvable"],
        }


def write_store(path: Path, games: Iterable[tuple[str, Mapping[str, Any]]], about: Mapping[str, Any]) -> None:
    """Write (task id, game) pairs as a store, atomically.

    Raises:
        DataError: a game lacks a key or states no task, two games share an id, the file cannot be written.
    """
    digests: dict[str, str] = {}
    logics: set[str] = set()
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
    ):
        for task_id, game in games:
            if task_id in digests:
                raise DataError(f"{path.name}: game '{task_id}' appears twice")
            logic, content = split_game(task_id, game)
            text = _dump(logic)
            content["logic"] = _sha(text)
            if content["logic"] not in logics:
                logics.add(content["logic"])
                _add(archive, f"logic/{content['logic']}.json", text)
            text = _dump(content)
            digests[task_id] = _sha(text)
            _add(archive, f"games/{task_id}.json", text)
        index = {"format": FORMAT, "about": dict(about), "games": dict(sorted(digests.items()))}
        _add(archive, "index.json", _dump(index))


def split_game(task_id: str, game: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """A game cut into the part that games share (domain, grammar with a hole for the task) and its own."""
    if missing := [key for key in GAME_KEYS if key not in game]:
        raise DataError(f"game '{task_id}' lacks {', '.join(missing)}")
    match = TASK_SENTENCE.search(game["grammar"])
    if match is None:
        raise DataError(f"game '{task_id}': its grammar states no task ('Your task is to: ...')")
    template = game["grammar"][: match.start(1)] + TASK_HOLE + game["grammar"][match.end(1) :]
    content = {
        "task": match.group(1),
        "pddl_problem": game["pddl_problem"],
        "walkthrough": list(game["walkthrough"] or ()),
        "solvable": bool(game["solvable"]),
    }
    return {"pddl_domain": game["pddl_domain"], "grammar": template}, content


def open_store(path: str | Path) -> Store:
    """Open a store, once per process. Raises DataError when it is missing, torn, or of another format."""
    try:
        return _open(Path(path), Path(path).stat().st_mtime_ns)
    except FileNotFoundError:
        raise DataError(f"{path}: no such set of games; run `paw data alfworld verify`") from None


@functools.lru_cache(maxsize=16)
def _open(path: Path, mtime_ns: int) -> Store:
    made_by = _typed(path, "index.json", _Format)["format"]
    if made_by != FORMAT:
        raise DataError(
            f"{path}: made by another version (format {made_by}, expected {FORMAT}); delete it and try again"
        )
    index = _typed(path, "index.json", _Index)
    return Store(path, index["games"], index["about"])


@functools.lru_cache(maxsize=16)
def _logic(path: Path, digest: str) -> dict[str, str]:
    return dict(_typed(path, f"logic/{digest}.json", _Logic))  # type: ignore[arg-type]


def _typed(path: Path, name: str, kind: type[T]) -> T:
    """A member of the archive, of the types that it should have. Raises DataError."""
    try:
        return checked(
            kind, read_json(read_member(_archive(path, path.stat().st_mtime_ns, os.getpid()), name))
        )
    except (*ZIP_ERRORS, zipfile.BadZipFile) as error:
        _archive.cache_clear()
        raise DataError(f"{path}: torn ({name}: {error}); delete it and try again") from None


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member: no more than LARGEST_BYTES, whatever a few bytes of the archive stand for.

    Raises:
        ZIP_ERRORS, BadZipFile: it is not there, torn, larger, or packed in a way that Python does not know.
    """
    if (size := archive.getinfo(name).file_size) > LARGEST_BYTES:
        raise ValueError(f"{size} bytes, more than a game has")
    return archive.read(name)


@functools.lru_cache(maxsize=4)
def _archive(path: Path, mtime_ns: int, pid: int) -> zipfile.ZipFile:
    # Keyed by process: after a fork, parent and child would share one file offset.
    return zipfile.ZipFile(path)


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    member = zipfile.ZipInfo(name, _DOS_EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, text)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
