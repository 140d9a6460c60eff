"""A run on a real Slurm through every fault that a cluster has in store: its metrics are those of a run that
met none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paw_hpc import loop
from paw_hpc.cluster import attempts
from paw_hpc.cluster.status import status_of
from paw_hpc.recipe import Recipe, load_recipe
from tests.cluster.runs import (
    explain,
    job_state,
    paw,
    processes_naming,
    recipe,
    slurm,
    stream,
    wait_until,
    write,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ASKED = "{}: the trainer is asked to stop"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The metrics of the same recipe without Slurm."""
    run = tmp_path_factory.mktemp("straight") / "run"
    loop.train(recipe(), run, command="test")
    return stream(run)


class Launched:
    """A run that was submitted."""

    def __init__(self, run: Path, job: str, recipe: Path):
        self.run, self.job, self.recipe = run, job, recipe

    def wait_for_updates(self, count: int) -> None:
        wait_until(lambda: len(stream(self.run)) >= count, explain(self.run))

    def wait_for_attempt(self, number: int) -> None:
        wait_until(lambda: len(attempts.history(self.run)) >= number, explain(self.run))

    def wait_for(self, *states: str) -> None:
        wait_until(
            lambda: job_state(self.job) in states, lambda: f"{job_state(self.job)}\n{explain(self.run)()}"
        )

    @contextlib.contextmanager
    def held(self, updates: int) -> Iterator[list[int]]:
        """Inside, the trainer stands still after that many updates, as in one that takes long: what a test
        does meanwhile never races with the end of the run. Yields its processes' ids."""
        wait_until(
            lambda: len(stream(self.run)) >= updates and bool(trainer_pids(self.run)), explain(self.run)
        )
        pids = trainer_pids(self.run)
        send(pids, signal.SIGSTOP)
        assert pids and len(stream(self.run)) < load_recipe(self.recipe).updates, explain(self.run)()
        try:
            yield pids
        finally:
            send(pids, signal.SIGCONT)

    def wait_for_words(self, words: str) -> None:
        """In what the supervisor has said."""
        wait_until(
            lambda: any(words in log.read_text() for log in (self.run / "cluster").glob("job-*.log")),
            explain(self.run),
        )

    def check_complete(self, straight: list[dict[str, float]]) -> None:
        """Every update once, as without a fault, and nobody left behind."""
        self.wait_for("COMPLETED")
        assert [line["update"] for line in stream(self.run)] == list(range(len(straight)))
        assert stream(self.run) == straight, explain(self.run)()
        assert attempts.saved_updates(self.run) == len(straight)
        wait_until(
            lambda: not processes_naming(str(self.run)),
            lambda: "\n".join(processes_naming(str(self.run))),
            30.0,
        )


@contextlib.contextmanager
def launched(folder: Path, *overrides: str, made: Recipe | None = None) -> Iterator[Launched]:
    run = folder / "run"
    path = write(made or recipe(), folder / "tiny.yaml")
    said = paw("launch", path, "--executor", "slurm", "--run-dir", run, *overrides)
    job = said.split("job ")[1].split(";")[0]
    try:
        yield Launched(run, job, path)
    finally:
        subprocess.run(["scancel", job], capture_output=True)


