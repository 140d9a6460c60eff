"""One attempt as processes of this machine: groups end together, nobody is left, the history says why; and
only the latest attempt writes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from paw_hpc.cluster import attempts, worker
from paw_hpc.cluster.layout import PORTS, Role
from paw_hpc.cluster.steps import LocalMachine, LocalRole
from paw_hpc.cluster.supervise import Ending, Supervisor
from paw_hpc.envs.search.benchmark import make_retriever
from paw_hpc.policy import checkpoint
from paw_hpc.run import fence
from paw_hpc.run.metrics import MetricsWriter, RunDirectory
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.keys import write_secret
from paw_hpc.system.meeting import open_store
from tests.cluster.runs import TINY, paw, processes_naming, recipe, stream, wait_until, write

SERVED: dict[str, Any] = {"rollout": {"engine": "sglang"}, "cluster": {"rollout_nodes": 1}}


class Scripted(LocalMachine):
    """A machine whose roles run small scripts instead; in them RUN is the run and LOGS the attempt's
    folder."""

    def __init__(self, scripts: Mapping[str, str], run: Path):
        super().__init__(recipe().cluster, ["127.0.0.1"] * 3)
        self.scripts, self.run = scripts, run

    def start(
        self, role: Role, command: Sequence[str], environment: Mapping[str, str], logs: Path
    ) -> LocalRole:
        head = (
            f"import os, pathlib, signal, sys, time\nRUN, LOGS = pathlib.Path({str(self.run)!r}), "
            f"pathlib.Path({str(logs)!r})\n"
        )
        ready = "(LOGS / f\".started-{os.environ['RANK']}\").touch()\n"
        return super().start(
            role,
            [sys.executable, "-c", head + self.scripts[role.name] + "\n" + ""]
            if role.name != "trainer"
            else [sys.executable, "-c", head + ready + self.scripts["trainer"]],
            environment,
            logs,
        )


WAITS = "sys.stdin.read()"
"""Until its standard input closes."""
NEVER = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
CHECKPOINT = (
    "folder = RUN / 'checkpoints' / 'update_{:06d}'\nfolder.mkdir(parents=True)\n(folder / "
    "'manifest.json').write_text('{{}}')\n"
)
FINISHES = CHECKPOINT.format(5)
SAVES_ON_SIGNAL = f"""
def save(*_):
    {CHECKPOINT.format(2).replace(chr(10), chr(10) + "    ")}
    (LOGS / '.ended-0').touch()
    sys.exit(0)
