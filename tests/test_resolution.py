"""What `make setup` asks for can be had from the plain package index, on every supported Python, whatever
this machine's own pip settings hide.

uv resolves for an interpreter that need not be here, from metadata alone (seconds where pip's dry run fetches
gigabytes), and reads none of pip's settings. It needs the index, so only where PAW_REQUIRE_INDEX=1 (`make
check-resolution`); an index that does not answer is a failure then.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
VERSIONS = ("3.11", "3.12", "3.13")
_EXTRAS = re.search(r'--editable "\.\[([a-z,]+)\]"', (ROOT / "Makefile").read_text())

pytestmark = pytest.mark.skipif(
    os.environ.get("PAW_REQUIRE_INDEX") != "1", reason="asks the package index; PAW_REQUIRE_INDEX=1 runs it"
)


def resolve(version: str, constraints: Path, *asked: str) -> subprocess.CompletedProcess[str]:
    """The versions that a fresh environment of this Python on Linux would get, one a line, or why there are
    none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--no-config",
        "--no-header",
        "--no-annotate",
        "--python-platform",
        "linux",
    ]
    command += ["--python-version", version, "--constraints", str(constraints), *asked]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_set_up_asks_for_is_on_the_plain_index(version: str) -> None:
    assert _EXTRAS is not None
    done = resolve(
        version, CONSTRAINTS, "pyproject.toml", *(f"--extra={extra}" for extra in _EXTRAS[1].split(","))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"torch", "triton", "pytest"} <= {line.partition("==")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("extra", ["alfworld", "webshop", "search", "gym"])
def test_environments_bring_nothing_that_trains(extra: str) -> None:
    done = resolve(VERSIONS[0], CONSTRAINTS, "pyproject.toml", f"--extra={extra}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not {"torch", "transformers", "megatron-core", "triton", "tensorboard"} & {
        line.partition("==")[0] for line in done.stdout.splitlines()
    }


def test_a_triton_that_torch_does_not_want_is_found_out(tmp_path: Path) -> None:
    """The control, and the fault that this file is for."""
    pinned = tmp_path / "constraints.txt"
    pinned.write_text(re.sub(r"(?m)^triton.*$", "", CONSTRAINTS.read_text()) + "\ntriton==3.9.0\n")
    done = resolve(VERSIONS[0], pinned, "pyproject.toml", "--extra=kernels")
    assert done.returncode != 0 and "unsatisfiable" in done.stderr and "triton" in done.stderr
