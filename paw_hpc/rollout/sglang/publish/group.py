"""A process group that the trainer and the ranks of servers join for broadcasts of weights, with every wait
bounded and every failure named."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (
    Backend,
    GroupName,
    PrefixStore,
    _new_process_group_helper,
    _world,
)

from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import ServerFault, each
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import Bucket
from paw_hpc.system.meeting import open_store

POLL_S = 0.001
LEAVE_TIMEOUT_S = 10.0


class WeightGroup:
    """Rank 0 is this process, the servers' ranks follow in their order. NCCL between GPUs, gloo else.

    Servers join with torch's own rendezvous, so both sides make the group as `torch.distributed` does; that a
    group is made beside, or without, the default one has no public interface.

    Raises:
        ServerFault: a server did not join in time.
    """

    def __init__(self, loop: EventLoop, servers: Sequence[Server], timeout_s: float):
        self._loop, self._servers, self._timeout_s = loop, list(servers), timeout_s
        self._members = [s.http.url for s in servers]
        # Names in the store begin with it: only whom the servers' key has told it can take part.
        self.name = f"paw-weights-{secrets.token_hex(16)}"
        self.backend = (
            "nccl" if torch.cuda.is_available() and all(s.device == "cuda" for s in servers) else "gloo"
        )
        size, address = 1 + sum(s.ranks for s in servers), address_towards(servers[0].http.url)
        patience = datetime.timedelta(seconds=timeout_s)
        self._store = open_store(address, 0, timeout_s)
        joins, offset = [], 1
        for server in servers:
            order = {
                "master_address": address,
                "master_port": self._store.port,
                "rank_offset": offset,
                "world_size": size,
                "group_name": self.name,
                "backend": self.backend,
            }
            joins.append(loop.start(server.http.post("/init_weights_update_group", order, timeout_s)))
            offset += server.ranks
        made = _in_thread(
            lambda: _make(self.backend, PrefixStore(self.name, self._store), size, self.name, patience)
        )
        self._await(
            lambda: made.done() and all(j.done() for j in joins), joins, "joining the group for weights"
        )
        self._group = made.result()

    def joins(self, servers: Sequence[Server]) -> bool:
        """Whether it is a group of just these servers (the same processes)."""
        return self._members == [s.http.url for s in servers]

    def send(self, bucket: Bucket, extra: dict[str, Any]) -> UnderWay:
        """Begin to broadcast a bucket; its buffer must not change before `UnderWay.wait` has returned."""
        order = {
            "names": bucket.names,
            "dtypes": [str(d).removeprefix("torch.") for d in bucket.dtypes],
            "shapes": [list(s) for s in bucket.shapes],
            "group_name": self.name,
            "load_format": "flattened_bucket",
            "abort_all_requests": False,
            **extra,
        }
        replies = [
            self._loop.start(s.http.post("/update_weights_from_distributed", order, self._timeout_s))
            for s in self._servers
        ]
        return UnderWay(
            self, dist.broadcast(bucket.flat, src=0, group=self._group, async_op=True), replies, bucket
        )

    def send_all(self, packed: Iterable[Bucket]) -> None:
        """Send one bucket after the other: while one is under way, the next is packed. Raises ServerFault."""
        under_way = None
        for bucket in packed:
            if under_way is not None:
                under_way.wait()
            under_way = self.send(bucket, {"flush_cache": False})
        if under_way is not None:
            under_way.wait()

    def close(self) -> None:
        """Leave the group, and have the servers leave it that still answer."""

        async def leave() -> None:
            await each(
                [
                    s.http.post("/destroy_weights_update_group", {"group_name": self.name}, LEAVE_TIMEOUT_S)
                    for s in self._servers
                ]
            )

        self._loop.run(leave())
        # Whoever died in a broadcast leaves this side waiting in it until its time is up: nobody waits for
        # that long.
        gone = _in_thread(lambda: dist.destroy_process_group(self._group))
        with contextlib.suppress(TimeoutError):
            gone.result(LEAVE_TIMEOUT_S)

    def _await(self, done: Any, replies: list[Future[Any]], what: str) -> None:
        """Wait for `done()`. Raises ServerFault as soon as a server has failed, or names those that are
        late."""
        deadline = time.monotonic() + self._timeout_s
        while not done():
            for reply in replies:
                if reply.done():
                    reply.result()
            if time.monotonic() > deadline:
                late = [
                    s.name for s, reply in zip(self._servers, replies, strict=True) if not reply.done()
                ] or [s.name for s in self._servers]
                raise ServerFault(
                    late[0],
                    f"{what} took more than {self._timeout_s:g} s (also late: "
                    f"{', '.join(late[1:]) or 'none'})",
                )
            time.sleep(POLL_S)
        for reply in replies:
            reply.result()


class UnderWay:
    """A bucket that is being sent."""

    def __init__(self, group: WeightGroup, work: Any, replies: list[Future[Any]], bucket: Bucket):
        self._group, self._work, self._replies, self._bucket = group, work, replies, bucket

    def wait(self) -> None:
        """Until every server has loaded it. Raises ServerFault."""
        what = f"loading {self._bucket.names[0]} and {len(self._bucket.names) - 1} further tensors"
        self._group._await(
            lambda: self._work.is_completed() and all(r.done() for r in self._replies), self._replies, what
        )


def _make(backend: str, store: Any, size: int, name: str, timeout: datetime.timedelta) -> Any:
    group, _ = _new_process_group_helper(
        size, 0, [], Backend(backend), store, group_name=GroupName(name), timeout=timeout
    )
    _world.pg_group_ranks[group] = {i: i for i in range(size)}
    return group


def address_towards(url: str) -> str:
    """The address of this machine that the host of `url` would see."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port or 80))  # nothing is sent: the system only chooses the way
        return str(probe.getsockname()[0])


def _in_thread(work: Any) -> Future[Any]:
    """`work` in a thread that nothing waits for at exit."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="paw-weights", daemon=True).start()
    return future
