"""Another trainer plays these environments: an update of TRL's GRPO, and its outcomes judged here."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_an_update_of_trl_and_its_outcomes(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    environment = {**os.environ, "PAW_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "trl" / "grpo.py"), "1"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    # The loss is of words of the model alone: six turns of at most 16 tokens, and the prompts between have hundreds.
    [told] = [line for line in (ran.stdout + ran.stderr).replace("\r", "\n").splitlines() if "'grad_norm'" in line]
    figures = ast.literal_eval(told[told.index("{") : told.index("}") + 1])
    assert 0 < float(figures["completions/max_length"]) <= 6 * 16 and float(figures["grad_norm"]) > 0

    from paw_hpc.envs.outcomes import read_outcomes

    outcomes = read_outcomes(tmp_path / "trl.jsonl")
    assert len(outcomes.episodes) == 8
