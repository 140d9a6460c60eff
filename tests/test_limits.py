"""A low limit of open files: raised as far as a run needs, or said before the run in one line."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paw_hpc.recipe import parse_recipe
from paw_hpc.run.limits import allow_open_files, files_of_episodes
from paw_hpc.run.metrics import read_metrics

ROOT = Path(__file__).parents[1]
PLAYED = [
    "updates=1",
    "rollout.groups=4",
    "rollout.group_size=12",
    "rollout.max_batch=12",
    "env.max_steps=2",
    "env.train_games=4",
    "wm.enabled=false",
]


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def train(folder: Path, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "train",
        str(ROOT / "recipes/quickstart.yaml"),
        *PLAYED,
        "--run-dir",
        str(folder),
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limited(soft, hard), timeout=300
    )


def test_what_the_episodes_of_a_run_need() -> None:
    plain = {
        "model": {"path": "warm-start"},
        "rollout": {"groups": 8, "group_size": 8, "max_batch": 16},
        "env": {"workers": 3},
    }
    assert files_of_episodes(parse_recipe(plain)) == 64 + 3
    assert (
        files_of_episodes(parse_recipe(plain | {"rollout": {"groups": 2, "group_size": 2, "max_batch": 50}}))
        == 50 + 3
    )
    assert (
        files_of_episodes(
            parse_recipe(plain | {"env": {"name": "webshop", "workers": 3}, "eval": {"panel": "test"}})
        )
        == 3
    )
    served = {"groups": 8, "group_size": 8, "max_batch": 16, "engine": "sglang", "staleness": 1}
    assert (
        files_of_episodes(
            parse_recipe(plain | {"rollout": served, "algorithm": {"truncated_importance": 2.0}})
        )
        == 64 * 2 * 2 + 3
    )


def test_a_soft_limit_is_raised(tmp_path: Path) -> None:
    """48 episodes, each a socket, under a soft limit of 70, of which Python and torch take some."""
    ended = train(tmp_path / "run", 70, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert ended.returncode == 0, ended.stderr
    [metrics] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert metrics["rollout/failed_by_environment"] == 0
    assert "Too many open files" not in ended.stderr


def test_a_hard_limit_is_said_before_the_run(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", 70, 70)
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("paw: ")]
    assert (
        ended.returncode == 2 and "this machine allows 70 open files" in line and "rollout.groups=4" in line
    ), ended.stderr
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_no_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("nothing to raise"))
    allow_open_files(parse_recipe({"model": {"path": "warm-start"}}))
