"""The benchmark of the head runs at a small size, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_command_one_table(tmp_path: Path) -> None:
    size = [
        "--device",
        "cpu",
        "--rows",
        "64",
        "--features",
        "16",
        "--vocabulary",
        "300",
        "--repeats",
        "1",
        "--only",
        "ours",
    ]
    subprocess.run(
        [sys.executable, "benchmarks/head.py", *size, "--out", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    text = (tmp_path / "head-cpu.md").read_text()
    assert text.startswith("# The head, 20") and "torch 2." in text and "Not run" not in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ours")
    ]
    assert len(rows) == 6
    for name, _, milliseconds, extra, *_, logp, entropy, hidden in rows:
        assert float(milliseconds) > 0 and float(extra) > 0, name
        if "25 %" not in name:
            assert float(logp) < 1e-4 and float(entropy) < 1e-4, name
        assert not hidden or float(hidden) < 1e-4, name
