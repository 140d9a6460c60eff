"""A run directory that is a group's works for its members, and refuses others with a line. What everybody may
write is warned of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paw_hpc
from paw_hpc.run.metrics import RunDirectory, read_metrics
from paw_hpc.system.data_paths import atomic_file
from tests.cluster.runs import recipe, write
from tests.cluster.test_supervise import SEARCH
from tests.second_user import REQUIRED


def small() -> Any:
    env = {**SEARCH["env"], "search": {"data": "generated", "retriever": "bm25"}}
    return recipe({**SEARCH, "env": env, "cluster": {"cpus_per_node": 2}}, updates=3)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others can get to, as those of tests are not."""
    if os.geteuid() != 0:
        if REQUIRED:
            pytest.fail("PAW_REQUIRE_SECOND_USER is set, but only root can act as another user")
        pytest.skip("only root can act as another user")
    folder = Path(f"/tmp/paw-group-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_run_of_a_group(shared: Path) -> None:
    # The package lies where everybody can read it, as in an environment that a group shares; this checkout
    # may not.
    checkout = Path(paw_hpc.__file__).parents[1]
    for name in ("paw_hpc", "recipes", "slurm"):
        shutil.copytree(checkout / name, shared / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = write(small(), shared / "recipe.yaml")
    path.chmod(0o644)
    environment = {
        **os.environ,
        "PAW_CACHE": str(shared / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(shared / "code"),
    }
    done = subprocess.run(
        [sys.executable, "tests/group_member.py", str(shared), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines and lines[-1].get("command") == "logs", done.stdout[-3000:] + done.stderr[-3000:]
    ends = {(line["who"], line["command"]): (line["status"], line["said"]) for line in lines if "who" in line}
    # Members of the group go on with it, and with nothing that only its owner could use.
    for who in ("owner", "member"):
        assert {command: end for (one, command), end in ends.items() if one == who} == dict.fromkeys(
            ("train", "status", "report"), (0, [])
        )
    assert next(line["modes"] for line in lines if "modes" in line) == []
    assert [line["update"] for line in read_metrics(shared / "run" / "metrics.jsonl")] == [0, 1]
    # Others may look where they are let in, and are told in a line where they are not.
    run = shared / "run"
    assert ends["reader", "status"] == (0, [])
    assert ends["reader", "train"] == (
        2,
        [f"paw: {run}: it may not be written (permission denied); change that, or name another place"],
    )
    refused = {command: end for (one, command), end in ends.items() if one == "outsider"}
    assert set(refused) == {"train", "status", "report", "logs"}
    for status, [said] in refused.values():
        assert (
            status == 2
            and said.startswith(f"paw: {run}/")
            and "you may not use this (permission denied)" in said
        )


@pytest.mark.parametrize(("mode", "warned"), [(0o777, True), (0o775, False), (0o700, False)])
def test_a_run_that_everybody_may_write_is_warned_of(
    mode: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    RunDirectory(tmp_path / "run").open(small(), "test")
    assert ("every user of this machine may write here" in caplog.text) == warned


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o027, 0o640), (0o077, 0o600)])
def test_what_is_no_secret_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "data") as file:
            file.write(b"x")
        RunDirectory(tmp_path / "run").open(small(), "test")
    finally:
        os.umask(before)
    files = [tmp_path / "data", *(p for p in (tmp_path / "run").rglob("*") if p.is_file())]
    assert len(files) > 5 and {p.stat().st_mode & 0o777 for p in files} == {mode}
