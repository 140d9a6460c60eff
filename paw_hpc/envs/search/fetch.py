"""Downloads of the official questions and passages from the Hugging Face hub, checked by size, count and hash
as far as those are known."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from paw_hpc.envs.search import data
from paw_hpc.envs.search.questions import read_questions
from paw_hpc.system.data_paths import atomic_file, cache_dir
from paw_hpc.system.errors import DataError

QUESTIONS_REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
CORPUS_REPOSITORY, CORPUS_REVISION, CORPUS_FILE = (
    "PeterJinGo/wiki-18-corpus",
    "69c1c00ffe7c5554c68d8548355cb22e46aabc51",
    "wiki-18.jsonl.gz",
)
CORPUS_SHA256 = "7abd929223399cd63c52b499f289bf4f9039be1e9f8c43e1cb3938305b2317db"


def official_folder() -> Path:
    """Where fetched data is kept."""
    return cache_dir(data.FOLDER, data.OFFICIAL)


def fetch_questions() -> Path:
    """Every set and split that training and evaluation use. Returns their folder.

    Raises:
        DataError: the hub cannot be reached, or what came is torn.
    """
    folder = official_folder()
    for dataset, split in data.OFFICIAL_COUNTS:
        name = f"{dataset}/{split}.jsonl"
        read_questions(_download(QUESTIONS_REPOSITORY, name, folder), dataset, split)
    return folder


def fetch_corpus() -> Path:
    """The wiki-18 dump: 5 GB of download, 14 GB unpacked. Returns the unpacked file.

    Raises:
        DataError: the hub cannot be reached, the download is torn, or the disk is full.
    """
    folder = official_folder()
    target = folder / data.CORPUS
    if not target.is_file():
        packed = _download(CORPUS_REPOSITORY, CORPUS_FILE, folder, CORPUS_REVISION)
        check_sha256(packed, CORPUS_SHA256)
        unpack(packed, target)
        packed.unlink()
    return target


def check_sha256(path: Path, expected: str) -> None:
    """Raises DataError where the file is not the published one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: sha256 {found[:12]}..., published is {expected[:12]}...; delete it and fetch again"
        )


def unpack(packed: Path, target: Path) -> None:
    """Write the JSON lines of a gzip file, or of the only file of a gzipped tar archive (the dump has been
    published as both), to `target`.

    Raises:
        DataError: a torn archive, or a full disk.
    """
    try:
        with gzip.open(packed) as lines, atomic_file(target) as file:
            if tarfile.is_tarfile(cast(IO[bytes], lines)):
                lines.seek(0)
                with tarfile.open(fileobj=lines) as archive:
                    members = [m for m in archive if m.isfile()]
                    content = archive.extractfile(members[0]) if len(members) == 1 else None
                    if content is None:
                        raise DataError(
                            f"{packed}: an archive of {len(members)} files; expected one with the passages"
                        )
                    shutil.copyfileobj(content, file, 1 << 24)
            else:
                lines.seek(0)
                shutil.copyfileobj(lines, file, 1 << 24)
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, OSError) as error:
        raise DataError(
            f"{packed}: cannot be unpacked ({type(error).__name__}: {error}); delete it and fetch again"
        ) from None


def _download(repository: str, name: str, folder: Path, revision: str | None = None) -> Path:
    try:
        return Path(
            hf_hub_download(repository, name, repo_type="dataset", revision=revision, local_dir=folder)
        )
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise DataError(
            f"{repository}/{name} cannot be reached ({type(error).__name__}: {_first_line(error)}); "
            f"download it elsewhere into {folder}, "
            "set PAW_DATA to a folder with search/official, or play env.search.data=mini or generated"
        ) from None


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:160] if lines else ""
