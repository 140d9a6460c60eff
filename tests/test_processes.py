"""Ranks that `paw train` starts itself: prefixed lines, one status, signals to all, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from paw_hpc.system import distributed, processes
from paw_hpc.system.distributed import Process


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_carry_their_rank_and_errors_are_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import os, sys
print("I am", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "local", os.environ["LOCAL_RANK"])
print("paw: the same for all", file=sys.stderr)
"""
    assert processes.run_here(3, _python(code)) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [f"[{rank}] I am {rank} of 3 local {rank}" for rank in range(3)]
    assert err.splitlines() == ["paw: the same for all"]


def test_the_status_is_that_of_the_first_that_failed_and_the_others_are_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    code = f"""
import os, subprocess, sys, time
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    sys.exit(7)
child = subprocess.Popen(["sleep", "600"])
open({str(tmp_path)!r} + "/pids", "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""
    assert processes.run_here(2, _python(code)) == 7
    for pid in (tmp_path / "pids").read_text().split():
        assert ends(int(pid), within_s=30.0), f"process {pid} goes on"


def ends(pid: int, within_s: float) -> bool:
    """Whether a process is gone, or a zombie, in time: a busy machine takes a moment to carry out a
    SIGKILL."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_rank_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    code = (
        "import os, signal, time\nif os.environ['RANK'] == '0': os.kill(os.getpid(), "
        "signal.SIGKILL)\ntime.sleep(600)"
    )
    assert processes.run_here(2, _python(code)) == 128 + signal.SIGKILL


def test_a_signal_reaches_every_rank_once(tmp_path: Path) -> None:
    rank = f"""
import os, signal, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
mine = {str(tmp_path)!r} + "/" + os.environ["RANK"]
open(mine, "w").close()
while not got: time.sleep(0.01)
time.sleep(0.3)
open(mine, "w").write(str(len(got)))
"""
    launcher = (
        f"import sys; from paw_hpc.system.processes import run_here; sys.exit(run_here(2, {_python(rank)!r}))"
    )
    process = subprocess.Popen(_python(launcher))
    deadline = time.monotonic() + 120
    while not all((tmp_path / str(n)).exists() for n in (0, 1)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert [(tmp_path / str(n)).read_text() for n in (0, 1)] == ["1", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_ranks_are_asked_to_stop_when_their_parent_dies(tmp_path: Path) -> None:
    rank = f"""
import os, signal, time
from paw_hpc.system.processes import end_with_parent
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
end_with_parent()
mine = {str(tmp_path)!r} + "/" + os.environ["RANK"]
open(mine, "w").close()
while not got: time.sleep(0.01)
open(mine + "-ended", "w").close()
"""
    launcher = f"from paw_hpc.system.processes import run_here; run_here(1, {_python(rank)!r})"
    process = subprocess.Popen(_python(launcher))
    deadline = time.monotonic() + 120
    while not (tmp_path / "0").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while not (tmp_path / "0-ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_started_a_process_is_read_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        n for n in os.environ if n in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or n.startswith("SLURM_")
    ]:
        monkeypatch.delenv(name)
    assert Process.of_environment() == Process(0, 1, 0)
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert Process.of_environment() == Process(5, 8, 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert Process.of_environment() == Process(), "a shell in an allocation is no parallel start"
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert Process.of_environment() == Process(2, 4, 0)


def test_alone_nothing_is_exchanged() -> None:
    assert distributed.is_main() and distributed.size() == 1
    assert (
        distributed.gather(3) == [3] and distributed.broadcast("x") == "x" and distributed.first(None) is None
    )
    assert distributed.on_main(lambda: 5) == 5 and distributed.main_first(lambda: 6) == 6
