"""The container file as buildah reads it: its base image and its device are arguments, and pip can be told
more. Building all of it takes minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import REPOSITORY

CONTAINER_FILE = REPOSITORY / "containers" / "Dockerfile"
OPENENV_FILE = REPOSITORY / "containers" / "openenv.Dockerfile"
pytestmark = [
    pytest.mark.skipif(
        shutil.which("buildah") is None, reason="buildah is not installed (apt-get install buildah)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can build without user namespaces"),
]


def build(
    folder: Path, text: str, *arguments: str, context: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Builds the container file `text` from nothing that is not on this machine, in a storage of its own."""
    (file := folder / "Dockerfile").write_text(text)
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    # vfs leaves no mounts behind; said as a flag, for the variable STORAGE_DRIVER does not count beside
    # --root
    storage = [f"--root={folder / 'storage'}", f"--runroot={folder / 'run'}", "--storage-driver=vfs"]
    command = [
        "buildah",
        *storage,
        "build",
        "--pull-never",
        *arguments,
        f"--file={file}",
        str(context or folder),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def head() -> str:
    """The container file up to its first step in the base image."""
    return CONTAINER_FILE.read_text().partition("\nRUN ")[0] + "\n"


def test_the_base_is_an_argument(tmp_path: Path) -> None:
    done = build(tmp_path, head(), "--build-arg=BASE=scratch")
    assert done.returncode == 0, done.stderr
    done = build(tmp_path, head().replace("ARG BASE=", "ARG OTHER="), "--build-arg=BASE=scratch")
    assert done.returncode != 0, "a file without the argument must not build"


def test_the_default_base_is_named_in_full(tmp_path: Path) -> None:
    """Without the argument buildah looks for the CUDA image, and does not find it here."""
    done = build(tmp_path, head())
    assert done.returncode != 0 and "docker.io/nvidia/cuda:" in done.stderr


def test_every_step_but_those_that_run_something(tmp_path: Path) -> None:
    """What is copied is there, variables and folders are set: on an empty base, which has no shell for the
    RUN steps."""
    without = re.sub(r"^RUN (?:.*\\\n)*.*\n", "", CONTAINER_FILE.read_text(), flags=re.MULTILINE)
    assert "RUN " not in without and "COPY . ." in without
    done = build(tmp_path, without, "--build-arg=BASE=scratch", context=REPOSITORY)
    assert done.returncode == 0, done.stderr
    done = build(tmp_path, without + "COPPY . .\n", "--build-arg=BASE=scratch", context=REPOSITORY)
    assert done.returncode != 0 and "COPPY" in done.stderr.upper(), done.stderr


def test_every_step_of_the_openenv_image_but_those_that_run_something(tmp_path: Path) -> None:
    """And all that its step of pip would need is copied: what `pip install ./source` reads of the package's
    top."""
    text = OPENENV_FILE.read_text()
    without = re.sub(r"^(RUN (?:.*\\\n)*.*|COPY --from=built .*)\n", "", text, flags=re.MULTILINE)
    # Both stages are wanted, or the first would be left out.
    without += (
        "COPY --from=built /opt/paw/source/paw_hpc/__init__.py "
        "/opt/paw/source/recipes/quickstart.yaml /seen/\n"
    )
    assert "RUN " not in without and "HEALTHCHECK" in without
    done = build(tmp_path, without, "--build-arg=BASE=scratch", "--format=docker", context=REPOSITORY)
    assert done.returncode == 0, done.stderr
    done = build(
        tmp_path,
        without.replace("/__init__.py /opt", "/no_such_file.py /opt"),
        "--build-arg=BASE=scratch",
        context=REPOSITORY,
    )
    assert done.returncode != 0 and "no_such_file.py" in done.stderr, done.stderr


def test_pip_is_told_by_a_folder_that_does_not_stay(tmp_path: Path) -> None:
    """Every step that installs packages is given the folder and reads its pip.conf; without one the folder is
    empty."""
    steps = [
        step
        for step in re.findall(r"^RUN (?:.*\\\n)*.*\n", CONTAINER_FILE.read_text(), flags=re.MULTILINE)
        if "pip" in step
    ]
    assert len(steps) == 2 and all(
        "--mount=type=bind,from=pip,target=/pip " in step and "PIP_CONFIG_FILE=/pip/pip.conf " in step
        for step in steps
    )
    (folder := tmp_path / "pip").mkdir()
    (folder / "pip.conf").write_text("[global]\n")
    seen = head() + "COPY --from=pip pip.conf /seen\n"
    done = build(tmp_path, seen, "--build-arg=BASE=scratch", f"--build-context=pip={folder}")
    assert done.returncode == 0, done.stderr
    done = build(tmp_path, seen, "--build-arg=BASE=scratch")
    assert done.returncode != 0 and "pip.conf" in done.stderr, done.stderr
