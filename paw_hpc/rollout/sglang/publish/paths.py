"""The three ways of weights to servers: a folder, a process group, shared memory. Each loads them; whether
they arrived is checked elsewhere."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.multiprocessing
from transformers import PreTrainedConfig

from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import ServerFault, all_well
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import Bucket, NamedTensor, NamedTensors, buckets, in_turn
from paw_hpc.rollout.sglang.publish.files import WeightFiles
from paw_hpc.rollout.sglang.publish.group import WeightGroup
from paw_hpc.rollout.sglang.publish.traversal import Passes
from paw_hpc.system.storage import storage_errors

KEPT_VERSIONS = 2
CPU_BUCKET_BYTES = 32 << 20
"""In CPU memory a bucket is no larger: fresh memory costs its first touch more than a copy, and both sides
have so little at hand again and again."""


class PublishPath(Protocol):
    """One way of publication."""

    def deliver(self, servers: Sequence[Server], passes: Passes, version: int) -> None:
        """Have the servers load the weights. Raises ServerFault (which server, why)."""
        ...

    def close(self) -> None: ...


class DiskPath:
    """A folder in the Hugging Face layout, in safetensors files as large as a bucket. Servers must see it
    under the same name. Tensors go into the files as they come: nothing is kept in memory.

    Args:
        folder: holds one folder per version; the last two are kept.
    """

    def __init__(
        self, loop: EventLoop, folder: Path, config: PreTrainedConfig, bucket_bytes: int, timeout_s: float
    ):
        self._loop, self._folder, self._config, self._bucket_bytes, self._timeout_s = (
            loop,
            folder,
            config,
            bucket_bytes,
            timeout_s,
        )

    def deliver(self, servers: Sequence[Server], passes: Passes, version: int) -> None:
        if not self.folder(version).is_dir():
            self._write(passes(), version)
        self._loop.run(self.load(servers, version))

    async def load(self, servers: Sequence[Server], version: int) -> None:
        """Have servers read what was written before. Raises ServerFault."""
        order = {
            "model_path": str(self.folder(version).resolve()),
            "load_format": "auto",
            "flush_cache": True,
            "abort_all_requests": False,
            "weight_version": str(version),
        }
        await all_well([s.http.post("/update_weights_from_disk", order, self._timeout_s) for s in servers])

    def folder(self, version: int) -> Path:
        return self._folder / f"{version:08d}"

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, tensors: NamedTensors, version: int) -> None:
        final = self.folder(version)
        temporary = final.with_name(f".{final.name}.tmp")
        with storage_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            with WeightFiles(temporary, self._bucket_bytes) as files:
                files.add_all(tensors)
            (temporary / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": files.weight_map})
            )
            self._config.save_pretrained(temporary)
            temporary.rename(final)
        for old in sorted(self._folder.glob("[0-9]*"))[:-KEPT_VERSIONS]:
            shutil.rmtree(old, ignore_errors=True)


class _Online:
    """What the ways without a file share: buckets between begin and end, and the version set with the last
    one."""

    def __init__(self, loop: EventLoop, bucket_bytes: int, timeout_s: float):
        self._loop, self._timeout_s = loop, timeout_s
        self._bucket_bytes = (
            bucket_bytes if torch.cuda.is_available() else min(bucket_bytes, CPU_BUCKET_BYTES)
        )

    def deliver(self, servers: Sequence[Server], passes: Passes, version: int) -> None:
        sessions = self._loop.run(all_well([s.http.begin_update(self._timeout_s) for s in servers]))
        smallest = self._send_all(servers, passes)
        # A small tensor once more: the version is told, and the cache flushed, with the last load and not
        # before.
        self._send_last(servers, smallest, {"weight_version": str(version), "flush_cache": True})
        opened = [s for s, session in zip(servers, sessions, strict=True) if session]
        self._loop.run(all_well([s.http.end_update(self._timeout_s) for s in opened]))

    def _send_all(self, servers: Sequence[Server], passes: Passes) -> NamedTensor:
        """Returns a copy of the smallest of the tensors that this process has sent."""
        raise NotImplementedError

    def _send_last(self, servers: Sequence[Server], tensor: NamedTensor, extra: dict[str, Any]) -> None:
        raise NotImplementedError


class Smallest:
    """Looks at tensors for the smallest of them."""

    def __init__(self) -> None:
        self._found: NamedTensor | None = None

    def watch(self, tensors: NamedTensors) -> NamedTensors:
        for name, tensor in tensors:
            if self._found is None or tensor.nbytes < self._found[1].nbytes:
                self._found = (name, tensor.clone())
            yield name, tensor

    @property
    def found(self) -> NamedTensor:
        assert self._found is not None, "a model has tensors"
        return self._found


class BroadcastPath(_Online):
    """A process group of this process (rank 0) and every rank of every server.

    Gathering and sending overlap: while one bucket is under way, the next is filled. Each has half of the
    allowed memory.
    """

    def __init__(self, loop: EventLoop, bucket_bytes: int, timeout_s: float):
        super().__init__(loop, bucket_bytes, timeout_s)
        self._group: WeightGroup | None = None

    def deliver(self, servers: Sequence[Server], passes: Passes, version: int) -> None:
        self._join(servers)
        try:
            super().deliver(servers, passes, version)
        except ServerFault:
            self._leave()  # a broadcast that somebody missed leaves the group's ranks out of step
            raise

    def close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None

    def _join(self, servers: Sequence[Server]) -> WeightGroup:
        """The group with just these servers."""
        if self._group is None or not self._group.joins(servers):
            self._leave()
            self._group = WeightGroup(self._loop, servers, self._timeout_s)
        return self._group

    def _packed(self, tensors: NamedTensors, nbytes: int) -> Iterator[Bucket]:
        return buckets(tensors, min(self._bucket_bytes // 2, nbytes), in_turn(2, _fresh_buffer))

    def _send_all(self, servers: Sequence[Server], passes: Passes) -> NamedTensor:
        smallest = Smallest()
        self._join(servers).send_all(self._packed(smallest.watch(passes()), passes.weights.nbytes))
        return smallest.found

    def _send_last(self, servers: Sequence[Server], tensor: NamedTensor, extra: dict[str, Any]) -> None:
        [bucket] = buckets([tensor], tensor[1].nbytes, _fresh_buffer)
        self._join(servers).send(bucket, extra).wait()


class TensorPath(_Online):
    """Shared memory (CUDA IPC for tensors on a GPU): servers on this machine read the buckets where they
    lie."""

    def close(self) -> None: ...

    def _send_all(self, servers: Sequence[Server], passes: Passes) -> NamedTensor:
        smallest = Smallest()
        tensors = smallest.watch(passes())
        # A server's reply says that it has read its memory, but for a GPU only that it will: there, memory is
        # not used twice.
        buffer = _shared_buffer if torch.cuda.is_available() else in_turn(1, _shared_buffer)
        for bucket in buckets(tensors, min(self._bucket_bytes, passes.weights.nbytes), buffer):
            self._send(servers, bucket, {"flush_cache": False})
        return smallest.found

    def _send_last(self, servers: Sequence[Server], tensor: NamedTensor, extra: dict[str, Any]) -> None:
        [bucket] = buckets([tensor], tensor[1].nbytes, _shared_buffer)
        self._send(servers, bucket, extra)

    def _send(self, servers: Sequence[Server], bucket: Bucket, extra: dict[str, Any]) -> None:
        if bucket.flat.is_cuda:
            torch.cuda.current_stream().synchronize()
        jobs = []
        for server in servers:
            # One handle per rank: each reader counts as one user of the memory.
            handles = [_handle(bucket.tensors()) for _ in range(server.ranks)]
            order = {"serialized_named_tensors": handles, "abort_all_requests": False, **extra}
            jobs.append(server.http.post("/update_weights_from_tensor", order, self._timeout_s))
        self._loop.run(all_well(jobs))


def _handle(tensors: list[tuple[str, torch.Tensor]]) -> str:
    # The default strategy passes file descriptors over a socket with a key of this process tree: an unrelated
    # server fails at it, and dies.
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        memory = io.BytesIO()
        ForkingPickler(memory).dump(tensors)
        return base64.b64encode(memory.getvalue()).decode()
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


def _fresh_buffer(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _shared_buffer(size: int, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        return _fresh_buffer(size, device)
    _keep_files_private()
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


def _keep_files_private() -> None:
    """torch's manager of shared memory is a process of its own, which inherits what is open here and lives as
    long as a server reads from it. Whoever waits for a pipe of this process to close, such as the parent of a
    spawned rank, would wait for the servers."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)
