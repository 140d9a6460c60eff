"""Servers of a launched run on nodes of their own, and what another user reaches of them over the cluster's
network."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster import attempts
from paw_hpc.cluster.layout import port
from paw_hpc.cluster.supervise import KEY_FILE
from paw_hpc.system.keys import bearer, new_key, read_key, write_secret
from tests.cluster.runs import TINY, explain, processes_naming, recipe, wait_until
from tests.cluster.test_faults import launched
from tests.cluster.test_whole_job import SGLANG
from tests.cluster.test_whole_job import sglang as sglang
from tests.envs.search.conftest import bm25_folder as bm25_folder
from tests.envs.search.conftest import corpus as corpus
from tests.envs.search.servers import free_port
from tests.rollout.test_closed import OPEN, REFUSED, routes, tried
from tests.second_user import somebody_else

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TWO_NODES: dict[str, Any] = {
    **TINY,
    "updates": 30,
    "rollout": {
        **TINY["rollout"],
        "engine": "sglang",
        "fleet": {"python": str(SGLANG), "start_timeout_s": 900},
    },
    "cluster": {**TINY["cluster"], "rollout_nodes": 2},
}


def test_no_server_on_either_node_obeys_a_stranger(testbed: Path, sglang: None, tmp_path: Path) -> None:
    with launched(tmp_path, made=recipe(TWO_NODES)) as one:
        with one.held(1):
            [attempt] = attempts.history(one.run)
            file = one.run / "attempt_1" / KEY_FILE
            key = read_key(file, "x")
            urls = [f"http://{node}:{port(key, 'server', 0)}" for node in attempt.nodes[1:]]
            assert len(set(urls)) == 2
            listed = routes(urls[0], key)
            assert len(listed) > 90
            for url in urls:
                for headers in ({}, bearer("wrong")):
                    assert {
                        path
                        for (_, path), status in tried(url, listed, headers).items()
                        if status not in REFUSED
                    } == OPEN
                assert tried(url, [("GET", "/server_info")], bearer(key)) == {("GET", "/server_info"): 200}
            assert somebody_else("find", key, "sglang.launch_server")[0] == []
            assert somebody_else("read", str(file)) == [False]
        # After all that it plays on, and ends.
        one.wait_for("COMPLETED")
        assert [attempt.how for attempt in attempts.history(one.run)] == ["complete: 30 updates"]
        assert not file.exists()
        wait_until(lambda: not processes_naming(str(one.run)), explain(one.run), 60.0)


@contextmanager
def served(node: str, index: Path, *options: str) -> Iterator[str]:
    """A retriever on a node, at its own address."""
    place = free_port()
    command = [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "data",
        "search",
        "serve",
        str(index),
        "--host",
        node,
        "--port",
        str(place),
        *options,
    ]
    step = subprocess.Popen(
        ["srun", f"--nodelist={node}", "--cpus-per-task=2", *command], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection((node, place), timeout=5).close()
                break
            except OSError:
                assert step.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        yield f"http://{node}:{place}"
    finally:
        step.terminate()
        step.wait(60)


def test_the_same_finds_a_server_without_a_key_open(testbed: Path, bm25_folder: Path, tmp_path: Path) -> None:
    """Negative control, on a node of the cluster; and beside it the same with a key."""
    nodes = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%N"], check=True, capture_output=True, text=True
    ).stdout.split()
    wanted = [("POST", "/retrieve"), ("GET", "/openapi.json"), ("GET", "/health")]
    with served(nodes[0], bm25_folder) as url:
        assert list(tried(url, wanted, {}).values()) == [422, 200, 200]
    write_secret(tmp_path / "key", new_key())
    with served(nodes[1], bm25_folder, "--key-file", str(tmp_path / "key")) as url:
        assert list(tried(url, wanted, {}).values()) == [401, 401, 200]
