"""Where ranks meet: at the run's own address, known to each other by a word; two runs at one place do not
train on each other's numbers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from paw_hpc.recipe import parse_recipe
from paw_hpc.rollout.sglang import process
from paw_hpc.system import meeting
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.keys import new_key, write_secret
from paw_hpc.system.meeting import derived, open_store
from tests.envs.search.servers import free_port
from tests.second_user import somebody_else

JOINS = """
import sys
from paw_hpc.system import distributed
from paw_hpc.system.errors import UserError
try:
    with distributed.joined(gpu=False, timeout_s=float(sys.argv[1])):
        print("together:", distributed.gather(sys.argv[2]), flush=True)
except UserError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(2)
"""


class Rank:
    def __init__(
        self,
        rank: int,
        port: int,
        key_file: Path | None,
        says: str,
        *,
        processes: int = 2,
        timeout_s: float = 30.0,
        **more: str,
    ):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        known = {"PAW_KEY_FILE": str(key_file)} if key_file else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **place, **known, **more}
        command = [sys.executable, "-c", JOINS, str(timeout_s), says]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self) -> tuple[int, str]:
        said, errors = self.process.communicate(timeout=120)
        assert said, errors
        return self.process.returncode, said.strip()


def key_file(path: Path) -> Path:
    write_secret(path, new_key())
    return path


def test_ranks_with_one_word_meet(tmp_path: Path) -> None:
    port, key = free_port(), key_file(tmp_path / "a")
    assert {rank.end() for rank in [Rank(i, port, key, "ab"[i]) for i in range(2)]} == {
        (0, "together: ['a', 'b']")
    }


@pytest.mark.parametrize("theirs", ["another word", "no word"])
def test_a_rank_of_another_run_ends_both_with_a_clear_line(theirs: str, tmp_path: Path) -> None:
    """The second process of B comes to A's place before A's own: without words, A would train on B's
    numbers."""
    port, a, b = free_port(), key_file(tmp_path / "a"), key_file(tmp_path / "b")
    first, stranger = Rank(0, port, a, "a"), Rank(1, port, b if theirs == "another word" else None, "b")
    (status, said), (other_status, other_said) = first.end(), stranger.end()
    assert status == 2 and said.startswith(
        f"Stranger megatron: what came to 127.0.0.1:{port} as process 1 is not of this run"
    )
    # where the first, which holds the store, has ended before
    gone = f"UserError megatron: process 0 of 2 has not come to 127.0.0.1:{port}"
    assert other_status == 2 and other_said.startswith(
        (f"Stranger megatron: what came to 127.0.0.1:{port} as process 0 is not of this run", gone)
    )


def test_without_words_they_would_have_met(tmp_path: Path) -> None:
    """Negative control: what torch does by itself."""
    port = free_port()
    bare = JOINS.replace(
        "from paw_hpc.system import distributed",
        "from paw_hpc.system import distributed, meeting\nmeeting._greet = lambda *_: None",
    )
    bare = bare.replace(
        "import distributed, meeting", "import distributed, meeting\nmeeting.derived = lambda *_: b''"
    )
    ranks = []
    for i in range(2):
        place = {
            "RANK": str(i),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(i),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        known = {"PAW_KEY_FILE": str(key_file(tmp_path / str(i)))}
        command = [sys.executable, "-c", bare, "30", "ab"[i]]
        ranks.append(
            subprocess.Popen(command, env={**os.environ, **place, **known}, stdout=subprocess.PIPE, text=True)
        )
    assert {rank.communicate(timeout=120)[0].strip() for rank in ranks} == {"together: ['a', 'b']"}


def test_two_jobs_without_a_key_are_told_apart_by_their_names(tmp_path: Path) -> None:
    port = free_port()
    ranks = [Rank(i, port, None, "x", SLURM_JOB_ID=str(7 + i)) for i in range(2)]
    ends = [rank.end() for rank in ranks]
    assert all(status == 2 for status, _ in ends) and any(said.startswith("Stranger") for _, said in ends), (
        ends
    )
    # Where the first, which holds the store, has ended before the second could look there.
    gone = f"UserError megatron: process 0 of 2 has not come to 127.0.0.1:{port}"
    assert all(said.startswith(("Stranger", gone)) for _, said in ends), ends


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    port, key = free_port(), key_file(tmp_path / "a")
    status, said = Rank(0, port, key, "a", timeout_s=2.0).end()
    assert status == 2 and "process 1 of 2 has not come to 127.0.0.1:" in said
    status, said = Rank(1, port, key, "a", timeout_s=2.0).end()
    assert status == 2 and "process 1 found no meeting point at 127.0.0.1:" in said


def listens_at(port: int) -> set[str]:
    return {
        c.laddr.ip
        for c in psutil.Process().net_connections(kind="tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port
    }


def test_a_store_listens_at_the_address_that_it_was_given_and_no_other() -> None:
    store = open_store("127.0.0.1", 0, 5.0)
    assert listens_at(store.port) == {"127.0.0.1"}
    import torch.distributed as dist

    usual = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert listens_at(usual.port) - {"127.0.0.1"}, "the control: PyTorch's own listens at all of them"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Address already in use"),
    ):
        open_store("127.0.0.1", taken.getsockname()[1], 5.0)


def test_another_user_comes_to_the_place_and_is_noticed(tmp_path: Path) -> None:
    """It speaks the store's own protocol, and knows all but the word."""
    port = free_port()
    rank = Rank(0, port, key_file(tmp_path / "a"), "a")
    deadline = time.monotonic() + 60
    while somebody_else("store", [port, "paw/0/hello/1", "f" * 64]) != [True]:
        assert rank.process.poll() is None and time.monotonic() < deadline
    status, said = rank.end()
    assert (
        status == 2 and said.startswith("Stranger megatron: ") and "as process 1 is not of this run" in said
    )
    assert somebody_else("read", str(tmp_path / "a")) == [False]


