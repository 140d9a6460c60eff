"""`paw train` of a Megatron recipe on local processes, end to end: the same run as with one process, which
stops and resumes as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from paw_hpc import loop
from paw_hpc.recipe import load_recipe
from paw_hpc.run.metrics import read_metrics

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")

RECIPE = "recipes/quickstart-megatron.yaml"
SMALL = (
    "updates=2",
    "env.task_types=[pick_and_place_simple]",
    "env.max_steps=4",
    "env.train_games=4",
    "env.workers=1",
    "rollout.groups=2",
    "rollout.group_size=3",
    "optimizer.mini_batch=8",
    # what is rounding in a gradient stays small: another order of summation plays the same second update
    "optimizer.eps=1.0e-3",
    "checkpoint.every=1",
)
# Of kept episodes the bytes: numbers that differ by rounding are not compressed alike.
NOT_OF_THE_UPDATE = ("time/", "system/", "policy/seconds", "policy/padding_share", "episodes/bytes")


def _command(run: Path, *overrides: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "train",
        RECIPE,
        *SMALL,
        *overrides,
        "--run-dir",
        str(run),
    ]


def _train(run: Path, *overrides: str) -> str:
    """Standard error of a run that succeeds."""
    done = subprocess.run(
        _command(run, *overrides),
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _stream(run: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in line.items() if not k.startswith(NOT_OF_THE_UPDATE)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two updates on two tensor-parallel ranks without a stop, and what they said."""
    run = tmp_path_factory.mktemp("megatron") / "straight"
    return run, _train(run)


def test_two_ranks_train_as_one_process_does(straight: tuple[Path, str], tmp_path: Path) -> None:
    run, said = straight
    assert [line for line in said.splitlines() if "update 2/2" in line and line.startswith("[0] ")], (
        "prefixed, and by the first rank alone"
    )
    assert "[1] quickstart" not in said and "tensor 2" in said
    recipe = load_recipe(RECIPE, [*SMALL, "policy.backend=huggingface", "threads=1"])
    loop.train(recipe, tmp_path / "one", command="test")
    many, one = _stream(run), _stream(tmp_path / "one")
    assert len(many) == len(one) == 2
    for name, value in one[0].items():
        assert many[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert (
        many[1]["train/success"] == one[1]["train/success"]
        and many[1]["train/transitions"] == one[1]["train/transitions"]
    ), "the weights that were published play the same episodes"


def test_every_rank_keeps_a_log_and_one_writes_metrics(straight: tuple[Path, str]) -> None:
    run, _ = straight
    assert {path.name for path in (run / "attempt_1").glob("*.log")} >= {"trainer.log", "trainer-1.log"}
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["update"] for line in lines] == [0, 1]
    assert all(line["policy/padding_share"] == 0 and line["policy/skipped_steps"] == 0 for line in lines)
    assert all(
        line[name] > 0
        for line in lines
        for name in ("system/tokens_per_s", "system/rows_per_s", "system/memory_peak_bytes")
    )


def test_a_signal_stops_all_ranks_and_the_run_resumes_exactly(
    straight: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        _command(run, "updates=50"),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 900
    while not read_metrics(run / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline, (
            process.communicate()[1],
            "no update yet",
        )
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert said.count("stopped by SIGTERM") == 1
    done = len(read_metrics(run / "metrics.jsonl"))
    assert done < 50
    _train(run, f"updates={done + 1}")
    resumed, uninterrupted = _stream(run), _stream(straight[0])
    assert len(resumed) == done + 1
    assert resumed[:2] == uninterrupted[: len(resumed[:2])]


def test_two_replicas_share_the_groups(straight: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "replicas"
    said = _train(run, "megatron.tensor_parallel=1", "megatron.data_parallel=2", "updates=1")
    assert "data 2" in said
    shared, alone = _stream(run)[0], _stream(straight[0])[0]
    counted: dict[str, Any] = {
        name: alone[name]
        for name in ("train/groups", "train/episodes", "train/transitions", "train/success", "train/return")
    }
    assert {name: shared[name] for name in counted} == counted, "seeds are a group's own, whoever plays it"
    assert shared["wm/loss"] == pytest.approx(alone["wm/loss"], rel=1e-4)


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    command = _command(tmp_path / "run", "megatron.tensor_parallel=4")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2
    complaints = [line for line in done.stderr.splitlines() if "does not divide" in line]
    assert complaints == ["paw: megatron.tensor_parallel: 4 does not divide the model's 2 key-value heads"]
    assert "Traceback" not in done.stderr