signal.signal(signal.SIGUSR1, save)
(LOGS / '.started-0').touch()
while True: time.sleep(0.05)
"""


def supervised(folder: Path, **scripts: str) -> Supervisor:
    run = folder / "run"
    write(recipe(**SERVED), run / "recipe.yaml")
    return Supervisor(run, Scripted(scripts, run), os.getpid())


def test_the_trainer_ends_and_servers_follow(tmp_path: Path) -> None:
    one = supervised(tmp_path, trainer=FINISHES, rollout=WAITS)
    result = one.attempt()
    assert result.ending is Ending.COMPLETE and result.status == 0
    assert not processes_naming(str(one.run))
    assert [attempt.how for attempt in attempts.history(one.run)] == ["complete: 5 updates"]


def test_a_complete_run_starts_nothing(tmp_path: Path) -> None:
    """Slurm requeues a job whose node dies while the last update is being saved."""
    one = supervised(tmp_path, trainer=FINISHES, rollout=WAITS)
    assert one.attempt().ending is one.attempt().ending is Ending.COMPLETE
    assert len(attempts.history(one.run)) == 1 and not (one.run / "attempt_2").exists()


def test_servers_that_end_first_end_the_trainer_at_once(tmp_path: Path) -> None:
    one = supervised(tmp_path, trainer=NEVER, rollout="print('no memory is left')\nsys.exit(7)")
    began = time.monotonic()
    result = one.attempt()
    assert result.ending is Ending.FAILED and result.status == 7 and "no memory is left" in result.how
    assert not processes_naming(str(one.run))
    assert time.monotonic() - began < 60  # asked, not waited for


def test_one_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = recipe(policy={"backend": "megatron"}, megatron={"tensor_parallel": 2})
    write(made, run / "recipe.yaml")
    one = Supervisor(
        run,
        Scripted({"trainer": "sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"}, run),
        os.getpid(),
    )
    result = one.attempt()
    assert result.ending is Ending.FAILED and result.status == 3 and not processes_naming(str(run))


def test_a_stop_is_passed_on_and_what_was_saved_counts(tmp_path: Path) -> None:
    one = supervised(tmp_path, trainer=SAVES_ON_SIGNAL, rollout=WAITS)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR2)).start()
    result = one.attempt()
    assert (
        result.ending is Ending.STOPPED
        and result.how == "stopped by SIGUSR2 after update 2, saved"
        and result.status == 0
    )
    assert attempts.history(one.run)[0].updates == 2 and not processes_naming(str(one.run))


def test_a_trainer_that_was_cut_off_has_not_saved_whatever_its_status(tmp_path: Path) -> None:
    """srun may end with status 0 when Slurm ends its step."""
    one = supervised(
        tmp_path, trainer=SAVES_ON_SIGNAL.replace("(LOGS / '.ended-0').touch()", ""), rollout=WAITS
    )
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR2)).start()
    result = one.attempt()
    assert (
        result.ending is Ending.FAILED
        and "cut off after update 2: SIGUSR2 ended the trainer first" in result.how
    )
    assert result.status == 1


def test_an_error_of_the_user_is_not_tried_again(tmp_path: Path) -> None:
    report = json.dumps({"time": 1.0, "reason": "disk: no space left", "refused": True})
    one = supervised(
        tmp_path, trainer=f"(LOGS / 'failed-0.json').write_text({report!r})\nsys.exit(2)", rollout=WAITS
    )
    result = one.attempt()
    assert result.ending is Ending.REFUSED and result.how == "disk: no space left" and result.status == 2


def test_attempts_without_a_checkpoint_are_given_up_with_their_reasons(tmp_path: Path) -> None:
    one = supervised(tmp_path, trainer="sys.exit(5)", rollout=WAITS)
    attempts.launched(one.run)
    for _ in range(3):
        assert one.attempt().ending is Ending.FAILED
    with pytest.raises(
        attempts.NoProgress,
        match=r"3 attempts ended without a checkpoint after update 0: attempt 1 .* status 5",
    ):
        one.attempt()
    attempts.launched(one.run)  # a person may insist
    assert one.attempt().ending is Ending.FAILED
    assert len(attempts.history(one.run)) == 4


def test_a_checkpoint_between_them_forgives_earlier_attempts(tmp_path: Path) -> None:
    one = supervised(tmp_path, trainer="sys.exit(5)", rollout=WAITS)
    for _ in range(2):
        one.attempt()
    folder = one.run / "checkpoints" / "update_000001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for _ in range(3):
        one.attempt()
    with pytest.raises(attempts.NoProgress):
        one.attempt()


def test_only_the_latest_attempt_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stale one is refused at every file, and what it had open belongs to nobody."""
    run = RunDirectory(tmp_path / "run")
    assert run.open(recipe(), "test") == 1
    stale = MetricsWriter(run)
    stale.write(0, {"a": 1.0})
    code = (
        "from pathlib import Path\nfrom paw_hpc.run import "
        f"fence\nprint(fence.claim(Path({str(run.path)!r})))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "2"
    )
    for write_something in (
        lambda: stale.write(1, {"a": 2.0}),
        lambda: checkpoint.save(run.checkpoints, 1, {}, {}),
    ):
        with pytest.raises(fence.StaleAttempt, match=r"attempt 2 .* has taken over; attempt 1 ends"):
            write_something()
    monkeypatch.setenv(fence.INHERITED, f"2:{run.path}")
    successor = RunDirectory(run.path)
    assert successor.open(recipe(), "test") == 2 and successor.attempt == run.path / "attempt_2"
    fresh = MetricsWriter(successor, 1)
    stale._file.write(b'{"update": 1, "a": 2.0}\n')  # past the check, in the moment of the claim
    fresh.write(1, {"a": 3.0})
    assert [line["a"] for line in stream(run.path)] == [1.0, 3.0]
    monkeypatch.setenv(fence.INHERITED, f"1:{run.path}")
    with pytest.raises(fence.StaleAttempt):
        RunDirectory(run.path).open(recipe(), "test")
    stale.close()
    fresh.close()


@pytest.mark.slow
def test_the_local_executor_runs_the_same_job(tmp_path: Path) -> None:
    """Two ranks of Megatron as processes, supervised and logged as on a cluster."""
    made = recipe(updates=2, policy={"backend": "megatron"}, megatron={"tensor_parallel": 2})
    run = tmp_path / "run"
    paw("launch", write(made, tmp_path / "r.yaml"), "--executor", "local", "--run-dir", run)
    assert len(stream(run)) == 2 and attempts.history(run)[0].how == "complete: 2 updates"
    assert len(list((run / "attempt_1").glob("trainer-*-1.log"))) == 1
    assert "update 2/2" in paw("logs", run) and not processes_naming(str(run))


SHOWS_ITS_KEY = """
key = pathlib.Path(os.environ['PAW_KEY_FILE'])
(RUN / f'seen-{LOGS.name}').write_text(f'{key.relative_to(LOGS)} {key.stat().st_mode & 0o777:o} {key.read_text()}')
assert key.read_text() not in ' '.join([*os.environ.values(), *sys.argv])
"""