def test_no_fault(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    with launched(tmp_path) as one:
        one.check_complete(straight)
        assert [attempt.how for attempt in attempts.history(one.run)] == ["complete: 5 updates"]
        script = (one.run / "cluster" / "submission.sh").read_text()
        assert script.strip() == slurm("scontrol", "write", "batch_script", one.job, "-")
        assert "complete" in paw("status", one.run)
        assert "update 5/5" in paw("logs", one.run, "--role", "trainer")
        assert "complete already" in paw(
            "launch", tmp_path / "tiny.yaml", "--executor", "slurm", "--run-dir", one.run
        )


def test_scontrol_requeue(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    with launched(tmp_path) as one:
        with one.held(2):
            slurm("scontrol", "requeue", one.job)
            one.wait_for_words(ASKED.format("SIGTERM"))
        one.wait_for_attempt(2)
        one.check_complete(straight)
        first = attempts.history(one.run)[0]
        assert "stopped by SIGTERM" in first.how and first.updates is not None and 2 <= first.updates < 5


def test_time_limit(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    """The warning before the limit: saved, requeued by the job itself, continued. The limit is brought close
    once the run is under way."""
    with launched(tmp_path, "cluster.warn_s=600") as one:
        with one.held(1):
            slurm("scontrol", "update", f"jobid={one.job}", "timelimit=9")
            one.wait_for_words(ASKED.format("SIGUSR2"))
            slurm("scontrol", "update", f"jobid={one.job}", "timelimit=60")
        one.wait_for_attempt(2)
        assert "stopped by SIGUSR2" in attempts.history(one.run)[0].how
        one.check_complete(straight)


def test_preemption(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    with launched(tmp_path, "cluster.partition=low") as one:
        with one.held(2):
            urgent = slurm(
                "sbatch",
                "--parsable",
                "--partition=main",
                "--nodes=4",
                "--exclusive",
                "--output=/dev/null",
                "--wrap=sleep 1",
            )
            one.wait_for_words(ASKED.format("SIGUSR2"))
        one.wait_for_attempt(2)
        assert job_state(urgent) in ("COMPLETED", "COMPLETING")
        assert "stopped by SIG" in attempts.history(one.run)[0].how
        one.check_complete(straight)


def test_slurmctld_restart(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    """The job does not notice, and a stop that comes while it is away is obeyed all the same."""
    with launched(tmp_path) as one:
        with one.held(1):
            stop_daemon(testbed / "slurmctld.pid")
        one.wait_for_updates(3)
        up()
        one.check_complete(straight)
        assert len(attempts.history(one.run)) == 1


def test_node_failure_and_a_revenant(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    """The node's daemon is gone and its processes run on, as behind a cut cable. The next attempt takes over,
    and the old one writes nothing more."""
    with launched(tmp_path, "cluster.exclude=node3,node4") as one:
        try:
            with one.held(2):  # still there when its successor is at work
                [node] = attempts.history(one.run)[0].nodes
                stop_daemon(testbed / f"{node}.pid")
                slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
                one.wait_for_attempt(2)
                assert attempts.history(one.run)[1].nodes != (node,)
                one.wait_for_updates(3)
            one.wait_for("COMPLETED")
            assert stream(one.run) == straight, explain(one.run)()
        finally:
            bring_back(node)
        one.check_complete(straight)
        assert attempts.history(one.run)[0].how.startswith(("cut off", "stopped by")), explain(one.run)()


def test_disk_full_on_checkpoint(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    """The job fails with the reason, and is not tried again in vain; with room made, the same command
    continues."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    write(recipe(), tmp_path / "run" / "recipe.yaml")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(checkpoints)], check=True)
    ballast = checkpoints / "ballast"
    try:
        with launched(tmp_path) as one:
            with one.held(2), contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 65536)
            one.wait_for("FAILED")
            [only] = attempts.history(one.run)
            assert "no space left" in only.how, explain(one.run)()
            assert attempts.saved_updates(one.run) >= 1
            ballast.unlink()
        with launched(tmp_path) as again:
            again.check_complete(straight)
    finally:
        subprocess.run(["umount", "--lazy", str(checkpoints)], check=True)


def test_scancel(testbed: Path, tmp_path: Path, straight: list[dict[str, float]]) -> None:
    """A cancelled job stays cancelled, leaves nobody behind, and its run goes on where it was saved."""
    with launched(tmp_path) as one:
        with one.held(2):
            assert one.job in paw("cancel", one.run)
        one.wait_for("CANCELLED")
        wait_until(
            lambda: not processes_naming(str(one.run)),
            lambda: "\n".join(processes_naming(str(one.run))),
            60.0,
        )
        assert len(attempts.history(one.run)) == 1 and 2 <= attempts.saved_updates(one.run) < 5
    with launched(tmp_path) as again:
        again.check_complete(straight)


def test_a_node_without_the_shared_disk(testbed: Path, tmp_path: Path) -> None:
    """Node 2 sees an empty folder where runs are: said in the job's first seconds, with what to do, before
    any trainer starts."""
    stop_daemon(testbed / "node2.pid")
    blind = f'hostname node2; mount -t tmpfs tmpfs "{tmp_path}"; exec slurmd -N node2'
    network = Path("/run/netns/pawslurm-2")
    enter = ["nsenter", f"--net={network}"] if network.exists() else []
    subprocess.run([*enter, "unshare", "--uts", "--mount", "sh", "-c", blind], check=True, timeout=60)
    try:
        two_nodes = (
            "policy.backend=megatron",
            "megatron.tensor_parallel=2",
            "cluster.trainer_nodes=2",
            "cluster.exclude='node[3-4]'",
        )
        with launched(tmp_path, *two_nodes) as one:
            one.wait_for("FAILED")
            one.wait_for_words(
                f"node2: no {one.run} there (1 such lines from 2 nodes); runs and environment must be on a "
                "file system that all"
            )
            assert not attempts.history(one.run)
            [row] = status_of([one.run])
            assert (row.state, row.note) == ("FAILED", f"see {one.run}/cluster/job-{one.job}.log")
    finally:
        stop_daemon(testbed / "node2.pid")
        bring_back("node2")


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def up() -> None:
    from tests.cluster.conftest import TESTBED

    subprocess.run([str(TESTBED / "up.sh")], check=True, capture_output=True, timeout=300)


def bring_back(node: str) -> None:
    """A node whose daemon was stopped. Slurm may have taken it back by itself, and then refuses to resume
    it."""
    up()
    subprocess.run(
        ["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, timeout=60
    )


def stop_daemon(pid_file: Path) -> None:
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    while (
        Path(f"/proc/{pid}").exists()
        and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    ):
        time.sleep(0.05)


def trainer_pids(run: Path) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"paw_hpc.cluster.worker" in words and str(run).encode() in words and b"srun" not in words[0]:
                found.append(int(folder.name))
    return found


def test_the_attempt_that_makes_no_progress_is_the_last(testbed: Path, tmp_path: Path) -> None:
    """A trainer that dies before its first checkpoint is tried `cluster.attempts` times; then the job fails
    and says why each time."""
    with launched(tmp_path, "cluster.attempts=2") as one:
        for number in (1, 2):
            one.wait_for_attempt(number)
            wait_until(lambda: bool(trainer_pids(one.run)), explain(one.run))
            send(trainer_pids(one.run), signal.SIGKILL)
            wait_until(
                lambda n=number: attempts.history(one.run)[n - 1].updates is not None, explain(one.run)
            )
        one.wait_for("FAILED")
        history = attempts.history(one.run)
        assert len(history) == 2 and all(attempt.updates == 0 for attempt in history), json.dumps(
            [a.how for a in history]
        )
        assert "given up: 2 attempts" in next((one.run / "cluster").glob("job-*.log")).read_text()
