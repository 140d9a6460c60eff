"""The environments, their outcomes and the report on them work where nothing is installed that trains."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paw_hpc.system.extras import EXTRAS
from tests.missing import COMMAND, WITHOUT

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "tensorboard",
    "megatron",
    "triton",
    "accelerate",
    "gguf",
    "huggingface_hub",
}

PLAY = """
from paw_hpc.envs import Environments, write_outcomes
name, panel, target, settings = {arguments}
with Environments(name, **settings) as environments:
    panel = environments.panel(panel)
    batch = environments.open_batch(panel.tasks)
    while not batch.done:
        batch.step([None if e.done else (e.admissible or ["<answer>nobody</answer>"])[-1] for e in batch.episodes])
    assert all(episode.messages() for episode in batch.episodes) and not any(episode.failed for episode in batch.episodes)
    outcomes = [episode.outcome() for episode in batch.episodes]
    write_outcomes(target, outcomes, player="nobody", benchmark=name, panel=panel, temperature=0.0, rules="few steps")
"""
CASES = {
    "alfworld": (
        "valid_seen:3@0",
        {"max_steps": 4, "games": "generated", "task_types": ["look_at_obj_in_light"]},
    ),
    "webshop": ("test:3@0", {"max_steps": 4, "webshop": {"catalogue": "generated"}}),
    "search": ("test:3@0", {"max_steps": 4, "search": {"data": "generated"}}),
}


def without(
    missing: set[str], program: str, arguments: object, cache: Path
) -> subprocess.CompletedProcess[str]:
    code = (WITHOUT + program).format(missing=sorted(missing), arguments=repr(arguments))
    environment = {**os.environ, "PAW_CACHE": str(cache), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cache, timeout=300
    )


@pytest.mark.parametrize("benchmark", CASES)
def test_an_environment_needs_its_own_extra_alone_from_the_first_step_to_the_report(
    benchmark: str, tmp_path: Path
) -> None:
    missing = HEAVY | {module for module, extra in EXTRAS.items() if extra.name != benchmark}
    panel, settings = CASES[benchmark]
    played = without(missing, PLAY, (benchmark, panel, str(tmp_path / "nobody.jsonl"), settings), tmp_path)
    assert played.returncode == 0, played.stderr[-2000:]
    reported = without(missing, COMMAND, ["report", str(tmp_path / "nobody.jsonl")], tmp_path)
    assert reported.returncode == 0 and "nobody" in reported.stdout, reported.stderr[-2000:]


def test_what_needs_a_policy_names_its_extra_in_one_line(tmp_path: Path) -> None:
    """And the control: a module that is taken away is really gone."""
    for arguments in (
        ["train", "quickstart"],
        ["quickstart"],
        ["warm-start", "warm-start"],
        ["eval", "quickstart", "--panel", "valid_seen"],
    ):
        refused = without(HEAVY, COMMAND, arguments, tmp_path)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, (arguments, refused.stderr)
        assert "pip install 'paw-hpc[train]'" in refused.stderr, (arguments, refused.stderr)


def test_what_is_installed_by_default_is_light() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    light = [
        *project["dependencies"],
        *(line for name in ("alfworld", "webshop", "search", "gym", "openenv") for line in extras[name]),
    ]
    assert not [line for line in light if line.startswith(tuple(HEAVY)) or "[train]" in line]
    assert all("paw-hpc[train]" in extras[name] for name in ("kernels", "megatron", "sglang", "gguf")), (
        "what is for policies brings what they need"
    )
