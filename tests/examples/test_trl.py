"""Another trainer plays these environments: an update of TRL's GRPO, and its outcomes judged here."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "outcomes_file"), [("grpo.py", "trl.jsonl"), ("openenv_grpo.py", "trl-openenv.jsonl")]
)
def test_an_update_of_trl_and_its_outcomes(script: str, outcomes_file: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    if script == "openenv_grpo.py":
        pytest.importorskip("openenv")
    environment = {**os.environ, "PAW_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "trl" / script), "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    # The loss is of words of the model alone: six turns of at most 16 tokens, and the prompts between have
    # hundreds.
    [told] = [
        line for line in (ran.stdout + ran.stderr).replace("\r", "\n").splitlines() if "'grad_norm'" in line
    ]
    figures = ast.literal_eval(told[told.index("{") : told.index("}") + 1])
    assert 0 < float(figures["completions/max_length"]) <= 6 * 16 and float(figures["grad_norm"]) > 0

    from paw_hpc.envs.outcomes import read_outcomes

    outcomes = read_outcomes(tmp_path / outcomes_file)
    assert len(outcomes.episodes) == 8 and all(1 <= episode.steps <= 6 for episode in outcomes.episodes)


def test_each_script_is_read_in_one_sitting() -> None:
    for script in (ROOT / "examples" / "trl").glob("*.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) < 150, script
