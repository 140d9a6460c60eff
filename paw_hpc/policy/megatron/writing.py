"""One process per rank writes a checkpoint's tensors, in the background or in line.

Megatron-core's own asynchronous writer starts a manager process and one more process per file on every rank.
The first outlives a trainer that is killed; when one of the others is killed, its rank waits for ever. Here
the planned buckets are written by one forked process (or none), which also takes their checksums and reports
in a file that has no name.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import tempfile
from pathlib import Path
from typing import Any

import torch

from paw_hpc.policy.checkpoint_folder import digest
from paw_hpc.policy.megatron.patches import MEGATRON, patched
from paw_hpc.policy.megatron.shim import quiet_imports
from paw_hpc.system.children import die_with_parent

with quiet_imports():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy


class ShardWriter:
    """Writes this rank's tensors of a sharded state dict into a folder. A collective of all ranks: construct,
    `start`, `finish`.

    Args:
        state: sharded tensors and objects; plain values are rank 0's and written at once.
    """

    def __init__(self, state: dict[str, Any], folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._report = _Report()
        self._process: Any = None
        strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
        reporting = patched(
            filesystem_async, "_get_write_results_queue", lambda: self._report, written_for=MEGATRON
        )
        with quiet_imports(), reporting:
            self._request: Any = dist_checkpointing.save(
                state,
                str(folder),
                strategy,
                async_sharded_save=True,
                preprocess_common_before_consistancy_check=lambda _: {},
            )

    def start(self, *, background: bool) -> None:
        """Write now, or in a forked process that sees the tensors as they are at this moment."""
        request = self._request
        if request.async_fn is None:
            return  # other replicas have this rank's tensors
        buckets = request.preload_fn()  # in CPU memory
        arguments = (request.async_fn.args[0], buckets, self._report, self._folder, self._rank)
        if not background:
            _write(*arguments)
            return
        # A fork, not a thread: the trainer changes the weights while they are written.
        self._process = multiprocessing.get_context("fork").Process(
            target=_write_alone, args=(os.getpid(), *arguments)
        )
        self._process.start()

    @property
    def writing(self) -> bool:
        """This rank's forked process is still at it."""
        return self._process is not None and self._process.is_alive()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for all ranks' writers and write the metadata; returns this rank's files with their sizes and
        checksums.

        Raises:
            CheckpointException: a rank could not write (raised on all; the first rank's names the reason).
        """
        if self._process is not None:
            self._process.join()
        for finalize in self._request.finalize_fns:
            finalize()
        return self._report.files()


class _Report:
    """What a writer found, as a file: the library asks for it as if it were a queue. Without a name, so that
    nobody but the forked process, which has it open, can have written what is unpickled here."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open for as long as this lives

    def put(self, outcome: Any, files: dict[str, dict[str, Any]] | None = None) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(pickle.dumps((outcome, files or {})))
        self._file.flush()

    def get_nowait(self) -> Any:
        try:
            return self._read()[0]
        except (OSError, EOFError, pickle.UnpicklingError):
            raise queue.Empty from None

    def files(self) -> dict[str, dict[str, Any]]:
        try:
            return self._read()[1]
        except EOFError:  # nothing was to be written
            return {}

    def _read(self) -> Any:
        self._file.seek(0)
        return pickle.load(self._file)


def _write_alone(trainer: int, *arguments: Any) -> None:
    """In a forked process, which ends with the trainer: its folder is not looked for by anybody then."""
    die_with_parent(parent=trainer)
    _write(*arguments)


def _write(transforms: Any, buckets: list[Any], report: _Report, folder: Path, rank: int) -> None:
    """Write every bucket into its file; an error is reported, not raised."""
    results: dict[int, Any] = {}
    for i, bucket in enumerate(buckets):
        outcome, waiting = queue.SimpleQueue[Any](), queue.Queue[int]()
        waiting.put(i)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, i, bucket, outcome, waiting, use_fsync=True
        )  # type: ignore[arg-type]
        _, results[i] = outcome.get_nowait()
        if isinstance(results[i], Exception):
            report.put(RuntimeError(f"{type(results[i]).__name__}: {results[i]}"))
            return
    names = [str(bucket[1]) for bucket in buckets]
    report.put(
        results,
        {name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in names},
    )


def bytes_to_write(state: Any) -> int:
    """Of this rank, of a sharded state dict."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica

    total = 0
    for value in nested_values(state):
        if (
            isinstance(value, (ShardedTensor, ShardedTensorFactory))
            and isinstance(value.data, torch.Tensor)
            and is_main_replica(value.replica_id)
        ):
            total += value.data.numel() * value.data.element_size()
    return total
