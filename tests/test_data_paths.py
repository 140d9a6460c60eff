"""Where data is looked for and how files are written."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError


def test_paw_data_comes_before_the_shared_folder_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, checkout, cache = tmp_path / "named", tmp_path / "work" / "checkout", tmp_path / "cache"
    shared = checkout.parent / "shared" / "data"
    for folder in (named, checkout, shared, cache):
        folder.mkdir(parents=True)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PAW_DATA", str(named))
    monkeypatch.setenv("PAW_CACHE", str(cache))
    roots = data_paths.data_roots()
    assert roots[0] == named and roots[-1] == cache and shared in roots
    monkeypatch.delenv("PAW_DATA")
    assert named not in data_paths.data_roots()


def test_folders_that_are_not_there_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "cache"))
    assert tmp_path / "cache" not in data_paths.data_roots()
    data_paths.cache_dir("alfworld")
    assert tmp_path / "cache" in data_paths.data_roots()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), data_paths.atomic_file(path) as file:
        file.write(b"half of the new")
        raise ZeroDivisionError
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    with data_paths.atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    text = r"cannot be written \(No space left on device\); free some space"
    with (
        pytest.raises(DataError, match=text),
        data_paths.atomic_file(tmp_path / "file"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x")
    assert not list(tmp_path.iterdir())


def _hold(path: Path, log: Path) -> None:
    with data_paths.locked(path):
        with log.open("a") as file:
            file.write("in ")
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("out ")


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    holders = [context.Process(target=_hold, args=(tmp_path / "thing", log)) for _ in range(3)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(20)
    assert log.read_text() == "in out " * 3
