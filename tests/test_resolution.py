"""What `make setup` asks for can be had from the plain package index, whatever this machine's own pip settings hide: a dry run per Python version.

Minutes each and nothing installed, so only where PAW_REQUIRE_INDEX=1 (`make check-resolution`); an index that does not answer is a failure then.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
VERSIONS = ("3.11", "3.12", "3.13")
_EXTRAS = re.search(r'--editable "(\.\[[a-z,]+\])"', (ROOT / "Makefile").read_text())

pytestmark = [
    pytest.mark.skipif(os.environ.get("PAW_REQUIRE_INDEX") != "1", reason="asks the package index for minutes; PAW_REQUIRE_INDEX=1 runs it"),
    pytest.mark.timeout(1500),
]


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or one of pyenv's."""
    candidates = [shutil.which(f"python{version}"), *sorted(glob.glob(str(Path.home() / f".pyenv/versions/{version}.*/bin/python")))]
    for found in filter(None, candidates):
        # pyenv's shims are on the path for versions that are not the chosen one, and fail when they are started
        if subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0:
            return found
    return None


def resolve(python: str, folder: Path, constraints: Path, *requirements: str) -> subprocess.CompletedProcess[str]:
    """pip's dry run of a fresh environment, without this machine's own places to look for packages."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX")
    environment = {name: value for name, value in os.environ.items() if name not in own} | {"PIP_CONFIG_FILE": os.devnull}
    command = [folder / "bin" / "python", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--constraint", constraints]
    return subprocess.run([*command, *requirements], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_set_up_asks_for_is_on_the_plain_index(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    assert _EXTRAS is not None
    done = resolve(python, tmp_path / "environment", CONSTRAINTS, _EXTRAS[1])
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_triton_that_torch_does_not_want_is_found_out(tmp_path: Path) -> None:
    """The control, and the fault that this file is for."""
    python = next(filter(None, map(interpreter, VERSIONS)))
    pinned = tmp_path / "constraints.txt"
    pinned.write_text(re.sub(r"(?m)^triton.*$", "triton==3.9.0", CONSTRAINTS.read_text()))
    done = resolve(python, tmp_path / "environment", pinned, "torch>=2.11", "triton>=3.4")
    assert done.returncode != 0 and "ResolutionImpossible" in done.stderr
