"""Runs on this machine without a queue: Ctrl-C, GPUs, and what is left of the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paw_hpc.cluster import here, job
from tests.cluster.runs import wait_until

INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from paw_hpc.cluster import here

def supervise(run, gpus):
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(time.monotonic()))
    Path(run, "started").touch()
    while not asked or time.monotonic() < asked[0] + 2.5:  # an update and its checkpoint
        time.sleep(0.05)
    return 7

here._supervise = supervise
sys.exit(here.run_locally(SimpleNamespace(run=Path(sys.argv[1]), recipe=SimpleNamespace(cluster=SimpleNamespace(time_min=5, warn_s=60)))))
"""


def test_a_ctrl_c_leaves_the_job_the_time_that_it_needs(tmp_path: Path) -> None:
    """A terminal sends it to all processes at once; submitit's own ends the job a second after it has heard
    it."""
    one = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until((tmp_path / "started").exists, lambda: "it did not start", 60.0)
    os.killpg(one.pid, signal.SIGINT)
    assert one.wait(60) == 7 and one.stderr is not None and "asked to stop" in one.stderr.read()


@pytest.mark.parametrize("visible", [None, "1,3"])
def test_the_job_sees_the_gpus_that_its_user_sees(
    visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        job,
        "main",
        lambda run, local: (
            seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or print("said", file=sys.stderr) or 3
        ),
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # submitit hides all that it was not asked for
    (tmp_path / "cluster").mkdir()
    assert here._supervise(str(tmp_path), visible) == 3 and seen == [visible]
    assert (tmp_path / "cluster" / f"job-{os.getpid()}.log").read_text() == "said\n"