def test_what_is_left_at_the_place_tells_nothing_of_the_word() -> None:
    key = new_key()
    left = [derived(key, purpose).hex() for purpose in ("hello 0", "hello 1", "group")]
    assert len({*left, key}) == 4 and all(len(one) == 64 for one in left)


def test_ranks_that_are_started_here_get_a_word_of_their_own(tmp_path: Path) -> None:
    """In a file that is gone with them."""
    code = (
        "import os; p = os.environ['PAW_KEY_FILE']; print(p, oct(os.stat(p).st_mode & 0o777), open(p).read())"
    )
    launcher = (
        "import sys; from paw_hpc.system.processes import run_here; sys.exit(run_here(2, "
        f"[sys.executable, '-c', {code!r}]))"
    )
    found = set()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        [seen] = {line.partition("] ")[2] for line in done.stdout.strip().splitlines()}
        path, mode, key = seen.split()
        assert mode == "0o600" and not Path(path).exists()
        found.add(key)
    assert len(found) == 2


# ------------------------------------------------------------------------------------------------ where it is


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that knows one list of nodes; nobody has said where ranks meet."""
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$3" = "node[2-3]" ] || { echo "Invalid hostlist: $3" >&2; exit 1; }\nprintf '
        '"node2\\nnode3\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "40007")


def test_ranks_meet_where_their_starter_says_else_on_the_first_node_of_their_step(
    scontrol: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="nor Slurm says where they meet"):
        meeting.meeting_point()
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-3]")  # the job's first node is not of the step
    with pytest.raises(
        RecipeError, match=r"'node\[1-3\]' cannot be resolved .*Invalid hostlist.* set MASTER_ADDR"
    ):
        meeting.meeting_point()
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[2-3]")
    assert meeting.meeting_point() == ("node2", 20_007)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert meeting.meeting_point() == ("node2", 20_007), "half of it says nothing"
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert meeting.meeting_point() == ("10.0.0.1", 29500)


def test_servers_of_an_allocation_are_on_its_nodes(scontrol: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = parse_recipe(
        {"model": {"path": "warm-start"}, "rollout": {"fleet": {"hosts": ["allocation"]}}}
    ).rollout.fleet
    with pytest.raises(RecipeError, match="needs a Slurm job"):
        process._hosts(fleet)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[2-3]")
    assert process._hosts(fleet) == ("node2", "node3")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[")
    with pytest.raises(
        RecipeError, match=r"rollout.fleet.hosts: the nodes 'node\[' cannot be resolved .* name the hosts"
    ):
        process._hosts(fleet)
