"""A child process ends with all that it started, when it is asked, when it does not hear, and when its owner
is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paw_hpc.system import children

PARENT_OF_ONE = """
import signal, subprocess, sys, time
if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
sys.stdin.read()
if {deaf}: time.sleep(600)
"""


def family(deaf: bool) -> tuple[subprocess.Popen[str], psutil.Process]:
    code = PARENT_OF_ONE.format(deaf=deaf)
    parent = children.start(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("how", ["asked", "deaf", "frozen", "ended before"])
def test_nothing_of_a_group_is_left(how: str) -> None:
    parent, child = family(deaf=how in ("deaf", "frozen"))
    if how == "frozen":
        os.kill(parent.pid, signal.SIGSTOP)
    if how == "ended before":
        assert children.let_go(parent, patience_s=30.0) and child.is_running()
    elif how == "deaf":
        assert not children.let_go(parent, patience_s=0.2)
    children.end(parent, 30.0 if how == "asked" else 0.2)
    assert parent.poll() == {"asked": -signal.SIGTERM, "ended before": 0}.get(how, -signal.SIGKILL)
    child.wait(30)


def test_a_child_whose_owner_is_gone_before_it_looks() -> None:
    code = "from paw_hpc.system.children import die_with_parent; die_with_parent({arguments}); print('alive')"
    ends = [
        subprocess.run(
            [sys.executable, "-c", code.format(arguments=f"parent={pid}")], capture_output=True, text=True
        )
        for pid in (os.getpid(), 1 if os.getpid() != 1 else 2)
    ]
    assert [done.returncode for done in ends] == [0, -signal.SIGKILL] and ends[0].stdout == "alive\n"


def test_the_file_needs_nothing_but_python() -> None:
    """SGLang's environment has no package of ours; its interpreter may have none at all."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(children.__file__))], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
