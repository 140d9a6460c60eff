"""The official games, in the three forms in which they are met, read as one stream of (task id, game).

- folder: `json_2.1.1/<split>/<task>/<trial>/game.tw-pddl`, what ALFWorld's own downloader unpacks;
- release: `json_2.1.2_tw-pddl.zip` of ALFWorld 0.4.0, as downloaded, not unpacked;
- archive: `games.jsonl.xz` (a game per line: split, task, trial, goal, problem, walkthrough, solvable) with
  `logic.json` (what all games share).

As in ALFWorld's own loader, tasks with movable receptacles or sliced objects and games not marked solvable
are left out.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import lzma
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from paw_hpc.envs.alfworld.store import GAME_KEYS, LARGEST_BYTES, ZIP_ERRORS, read_member
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import read_json
from paw_hpc.system.text import require_text

GAME_FILE = "game.tw-pddl"
FOLDER, RELEASE, ARCHIVE = "json_2.1.1", "json_2.1.2_tw-pddl.zip", "games.jsonl.xz"
_LONGEST_ID = 500
_HOLE = "@@TASK@@"
_ARCHIVE_KEYS = ("split", "task", "trial", "goal", "problem", "walkthrough", "solvable")
_PUT_TEMPLATE = re.compile(r'action\s+PutObject\s*\{\s*template\s*::\s*"(\w+)')
_AGAIN = "delete it and run `paw data alfworld fetch`"

Game = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Official data found on this machine."""

    kind: Literal["folder", "release", "archive"]
    path: Path

    def fingerprint(self) -> str:
        """Changes whenever a file of it is added, removed, resized or rewritten."""
        if self.kind == "folder":
            files = [(p.relative_to(self.path).as_posix(), p) for p in _game_files(self.path)]
        else:
            files = [(p.name, p) for p in (self.path, self.path.with_name("logic.json")) if p.exists()]
        lines = [f"{name} {p.stat().st_size} {p.stat().st_mtime_ns}" for name, p in files]
        return hashlib.sha256("\n".join([str(self.path), *lines]).encode()).hexdigest()[:16]

    def games(self) -> Iterator[tuple[str, Game]]:
        """(task id, game) in no particular order; solvable games only. Raises DataError for a torn file or a
        mix of releases."""
        read = {"folder": _read_folder, "release": _read_release, "archive": _read_archive}[self.kind]
        for task_id, where, game in read(self.path):
            if not (task_id.isprintable() and task_id.isascii() and len(task_id) <= _LONGEST_ID):
                raise DataError(f"{where}: a game at '{task_id}', which is no name of one; {_AGAIN}")
            if "movable" in task_id or "Sliced" in task_id or not game.get("solvable"):
                continue
            check_game(game, where)
            check_release(game, where)
            if len(PurePosixPath(task_id).parts) != 3:
                raise DataError(f"{where}: a game at '{task_id}', expected <split>/<task>/<trial>; {_AGAIN}")
            yield task_id, game


def find() -> Origin | None:
    """The first official data at hand: $PAW_DATA, $ALFWORLD_DATA, ../shared/data beside the checkout, the
    cache, ALFWorld's own cache."""
    for folder in search_folders():
        if (folder / FOLDER).is_dir() and next(_game_files(folder / FOLDER), None):
            return Origin("folder", folder / FOLDER)
        if (folder / RELEASE).is_file():
            return Origin("release", folder / RELEASE)
        if (folder / ARCHIVE).is_file():
            return Origin("archive", folder / ARCHIVE)
    return None


def search_folders() -> list[Path]:
    """The folders in which `find` looks, first choice first."""
    folders = [folder for root in data_paths.data_roots() for folder in (root, root / "alfworld")]
    default = Path.home() / ".cache" / "alfworld"
    named = Path(os.environ.get("ALFWORLD_DATA") or default).expanduser()
    # Importing alfworld sets ALFWORLD_DATA to its default: that is nobody's choice and must not change the
    # order.
    chosen = [] if named == default else [named]
    first = 2 if os.environ.get("PAW_DATA") else 0
    return [*folders[:first], *chosen, *folders[first:], default]


def put_verb(grammar: str) -> str:
    """The verb of the put-down command in a grammar: "move" since ALFWorld 0.4, "put" before."""
    match = _PUT_TEMPLATE.search(grammar)
    return match.group(1) if match else "?"


def installed_verb() -> str:
    """The verb of the installed alfworld package. Raises DataError when the package is missing."""
    return put_verb(installed_logic()[1])


