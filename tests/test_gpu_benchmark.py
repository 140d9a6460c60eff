"""Every step of `python -m benchmarks.gpu` at toy size: a GPU that is lent for minutes must not meet a script
for the first time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import prepare
from benchmarks.gpu.__main__ import SKIPPED, STEPS, Step, run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_writes_its_table(step: Step, tmp_path: Path) -> None:
    became, _ = run(step, True, tmp_path)
    assert became == "done" or (step.name == "sanitize" and became == "skipped: there is no GPU"), (
        tmp_path / f"{step.name}.log"
    ).read_text()[-3000:]
    if became == "done" and step.name != "kernels":
        (table,) = [path.read_text() for path in tmp_path.glob("*.md")]
        assert table.startswith("# ") and "torch 2." in table and "nan" not in table.replace("| nan |", ""), (
            table
        )


def test_a_step_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    def step(code: str, limit_s: int = 60) -> Step:
        return Step("probe", "", lambda toy, out: [sys.executable, "-c", code], limit_s)

    assert run(step("print('a table')"), True, tmp_path)[0] == "done"
    assert (
        run(step("raise SystemExit('out of memory')"), True, tmp_path)[0]
        == "failed with status 1: out of memory"
    )
    assert (
        run(step(f"print('no such thing'); raise SystemExit({SKIPPED})"), True, tmp_path)[0]
        == "skipped: no such thing"
    )
    assert (
        run(step("import time; print('slow', flush=True); time.sleep(60)", 1), True, tmp_path)[0]
        == "stopped after 1 s: slow"
    )


def test_an_unknown_step_is_refused_by_name() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "heads"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 2 and "no step heads; there are machine, kernels, head" in found.stderr


def test_a_model_travels_in_parts(tmp_path: Path) -> None:
    source, folder = tmp_path / "model.gguf", tmp_path / "carried"
    source.write_bytes(bytes(range(256)) * 10)
    folder.mkdir()
    made = prepare.parts(source, folder, 1000)
    assert [path.stat().st_size for path in made] == [1000, 1000, 560]
    assert (
        b"".join(path.read_bytes() for path in sorted(folder.glob("model.gguf.part*"))) == source.read_bytes()
    )
    assert hashlib.sha256(source.read_bytes()).hexdigest() in (folder / "model.gguf.sha256").read_text()
