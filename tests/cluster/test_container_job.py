"""A job of the test cluster whose trainer runs in an image, by the command lines that Apptainer gets.

The image is a folder, built as containers/README.md says; PAW_TEST_IMAGE names it. `apptainer` is a stand-in
(the script beside this file), so this shows that the image holds what a job needs, and that the command lines
let it reach its run; not that Apptainer takes them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster import attempts
from paw_hpc.evaluation.results import read_evaluations
from tests.cluster.runs import TINY, explain, paw, processes_naming, recipe, stream, wait_until, write
from tests.cluster.test_faults import launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STAND_IN = Path(__file__).parent / "apptainer"
IMAGE = "PAW_TEST_IMAGE"
PYTHON = "/opt/paw/.venv/bin/python"
TWO_NODES: dict[str, Any] = {
    **TINY,
    "name": "contained",
    "env": {**TINY["env"], "games": "generated"},  # the image has no others
    "updates": 2,
    "policy": {"backend": "megatron"},
    "megatron": {"tensor_parallel": 2, "timeout_s": 600},
    "eval": {"panel": "valid_seen:2@0", "every": 2},
    "cluster": {**TINY["cluster"], "trainer_nodes": 2},
}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its root folder. On the path of the job stands an `apptainer` that keeps a log of its starts in
    `tmp_path / "starts"`."""
    if not os.environ.get(IMAGE):
        pytest.skip(f"{IMAGE} names no folder with an image (containers/README.md)")
    if os.geteuid():
        pytest.skip("only root can enter an image without Apptainer")
    (programs := tmp_path / "programs").mkdir()
    (programs / "apptainer").symlink_to(STAND_IN)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PAW_APPTAINER_LOG", str(tmp_path / "starts"))
    return Path(os.environ[IMAGE])


def test_an_image_sees_what_the_command_line_names(image: Path, tmp_path: Path) -> None:
    """Otherwise the job below could find its run without being given it."""
    (tmp_path / "file").write_text("here")

    def status(*arguments: str) -> int:
        return subprocess.run(["apptainer", "exec", *arguments], capture_output=True).returncode

    assert not Path(PYTHON).exists(), "this machine has what only the image should have"
    assert status(str(image), "test", "-x", PYTHON) == 0
    assert status(str(image), "test", "-e", str(tmp_path / "file")) == 1
    assert status(f"--bind={tmp_path}", f"--pwd={tmp_path}", str(image), "test", "-e", "file") == 0
    assert status(f"--bind={tmp_path}:/data:ro", str(image), "touch", "/data/file") == 1
    assert status(str(image), "touch", "/opt/paw/file") == 1
    assert status("--unknown", str(image), "true") == 255


def test_two_nodes_of_a_job(
    testbed: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron over two nodes, each rank in the image, from a folder that holds no checkout: the metrics are
    those of the same run outside."""
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    made = recipe(
        TWO_NODES, cluster={"container": {"image": str(image), "runtime": "apptainer", "python": PYTHON}}
    )
    with launched(tmp_path, made=made) as one:
        one.wait_for("COMPLETED")
        assert [line["update"] for line in stream(one.run)] == [0, 1], explain(one.run)()
        assert attempts.saved_updates(one.run) == 2 and len(read_evaluations(one.run)) == 1
        wait_until(
            lambda: not processes_naming(str(one.run)),
            lambda: "\n".join(processes_naming(str(one.run))),
            60.0,
        )
    starts = (tmp_path / "starts").read_text().splitlines()
    assert len(starts) == 2 and len({line.split()[0] for line in starts}) == 2, starts
    assert all(
        f"{one.run}:{one.run} {elsewhere}:{elsewhere} {elsewhere} {PYTHON} -u -m paw_hpc.cluster.worker "
        f"{one.run}" in line
        for line in starts
    )
    paw(
        "launch",
        write(recipe(TWO_NODES), tmp_path / "outside.yaml"),
        "--executor",
        "local",
        "--run-dir",
        tmp_path / "outside",
    )
    assert stream(one.run) == stream(tmp_path / "outside")
