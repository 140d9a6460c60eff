"""What checkpoints of every backend share: a folder that is whole or absent, and its manifest.

    DIRECTORY/update_000030/manifest.json     format, update, meta, size and SHA-256 of every other file

Everything is written and synced in a hidden folder, which is then renamed: a kill at any moment leaves the
earlier checkpoints and at most a hidden folder that the next save removes. An update that is saved again (a
signal right after a regular save) becomes `update_000030-2` before the first goes, so there is no moment
without one. The hidden file `.saved` says that there has been a checkpoint here: where there is none any
more, a run must not quietly begin anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.recipe.resume import differences
from paw_hpc.run import fence
from paw_hpc.system.errors import CheckpointError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import sync_folder

MANIFEST = "manifest.json"
_SAVED = ".saved"
OTHER_WEIGHTS = (
    "model.path: its weights are not those that the run began with; give the folder of the "
    "same model (the KL term is about it)"
)
_NAME = re.compile(r"update_(\d+)(?:-(\d+))?")


class _Entry(TypedDict):
    bytes: int
    sha256: str


class _Manifest(TypedDict):
    format: str
    update: Annotated[int, Field(ge=0, lt=2**63)]
    files: dict[str, _Entry]
    meta: dict[str, Any]


def checkpoints(directory: Path) -> list[tuple[int, int, Path]]:
    """(update, how many times it has been saved, folder), oldest first, whole or not; none where there is no
    such directory.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    try:
        names = os.listdir(directory)  # a glob would pass over what it may not read
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{directory}: its checkpoints cannot be read ({error.strerror}); see its permissions and its "
            "file system"
        ) from None
    return sorted(
        (int(match[1]), int(match[2] or 1), directory / match[0])
        for name in names
        if (match := _NAME.fullmatch(name))
    )


def ever_saved(directory: Path) -> bool:
    """Whether there has been a checkpoint here, even if there is none now."""
    return (directory / _SAVED).exists() or bool(checkpoints(directory))


def none_whole(directory: Path, reasons: list[str]) -> CheckpointError:
    """For a directory all of whose checkpoints were passed over, with what is wrong with each, newest
    first."""
    return CheckpointError(
        f"{directory}: none of its {len(reasons)} checkpoints can be used (the newest: {reasons[0]}); "
        "restore one from a copy, or begin anew with --fresh"
    )


def begin(directory: Path, update: int) -> Path:
    """A new hidden folder to write into, once what killed saves left is gone. Raises StaleAttempt where a
    later attempt writes this run."""
    fence.check(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob(".update_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    temporary = directory / f".update_{update:06d}.tmp"
    temporary.mkdir()
    return temporary


def write_manifest(
    folder: Path, form: str, update: int, files: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]
) -> None:
    """The last file of a checkpoint, and everything durable.

    Args:
        form: what the files hold, and in which version.
        files: name -> {"bytes", "sha256"}; files in subfolders by their relative path.
    """
    with open(folder / MANIFEST, "w", encoding="utf-8") as text:
        json.dump({"format": form, "update": update, "files": files, "meta": meta}, text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    sync_folder(folder)


def commit(temporary: Path, update: int, keep: int) -> Path:
    """Give a hidden folder its name, and remove all but the newest `keep` checkpoints. Returns the folder of
    the checkpoint.

    Raises StaleAttempt where a later attempt writes this run.
    """
    directory = temporary.parent
    fence.check(directory)
    saved = max((count for other, count, _ in checkpoints(directory) if other == update), default=0)
    final = directory / (f"update_{update:06d}" + (f"-{saved + 1}" if saved else ""))
    os.replace(temporary, final)
    (directory / _SAVED).touch()
    sync_folder(directory)
    _prune(directory, final, keep)
    return final


def read_manifest(path: Path, form: str) -> dict[str, Any]:
    """The manifest, once every file has the size that it says.

    Raises:
        CheckpointError: torn, of another format, or no checkpoint of paw_hpc.
    """
    try:
        manifest = read_json((path / MANIFEST).read_bytes())
        if manifest["format"] != form:
            raise CheckpointError(
                f"{path}: has format {str(manifest['format'])[:80]!r}, this version reads {form!r}"
            )
        manifest = checked(_Manifest, manifest)
        for name, entry in manifest["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts or (path / name).is_dir():
                raise ValueError(name)
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{path}: torn: {name} has {size} bytes of {entry['bytes']}")
        if not manifest["files"]:
            raise ValueError
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: not a whole checkpoint: {Path(error.filename).name} is missing"
        ) from None
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: {Path(error.filename).name} may not be read; see its permissions"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: not a checkpoint of paw_hpc: its {MANIFEST} cannot be understood"
        ) from None
    return dict(manifest)


def check_content(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises CheckpointError where a file does not hold what was written."""
    for name, entry in files.items():
        try:
            found = digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error.strerror})") from None
        if found != entry["sha256"]:
            raise CheckpointError(f"{path}: torn: {name} has the wrong checksum")


def check_recipe(
    path: Path, meta: Mapping[str, Any], recipe: Recipe, may_differ: Collection[str] = ()
) -> None:
    """Raises CheckpointError where another recipe made the checkpoint; the differing keys are named.

    Args:
        may_differ: keys, or sections for all of their keys, that may, beside those that always may (see
            recipe/resume.py).
    """
    if "recipe" not in meta:
        raise CheckpointError(f"{path}: does not say which recipe made it")
    differing = [
        str(each)
        for each in differences(parse_recipe(meta["recipe"], where=f"{path}/{MANIFEST}"), recipe)
        if each.verdict in ("by name", "never")
        and not any(each.key == name or each.key.startswith(f"{name}.") for name in may_differ)
    ]
    if differing:
        raise CheckpointError(
            f"{path}: made by another recipe ({', '.join(differing)}); resume with its own recipe, or "
            "start with --fresh"
        )


def has_moved(meta: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether the checkpoint's recipe finds the initial model in another place: its fingerprint must be
    compared then."""
    return meta["recipe"]["model"]["path"] != recipe.model.path


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _prune(directory: Path, newest: Path, keep: int) -> None:
    """Keep `newest` and the last save of each of the newest `keep` updates."""
    last = {update: path for update, _, path in checkpoints(directory)}
    kept = {newest, *list(last.values())[-keep:]}
    for _, _, path in checkpoints(directory):
        if path not in kept:
            # Renamed first: a kill inside rmtree must not leave something that looks like a torn checkpoint.
            doomed = directory / f".{path.name}.tmp"
            os.replace(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
