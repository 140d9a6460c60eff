"""The whole of it on a real Slurm: two trainer nodes (Megatron, tensor parallel over gloo), one node with a real SGLang server, ALFWorld, PaW."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster import attempts
from paw_hpc.results import read_evaluations
from tests.cluster.conftest import REPOSITORY
from tests.cluster.runs import TINY, explain, job_state, paw, processes_naming, recipe, slurm, stream, wait_until, write
from tests.cluster.test_faults import bring_back, stop_daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SGLANG = REPOSITORY / ".venv-sglang" / "bin" / "python"

# One turn per episode, one turn at a time, one server: a CPU server draws from one stream of random numbers, in the order of requests, so only then
# do two runs play the same. Never a health probe between two turns.
WHOLE: dict[str, Any] = {
    **TINY,
    "name": "whole",
    "updates": 3,
    "policy": {"backend": "megatron"},
    "megatron": {"tensor_parallel": 2, "timeout_s": 600},
    "env": {**TINY["env"], "max_steps": 1},
    "rollout": {
        **TINY["rollout"],
        "engine": "sglang",
        "fleet": {"python": str(SGLANG), "concurrency": 1, "health_every_s": 100_000, "start_timeout_s": 900},
    },
    "eval": {"panel": "valid_seen:2@0", "every": 3},
    "cluster": {**TINY["cluster"], "trainer_nodes": 2, "rollout_nodes": 1},
}


@pytest.fixture(scope="module")
def sglang() -> None:
    if not SGLANG.exists():
        if os.environ.get("PAW_REQUIRE_SGLANG"):
            pytest.fail("PAW_REQUIRE_SGLANG is set, but there is no .venv-sglang (make setup-sglang)")
        pytest.skip("no SGLang: make setup-sglang")


def check(run: Path, updates: int = 3) -> None:
    assert [line["update"] for line in stream(run)] == list(range(updates)), explain(run)()
    assert attempts.saved_updates(run) == updates
    [evaluation] = read_evaluations(run)
    assert evaluation.update == 3 and evaluation.games == 2
    wait_until(lambda: not processes_naming(str(run)), lambda: "\n".join(processes_naming(str(run))), 60.0)


def submitted(run: Path, path: Path, *overrides: str) -> str:
    return paw("launch", path, "--executor", "slurm", "--run-dir", run, *overrides).split("job ")[1].split(";")[0]


def wait(job: str, run: Path, state: str) -> None:
    wait_until(lambda: job_state(job) == state, lambda: f"{job_state(job)}\n{explain(run)()}", 1200.0)


def test_launched_sbatch_and_local_runs_are_the_same(testbed: Path, sglang: None, tmp_path: Path) -> None:
    """`paw launch`, `sbatch slurm/train.sbatch`, and the same recipe as processes of this machine."""
    path = write(recipe(WHOLE), tmp_path / "whole.yaml")
    launched, plain, local = (tmp_path / name for name in ("launched", "plain", "local"))
    job = submitted(launched, path)
    wait(job, launched, "COMPLETED")
    check(launched)
    log = f"--output={tmp_path}/plain-%j.log"
    command = [
        "sbatch",
        "--parsable",
        "--nodes=3",
        "--cpus-per-task=2",
        log,
        str(REPOSITORY / "slurm" / "train.sbatch"),
        str(path),
        f"--run-dir={plain}",
    ]
    job = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()
    wait(job, plain, "COMPLETED")
    check(plain)
    paw("launch", path, "--executor", "local", "--run-dir", local)
    check(local)
    assert stream(launched) == stream(plain) == stream(local)


@pytest.mark.parametrize("role", ["trainer", "rollout"])
def test_a_node_dies(testbed: Path, sglang: None, tmp_path: Path, role: str) -> None:
    """Node 2 of the job trains, node 3 serves. Either way the job starts anew elsewhere and continues from its checkpoint."""
    run = tmp_path / "run"
    job = submitted(run, write(recipe(WHOLE), tmp_path / "whole.yaml"))
    try:
        wait_until(lambda: len(stream(run)) >= 1, explain(run), 900.0)
        node = attempts.history(run)[0].nodes[1 if role == "trainer" else 2]
        stop_daemon(testbed / f"{node}.pid")
        slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_until(lambda: len(attempts.history(run)) == 2, explain(run))
        assert node not in attempts.history(run)[1].nodes
        wait(job, run, "COMPLETED")
        assert [line["update"] for line in stream(run)] == [0, 1, 2] and attempts.history(run)[1].updates_before >= 1
    finally:
        subprocess.run(["scancel", job], capture_output=True)
        bring_back(node)