def test_every_attempt_has_a_key_of_its_own_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []
    write(recipe(updates=5), run / "recipe.yaml")
    for number, end in enumerate(("sys.exit(1)", FINISHES), start=1):
        Supervisor(run, Scripted({"trainer": SHOWS_ITS_KEY + end}, run), job=1).attempt()
        name, mode, key = (run / f"seen-attempt_{number}").read_text().split()
        assert (name, mode, len(key)) == (".key", "600", 64)
        seen.append(key)
        assert not (run / f"attempt_{number}" / ".key").exists()
    assert seen[0] != seen[1]
    for file in run.rglob("*"):
        assert (
            file.is_dir()
            or file.name.startswith("seen")
            or not any(key in file.read_text(errors="replace") for key in seen)
        ), file


SERVER = """
import signal, sys, time
from multiprocessing import resource_tracker
resource_tracker.ensure_running()  # as whatever starts processes by multiprocessing does; it unblocks signals
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("serving", file=sys.stderr, flush=True)
while True: time.sleep(0.05)
"""


def test_servers_outlive_sigterm_until_they_are_let_go(tmp_path: Path) -> None:
    """Slurm sends it to every process before it ends a job, and the trainer still needs servers for the
    update that it finishes."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "launch_server.py").write_text(SERVER)  # obeys SIGTERM, as the real one does
    run, log = tmp_path / "run", tmp_path / "log"
    fleet = {"python": sys.executable, "device": "cpu"}
    write(
        recipe(rollout={**SERVED["rollout"], "fleet": fleet}, cluster=SERVED["cluster"]), run / "recipe.yaml"
    )
    write_secret(run / "key", "0123")
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "paw_hpc.cluster.server", str(run)]
        place = {"RANK": "0", "PAW_KEY_FILE": str(run / "key")}
        owner = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **place},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: "serving" in log.read_text(), log.read_text)
        everybody = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
        [server] = [process.pid for process in everybody if "sglang.launch_server" in process.cmdline()]
        blocked = re.search(r"^SigBlk:\s*(\w+)", Path(f"/proc/{server}/status").read_text(), re.MULTILINE)
        assert blocked is not None and int(blocked[1], 16) >> (signal.SIGTERM - 1) & 1, (
            "its next SIGTERM would end it"
        )
        for process in everybody:
            process.terminate()
        time.sleep(1.0)
        assert all(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everybody
        ), log.read_text()
        assert owner.stdin is not None
        owner.stdin.close()
        assert owner.wait(180) == 0
        assert not list(run.rglob("key.yaml")), "what its servers took their key from"
        assert not psutil.wait_procs(everybody[1:], timeout=10)[1]
    finally:
        owner.kill()


SEARCH: dict[str, Any] = {
    **TINY,
    "env": {
        "name": "search",
        "prompt": "compact",
        "max_steps": 2,
        "search": {"data": "generated", "retriever": "http"},
    },
    "cluster": {**TINY["cluster"], "retriever_node": True},
}


@pytest.mark.slow
def test_the_job_starts_its_retriever(tmp_path: Path) -> None:
    """The trainer waits for the retriever beside it, and both are gone afterwards."""
    made, run = recipe(SEARCH, updates=1), tmp_path / "run"
    paw("launch", write(made, tmp_path / "r.yaml"), "--executor", "local", "--run-dir", run)
    [attempt] = attempts.history(run)
    assert attempt.how == "complete: 1 updates" and len(attempt.nodes) == 2 and not processes_naming(str(run))
    [served] = re.findall(r"retriever: http://127\.0\.0\.1:(\d+)", paw("logs", run))
    assert PORTS[0] <= int(served) < sum(PORTS)


def test_the_retriever_asks_for_the_key_of_the_attempt(tmp_path: Path) -> None:
    made = recipe(SEARCH)
    write(made, tmp_path / "run" / "recipe.yaml")
    one = Supervisor(tmp_path / "run", LocalMachine.of(made.cluster, 2), job=7)
    assert one.layout.retriever is not None
    command = one._command(one.layout.retriever, 3)
    assert (
        command[command.index("--key-file") + 1]
        == one._environment(3)["PAW_KEY_FILE"]
        == str(tmp_path / "run" / "attempt_3" / ".key")
    )


def test_searches_go_to_the_jobs_retriever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the recipe names another: that is for runs outside of a job that has one."""
    own, named = (
        recipe(SEARCH).env,
        recipe(SEARCH, env={"search": {"retriever": "http", "url": "http://node1:8000"}}).env,
    )
    assert make_retriever(named).name == "retriever at http://node1:8000/retrieve"
    with pytest.raises(RecipeError, match=r"env.search.url: retriever=http needs the server's address"):
        make_retriever(own)
    monkeypatch.setenv("PAW_RETRIEVER", "http://node3:20001")
    assert {make_retriever(env).name for env in (own, named)} == {"retriever at http://node3:20001/retrieve"}


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as raised:
        open_store("127.0.0.1", taken.getsockname()[1], 5.0)
    monkeypatch.setenv("MASTER_PORT", "20000")
    said = worker._explain(raised.value)
    assert said.startswith("port 20000 on ") and "the next attempt takes another" in said
