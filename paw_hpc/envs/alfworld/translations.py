"""Translations of games that were played before: files in the user's cache, so that a reset need not run Fast
Downward's translator again.

A file is a digest (SHA-256 of its key and of all that follows) and a zlib stream of three parts: a line of
JSON, the translation in Fast Downward's own format (SAS), and the one for its planner. Nothing is unpickled.
The key is a digest of the game's domain, grammar and problem, of this format, and of the versions of what
made it: for a game that changed, or another release, there is no file. What is damaged, too large, of another
user or writable by others is taken for absent, and made again. Files are written under another name and
renamed: many processes may read and write at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paw_hpc.system.data_paths import cache_root

FORMAT = 2
"""Goes up with every change of this file's form, and of what `engine` writes into it."""
LARGEST_BYTES = 64 << 20
"""Of a translation, unpacked; ALFWorld's have up to 2 MiB."""
DIGEST_BYTES = 32
LEVEL = 6


@dataclass
class Translation:
    """All that the engine takes from a game's PDDL. `facts` are those of the start, as [predicate, index into
    `variables`, ...]."""

    sas: bytes
    replan: bytes
    """For the planner; as `sas` where there is none."""
    numbered: bool
    """Whether objects stand in `sas` by their places in `objects`, which are shorter than their names."""
    types: list[tuple[str, list[str]]]
    """(name, supertypes)"""
    objects: dict[str, str]
    """name -> type"""
    actions: dict[str, list[tuple[str, str]]]
    """verb -> (name, type) of its parameters"""
    changing: list[str]
    """Predicates that some action's effect can change."""
    variables: list[tuple[str, str, str]]
    """(id, type, what a player reads)"""
    facts: list[list[Any]]
    feedback: str | None = None
    """What the player reads first; None: not yet told."""
    texts: dict[str, str] = field(default_factory=dict)
    """The command of each operator that can be applied at the start."""

    def packed(self) -> bytes:
        head = {name: value for name, value in vars(self).items() if name not in ("sas", "replan")}
        head["sas_bytes"] = len(self.sas)
        replan = b"" if self.replan == self.sas else self.replan
        return zlib.compress(
            json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" + self.sas + replan,
            LEVEL,
        )

    @classmethod
    def unpacked(cls, data: bytes) -> Translation:
        """Raises ValueError, KeyError or TypeError where `data` is none."""
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(data, LARGEST_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not unpacker.eof:
            raise ValueError(f"more than {LARGEST_BYTES} bytes, or torn")
        start = text.index(b"\n") + 1
        head = json.loads(text[:start])
        end = start + head.pop("sas_bytes")
        sas = text[start:end]
        return cls(sas=sas, replan=text[end:] or sas, **head)


def key_of(game: Mapping[str, Any], planner: bool) -> str:
    """A digest of all that a translation follows from (hex)."""
    digest = hashlib.sha256(f"{FORMAT} {_makers()} {planner}".encode())
    for part in ("pddl_domain", "grammar", "pddl_problem"):
        text = game[part].encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def read(key: str) -> Translation | None:
    """The translation that was kept under this key; None: there is none that is whole and the user's own."""
    try:
        with open(_path(key), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022 or status.st_size > LARGEST_BYTES:
                return None
            data = file.read()
    except OSError:
        return None
    if data[:DIGEST_BYTES] != _digest(key, data[DIGEST_BYTES:]):
        return None
    try:
        return Translation.unpacked(data[DIGEST_BYTES:])
    except (ValueError, KeyError, TypeError):
        return None


def keep(key: str, translation: Translation) -> None:
    """Keep a translation, for this user alone. Where the cache cannot be written, that is said once, and
    nothing is kept: play goes on without."""
    path, data = _path(key), translation.packed()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            # Not synced: what a power cut leaves behind is damaged, which its digest tells.
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(key, data) + data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        _say_once(str(path.parent.parent), error.strerror or str(error))


def folder() -> Path:
    """Where translations are kept; it may be removed at any time."""
    return cache_root() / "alfworld" / "translations"


def _path(key: str) -> Path:
    return folder() / key[:2] / key


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()


@functools.cache
def _makers() -> str:
    return " ".join(
        f"{name}={version(name)}" for name in ("alfworld", "textworld", "fast-downward-textworld")
    )


@functools.cache
def _say_once(place: str, reason: str) -> None:
    print(
        f"{place}: translations of games cannot be kept ({reason}); every reset translates anew: set "
        "PAW_CACHE to a writable folder",
        file=sys.stderr,
    )
