"""The other ways into a real Slurm (arrays, plain batch files, an allocation that one has), and the third
role."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from paw_hpc.cluster import attempts
from paw_hpc.cluster.layout import port
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.system.keys import KEY_FILE, bearer, read_key
from tests.cluster.conftest import REPOSITORY
from tests.cluster.runs import PAW, explain, job_state, paw, processes_naming, recipe, wait_until, write
from tests.cluster.test_faults import launched
from tests.cluster.test_supervise import SEARCH
from tests.second_user import somebody_else

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def sbatch(home: Path, *arguments: str) -> str:
    """Submits with the folder `home` in the place of a checkout. Returns the job's id."""
    environment = {**os.environ, "PAW_HOME": str(home), "PAW": str(Path(sys.executable).parent / "paw")}
    command = ["sbatch", "--parsable", "--cpus-per-task=2", f"--output={home}/%x-%A_%a.log", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=60
    ).stdout.strip()


def wait_for(job: str, run: Path) -> None:
    wait_until(lambda: job_state(job) == "COMPLETED", lambda: f"{job_state(job)}\n{explain(run)()}")


def test_sweeps_and_evaluations(testbed: Path, tmp_path: Path) -> None:
    """`paw launch --array`, the same as slurm/sweep.sbatch, and slurm/eval.sbatch of what was trained. What
    is complete is not run again."""
    path = write(recipe(updates=1), tmp_path / "tiny.yaml")
    runs = [tmp_path / "runs" / f"tiny-s{seed}" for seed in range(3)]
    said = paw("launch", path, "--seeds", "0-1", "--array", "--parallelism", "1", cwd=tmp_path)
    array = said.split("job ")[1].split("_")[0]
    for task, run in enumerate(runs[:2]):
        assert f"{run}: job {array}_{task}" in said
        wait_for(f"{array}_{task}", run)
    first, second = (attempts.history(run)[0] for run in runs[:2])
    assert first.began < second.began and first.how == second.how == "complete: 1 updates"
    shown = paw("status", "runs", cwd=tmp_path)
    assert f"{array}_0" in shown and f"{array}_1" in shown and shown.count("COMPLETED") == 2, shown
    assert paw("launch", path, "--seeds", "0-1", "--array", cwd=tmp_path).count("complete already") == 2

    swept = sbatch(tmp_path, "--array=1-2", str(REPOSITORY / "slurm" / "sweep.sbatch"), str(path))
    judged = sbatch(
        tmp_path, str(REPOSITORY / "slurm" / "eval.sbatch"), str(runs[0]), "--panel", "valid_seen:2@0"
    )
    for job in (f"{swept}_1", f"{swept}_2", judged):
        wait_for(job, runs[2])
    assert [len(attempts.history(run)) for run in runs] == [1, 1, 1]
    assert attempts.history(runs[2])[0].how == "complete: 1 updates"
    assert [evaluation.games for evaluation in read_evaluations(runs[0])] == [2]


def test_an_allocation_that_one_has(testbed: Path, tmp_path: Path) -> None:
    """In a shell of salloc the same command runs there and then; two nodes are there, one is needed."""
    run, path = tmp_path / "run", write(recipe(updates=1), tmp_path / "tiny.yaml")
    command = ["salloc", "--nodes=2", "--cpus-per-task=2", *PAW, "launch", str(path), "--run-dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [attempt] = attempts.history(run)
    assert attempt.how == "complete: 1 updates" and len(attempt.nodes) == 1
    assert not processes_naming(str(run))


def test_a_retriever_on_a_node_of_its_own(testbed: Path, tmp_path: Path) -> None:
    """Other nodes reach it at the address that the trainer was given, and it goes when the trainer has ended.
    An update takes a fifth of a second, so that there are many: the trainer must not be done before it is
    held."""
    with launched(tmp_path, made=recipe(SEARCH, updates=30)) as one:
        with one.held(1):
            [attempt] = attempts.history(one.run)
            key = read_key(one.run / "attempt_1" / KEY_FILE, "x")
            address = f"http://{attempt.nodes[1]}:{port(key, 'retriever')}"
            asked = {"queries": ["where was it founded", "who"], "topk": 2, "return_scores": True}
            found = httpx.post(f"{address}/retrieve", json=asked, headers=bearer(key), timeout=60).json()[
                "result"
            ]
            assert [len(hits) for hits in found] == [2, 2]
            # Another user of the cluster's network.
            wanted = [("POST", "/retrieve"), ("GET", "/openapi.json"), ("GET", "/health")]
            calls = [
                [method, f"{address}{path}", headers]
                for headers in ({}, bearer("wrong"))
                for method, path in wanted
            ]
            assert somebody_else("call", *calls) == [401, 401, 200] * 2
            assert somebody_else("find", key) == [[]] and somebody_else(
                "read", str(one.run / "attempt_1" / KEY_FILE)
            ) == [False]
        one.wait_for("COMPLETED")
        assert f"retriever: {address}" in paw("logs", one.run)
        wait_until(lambda: not processes_naming(str(one.run)), explain(one.run), 30.0)
