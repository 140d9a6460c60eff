"""The whole of it on a real Slurm: two trainer nodes (Megatron, tensor parallel over gloo), one node with a
real SGLang server, ALFWorld, PaW."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster import attempts
from paw_hpc.evaluation.results import read_evaluations
from tests.cluster.conftest import REPOSITORY
from tests.cluster.runs import TINY, explain, paw, processes_naming, recipe, slurm, stream, wait_until
from tests.cluster.test_faults import ASKED, Launched, bring_back, launched, stop_daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SGLANG = REPOSITORY / ".venv-sglang" / "bin" / "python"

# One turn per episode, one turn at a time, one server: a CPU server draws from one stream of random numbers,
# in the order of requests, so only then do two runs play the same. Never a health probe between two turns.
WHOLE: dict[str, Any] = {
    **TINY,
    "name": "whole",
    "updates": 2,
    "policy": {"backend": "megatron"},
    "megatron": {"tensor_parallel": 2, "timeout_s": 600},
    "env": {**TINY["env"], "max_steps": 1},
    "rollout": {
        **TINY["rollout"],
        "engine": "sglang",
        "fleet": {"python": str(SGLANG), "concurrency": 1, "health_every_s": 100_000, "start_timeout_s": 900},
    },
    "eval": {"panel": "valid_seen:2@0", "every": 2},
    "cluster": {**TINY["cluster"], "trainer_nodes": 2, "rollout_nodes": 1},
}


@pytest.fixture(scope="module")
def sglang() -> None:
    if not SGLANG.exists():
        if os.environ.get("PAW_REQUIRE_SGLANG"):
            pytest.fail("PAW_REQUIRE_SGLANG is set, but there is no .venv-sglang (make setup-sglang)")
        pytest.skip("no SGLang: make setup-sglang")


def check(run: Path) -> None:
    assert [line["update"] for line in stream(run)] == [0, 1], explain(run)()
    assert attempts.saved_updates(run) == 2
    [evaluation] = read_evaluations(run)
    assert evaluation.update == 2 and evaluation.games == 2
    wait_until(lambda: not processes_naming(str(run)), lambda: "\n".join(processes_naming(str(run))), 60.0)


def test_launched_sbatch_and_local_runs_are_the_same(testbed: Path, sglang: None, tmp_path: Path) -> None:
    """`paw launch`, `sbatch slurm/train.sbatch`, and the same recipe as processes of this machine."""
    plain, local = tmp_path / "plain", tmp_path / "local"
    with launched(tmp_path, made=recipe(WHOLE)) as one:
        one.wait_for("COMPLETED")
        check(one.run)
    sizes = ["--nodes=3", "--cpus-per-task=2", f"--output={tmp_path}/plain-%j.log"]
    batch = [
        "sbatch",
        "--parsable",
        *sizes,
        str(REPOSITORY / "slurm" / "train.sbatch"),
        str(one.recipe),
        f"--run-dir={plain}",
    ]
    job = subprocess.run(batch, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()
    Launched(plain, job, one.recipe).wait_for("COMPLETED")
    check(plain)
    paw("launch", one.recipe, "--executor", "local", "--run-dir", local)
    check(local)
    assert stream(one.run) == stream(plain) == stream(local)


def test_three_misfortunes_of_one_job(testbed: Path, sglang: None, tmp_path: Path) -> None:
    """Requeued by hand; then a trainer node dies, then the rollout node: each time the job begins anew,
    elsewhere, after the update that it was in or the last one that was saved."""
    with launched(tmp_path, made=recipe(WHOLE, updates=7)) as one, contextlib.ExitStack() as repairs:
        with one.held(1):
            slurm("scontrol", "requeue", one.job)
            one.wait_for_words(ASKED.format("SIGTERM"))
        # The second node trains, the third serves. An update that is under way may still be finished and
        # saved: hence two updates between them.
        for number, role_node, updates in ((2, 1, 3), (3, 2, 5)):
            one.wait_for_attempt(number)
            with one.held(updates):
                node = attempts.history(one.run)[number - 1].nodes[role_node]
                stop_daemon(testbed / f"{node}.pid")
                repairs.callback(bring_back, node)
                slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
            one.wait_for_attempt(number + 1)
            assert node not in attempts.history(one.run)[number].nodes
            repairs.close()
        one.wait_for("COMPLETED")
        history = attempts.history(one.run)
        # Slurm's SIGTERM reached the servers, too, and they went on serving: the update that was under way
        # was finished and saved.
        assert "stopped by SIGTERM" in history[0].how and history[1].updates_before >= 2, explain(one.run)()
        assert [attempt.updates_before for attempt in history] == sorted(
            attempt.updates_before for attempt in history
        )
        assert [(line["update"], line["train/episodes"]) for line in stream(one.run)] == [
            (update, 3.0) for update in range(7)
        ]
        wait_until(
            lambda: not processes_naming(str(one.run)),
            lambda: "\n".join(processes_naming(str(one.run))),
            120.0,
        )