@functools.cache
def installed_logic() -> tuple[str, str]:
    """(PDDL domain, grammar with "UNKNOWN GOAL" for the task) of the installed alfworld package. Raises
    DataError when it is missing."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the alfworld package is not installed; run `pip install 'paw-hpc[alfworld]'`")
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    return (data / "alfred.pddl").read_text(), (data / "alfred.twl2").read_text()


def check_game(game: Mapping[str, Any], where: str) -> None:
    """Refuse what is no game, in one line that names it.

    Raises:
        DataError: a part is missing, of another kind, or no text.
    """
    try:
        for key in ("pddl_domain", "grammar", "pddl_problem"):
            if not isinstance(game[key], str):
                raise TypeError(f"{key} is {json.dumps(game[key])[:40]}, expected text")
        walkthrough = game["walkthrough"]
        if walkthrough is not None and not (
            isinstance(walkthrough, list) and all(isinstance(command, str) for command in walkthrough)
        ):
            raise TypeError(f"walkthrough is {json.dumps(walkthrough)[:40]}, expected a list of commands")
        require_text({key: game[key] for key in GAME_KEYS})
    except KeyError as error:
        raise DataError(f"{where}: a game that lacks {error.args[0]}; {_AGAIN}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a game ({error}); {_AGAIN}") from None


def check_release(game: Mapping[str, Any], where: str) -> None:
    """Refuse a mix: ALFWorld 0.4 renamed "put X in/on Y" to "move X to Y", and an agent trained on one fails
    the other.

    Raises:
        DataError: the game's grammar, its walkthrough and the installed package do not speak of the same
            command.
    """
    installed, grammar = installed_verb(), put_verb(game["grammar"])
    walked = {verb for command in game.get("walkthrough") or () for verb in command.split()[:1]} & {
        "move",
        "put",
    }
    if walked - {grammar}:
        raise DataError(
            f"{where}: its walkthrough says '{walked.pop()}' and its grammar '{grammar}': files of two "
            f"releases are mixed; {_AGAIN}"
        )
    if grammar == installed:
        return
    remedy = (
        "run `paw data alfworld fetch` for the games of this release"
        if installed == "move"
        else "upgrade: `pip install 'alfworld>=0.4.2'`"
    )
    raise DataError(
        f"{where}: a game of another ALFWorld release (put down = '{grammar} ...', the installed package "
        f"says '{installed} ...'); {remedy}"
    )


def _game_files(folder: Path) -> Iterator[Path]:
    return (
        p
        for split in sorted(folder.iterdir())
        if split.is_dir()
        for p in sorted(split.glob(f"*/*/{GAME_FILE}"))
    )


def _read_folder(folder: Path) -> Iterator[tuple[str, str, Game]]:
    for path in _game_files(folder):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        yield path.parent.relative_to(folder).as_posix(), str(path), _parse(data, str(path))


def _read_release(path: Path) -> Iterator[tuple[str, str, Game]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name).parts
                if parts[-1:] == (GAME_FILE,):
                    yield (
                        "/".join(parts[-4:-1]),
                        f"{path}:{name}",
                        _parse(read_member(archive, name), f"{path}:{name}"),
                    )
    except (*ZIP_ERRORS, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: torn ({error}); {_AGAIN}") from None


def _read_archive(path: Path) -> Iterator[tuple[str, str, Game]]:
    logic = _parse_archive_logic(path.with_name("logic.json"))
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LARGEST_BYTES + 1), ""), 1):
                if len(line) > LARGEST_BYTES:  # a few bytes of an archive can stand for gigabytes
                    raise DataError(
                        f"{path}:{number}: a line of more than {LARGEST_BYTES} characters; restore it, or "
                        f"{_AGAIN}"
                    )
                if line.strip():
                    where = f"{path}:{number}"
                    record = _parse(line.encode(), where)
                    try:
                        yield _game_of(record, logic, where)
                    except RecursionError:
                        raise DataError(
                            f"{where}: not a game (nested too deeply); restore it, or {_AGAIN}"
                        ) from None
    except (lzma.LZMAError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: torn ({type(error).__name__}: {error}); restore it, or {_AGAIN}") from None


def _parse_archive_logic(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DataError(
            f"{path}: missing; it belongs beside {ARCHIVE} (the domain and grammar that its games share)"
        )
    logic = _parse(path.read_bytes(), str(path))
    if not all(isinstance(logic.get(key), str) for key in ("pddl_domain", "grammar_template")):
        raise DataError(f"{path}: lacks pddl_domain or grammar_template; restore it, or {_AGAIN}")
    return logic


def _game_of(record: Mapping[str, Any], logic: Mapping[str, str], where: str) -> tuple[str, str, Game]:
    if missing := [key for key in _ARCHIVE_KEYS if key not in record]:
        raise DataError(f"{where}: a game that lacks {', '.join(missing)}; restore it, or {_AGAIN}")
    if not isinstance(record["goal"], str):
        raise DataError(
            f"{where}: not a game (goal is {json.dumps(record['goal'])[:40]}, expected text); restore it, "
            f"or {_AGAIN}"
        )
    game = {
        "pddl_domain": logic["pddl_domain"],
        "grammar": logic["grammar_template"].replace(_HOLE, record["goal"], 1),
        "pddl_problem": record["problem"],
        "walkthrough": record["walkthrough"],
        "solvable": record["solvable"],
    }
    return f"{record['split']}/{record['task']}/{record['trial']}", where, game


def _parse(data: bytes, where: str) -> Game:
    try:
        game = read_json(data)
    except ValueError as error:
        raise DataError(f"{where}: torn, not JSON ({error}); {_AGAIN}") from None
    if not isinstance(game, dict):
        raise DataError(f"{where}: not a game; {_AGAIN}")
    return game
