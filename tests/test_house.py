"""The house as docs/design.md draws it: few rooms in the hall, files for one sitting, and no optional package where nobody asked for one.

That a room imports only from the floors below it is a contract of import-linter (pyproject.toml, `make check`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "paw_hpc"
OPTIONAL = ("aiohttp", "bm25s", "faiss", "fastapi", "gguf", "httpx", "megatron", "nltk", "numba", "tenacity", "textblob", "triton", "uvicorn")
LOCAL_RUN = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED and name != "triton" and not any(f"/{own}/" in str(path) for own in ("torch", "transformers")):
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)", name=name)

sys.meta_path.insert(0, Refuse())
from paw_hpc import build, loop
from paw_hpc.recipe.doors import ALGORITHMS, BENCHMARKS, ENGINES, WORLD_MODEL_LOSSES
for door in (ALGORITHMS, WORLD_MODEL_LOSSES, BENCHMARKS, ENGINES):
    for name in door.names():
        door.find(name)
import paw_hpc.envs.alfworld.benchmark, paw_hpc.rollout.engines.made, paw_hpc.study.quickstart
MORE
"""


def test_the_hall_has_few_rooms() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")]
    assert len(entries) <= 15, sorted(entries)


def test_files_can_be_read_in_one_sitting() -> None:
    long = {str(path): lines for path in PACKAGE.rglob("*.py") if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= 350}
    assert not long


@pytest.mark.parametrize(("more", "works"), [("", True), ("import paw_hpc.rollout.sglang.made", False)], ids=["local", "control"])
def test_a_local_run_needs_no_optional_package(more: str, works: bool) -> None:
    program = f"REFUSED = {OPTIONAL!r}\n" + LOCAL_RUN.replace("MORE", more)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)
    assert (done.returncode == 0) == works, done.stderr
    assert works or "aiohttp" in done.stderr
