"""Checkpoints of all ranks together, whole or absent (see checkpoint_folder.py), written in one layout and
read in any.

    DIRECTORY/update_000030/__RANK_0.distcp  .metadata  common.pt  metadata.json   Megatron-core's format
    DIRECTORY/update_000030/huggingface/      config.json and tokenizer: it can be converted by itself
    DIRECTORY/update_000030/manifest.json

The learning-rate schedule, the tasks to play and every other draw are functions of (seed, update), so
`update` is the cursor of loop, scheduler and environments. All functions are collectives of all ranks, which
see one file system.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from paw_hpc.policy.checkpoint_folder import (
    begin,
    check_content,
    check_recipe,
    checkpoints,
    commit,
    digest,
    has_moved,
    none_whole,
    read_manifest,
    write_manifest,
)
from paw_hpc.policy.convert.transfer import raise_together
from paw_hpc.policy.megatron import states
from paw_hpc.policy.megatron.identity import Identity
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.optimizer import TrainedModel
from paw_hpc.policy.megatron.reading import restricted
from paw_hpc.policy.megatron.shim import megatron, quiet_imports
from paw_hpc.policy.megatron.writing import ShardWriter, bytes_to_write
from paw_hpc.recipe import Recipe
from paw_hpc.system.distributed import on_main
from paw_hpc.system.errors import CheckpointError, StorageError
from paw_hpc.system.storage import storage_errors, sync_file

with quiet_imports():
    from megatron.core import dist_checkpointing

FORMAT = "paw_hpc megatron checkpoint 1"
HUGGING_FACE = "huggingface"
_log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and loads the trained models of a run. One save at a time may go on in the background.

    Args:
        layout: open.
        trained: models by their key of `states.PREFIXES`; `Weights` can be saved, not resumed.
    """

    def __init__(
        self, layout: Layout, identity: Identity, trained: Mapping[str, TrainedModel | states.Weights]
    ) -> None:
        self.layout, self.identity, self.trained = layout, identity, dict(trained)
        self._pending: _Pending | None = None

    def save(
        self, directory: Path, update: int, meta: Mapping[str, Any], *, keep: int, wait: bool = True
    ) -> None:
        """Write a checkpoint of the present state; `wait=False` writes in the background, until the next
        `save` or `finish`.

        Raises:
            StorageError: no room, or a rank could not write. The earlier checkpoints stay, and nothing
                half-written is left.
        """
        if keep < 1:
            raise ValueError(f"keep: {keep} would remove the checkpoint just written")
        self.finish()
        with megatron():
            state = self._state(loading=False)
        temporary = directory / f".update_{update:06d}.tmp"
        self._begin(temporary, update, bytes_to_write(state))
        described = self.identity.described | {
            "layout": dataclasses.asdict(self.layout),
            "parts": self._parts,
            "distributed_optimizer": self._distributed_optimizer,
            "dtype": str(next(iter(self.trained.values())).models[0].config.params_dtype).removeprefix(
                "torch."
            ),
        }
        with megatron():
            writer = ShardWriter(state, temporary, dist.get_rank())
            writer.start(background=not wait)
        self._pending = _Pending(writer, temporary, update, dict(meta) | {"megatron": described}, keep)
        if wait:
            self.finish()

    def poll(self) -> None:
        """Give a save in the background its name if all ranks have written it. Raises StorageError as `save`
        does."""
        if self._pending is None:
            return
        writing = torch.tensor(int(self._pending.writer.writing))
        dist.all_reduce(writing)
        if not int(writing):
            self.finish()

    def finish(self) -> None:
        """Wait for a save in the background, and give it its name. Raises StorageError as `save` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        files = self._finish_writing(pending)
        error: Exception | None = None
        if dist.get_rank() == 0:
            try:
                with storage_errors(pending.temporary.parent):
                    self.identity.config.save_pretrained(pending.temporary / HUGGING_FACE)
                    self.identity.tokenizer.save_pretrained(pending.temporary / HUGGING_FACE)
                    pending.commit(files)
            except Exception as caught:
                shutil.rmtree(pending.temporary, ignore_errors=True)
                error = caught
        raise_together(error)

    def resume(self, directory: Path, recipe: Recipe, may_differ: Collection[str] = ()) -> int:
        """Load the newest whole checkpoint into the models; returns the updates that are done (0: there is
        none).

        Raises:
            CheckpointError: the newest whole one is of another recipe, model or tokenizer.
        """
        self.finish()
        found = newest(directory)
        if found is None:
            return 0
        path, manifest = found
        meta = manifest["meta"]
        check_recipe(path, meta, recipe, may_differ)
        self.identity.check(path, meta["megatron"], moved=has_moved(meta, recipe))
        for what, ours in (("parts", self._parts), ("distributed_optimizer", self._distributed_optimizer)):
            if meta["megatron"][what] != ours:
                raise CheckpointError(
                    f"{path}: its {what} are {meta['megatron'][what]}, the run's are {ours}; it cannot be "
                    "resumed with this recipe"
                )
        with megatron():
            same = meta["megatron"]["layout"] == dataclasses.asdict(self.layout)
            loaded = load(path, self._state(loading=True, random_states=same))
            for name, model in self.trained.items():
                states.load_weights(name, model.models, loaded[name]["weights"])
                if isinstance(model, TrainedModel):
                    states.load_optimizer(model, loaded[name]["optimizer"])
            if same:
                states.load_random_states(loaded["random"])
        return int(manifest["update"])

    @property
    def _parts(self) -> list[str]:
        """What a run can go on with."""
        return sorted(name for name, model in self.trained.items() if isinstance(model, TrainedModel))

    @property
    def _distributed_optimizer(self) -> bool:
        models = [model for model in self.trained.values() if isinstance(model, TrainedModel)]
        return any(chunk.ddp_config.use_distributed_optimizer for model in models for chunk in model.chunks)

    def _state(self, *, loading: bool, random_states: bool = True) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, model in self.trained.items():
            weights = states.sharded_weights(name, model.models)
            state[name] = {"weights": weights}
            if isinstance(model, TrainedModel):
                state[name]["optimizer"] = states.sharded_optimizer(model, weights, loading=loading)
        return state | (
            {"random": states.sharded_random_states(self.layout, loading=loading)} if random_states else {}
        )

    def _begin(self, temporary: Path, update: int, own_bytes: int) -> None:
        """Make the hidden folder, and see that there is room."""
        total = torch.tensor(own_bytes)
        dist.all_reduce(total)
        error: Exception | None = None
        if dist.get_rank() == 0:
            try:
                with storage_errors(temporary.parent):
                    begin(temporary.parent, update)
                    free = shutil.disk_usage(temporary).free
                    if free < int(total):
                        raise StorageError(
                            f"{temporary.parent}: a checkpoint takes {int(total) / 2**30:.1f} GiB, and "
                            f"{free / 2**30:.1f} GiB are free; "
                            "the earlier checkpoints stay: make room, then start the same command again to "
                            "resume"
                        )
            except Exception as caught:
                shutil.rmtree(temporary, ignore_errors=True)
                error = caught
        raise_together(error)

    def _finish_writing(self, pending: _Pending) -> dict[str, dict[str, Any]]:
        """The files of all ranks."""
        with megatron():
            try:
                own, error = pending.writer.finish(), None
            except (
                Exception,
                CheckpointException,
            ) as caught:  # on all ranks; the first one's names the reason
                own, where = {}, pending.temporary.parent
                error = StorageError(
                    f"{where}: the checkpoint of update {pending.update} could not be written: "
                    f"{_reason(caught)}"
                )
        if error is not None and dist.get_rank() == 0:
            shutil.rmtree(pending.temporary, ignore_errors=True)
        raise_together(error)
        everyone: list[dict[str, dict[str, Any]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, own)
        return {name: entry for files in everyone for name, entry in files.items()}


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    writer: ShardWriter
    temporary: Path
    update: int
    meta: dict[str, Any]
    keep: int

    def commit(self, files: dict[str, dict[str, Any]]) -> None:
        """Rank 0, when all ranks have written: complete the manifest and rename."""
        for file in sorted(self.temporary.rglob("*")):
            name = str(file.relative_to(self.temporary))
            if file.is_file() and name not in files:
                sync_file(file)  # writers have synced theirs
                files[name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
        write_manifest(self.temporary, FORMAT, self.update, files, self.meta)
        commit(self.temporary, self.update, self.keep)


def newest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its manifest, agreed by all ranks, which read its files together; None
    where there is none at all. Others are passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints and none of them is whole, or the directory cannot be read.
    """
    reasons = []
    for path in reversed(on_main(lambda: [found for _, _, found in checkpoints(directory)])):
        try:
            return path, verified(path)
        except CheckpointError as error:
            if dist.get_rank() == 0:
                _log.warning("%s; passed over", error)
            reasons.append(str(error))
    if reasons:
        raise none_whole(directory, reasons)
    return None


def verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is whole. Raises CheckpointError on all ranks."""
    read: list[Any] = [None]
    error: CheckpointError | None = None
    if dist.get_rank() == 0:
        try:
            read = [read_manifest(path, FORMAT)]
        except CheckpointError as caught:
            error = caught
    raise_together(error)
    dist.broadcast_object_list(read)
    manifest: dict[str, Any] = read[0]
    names = sorted(manifest["files"])[dist.get_rank() :: dist.get_world_size()]
    try:
        check_content(path, {name: manifest["files"][name] for name in names})
    except CheckpointError as caught:
        error = caught
    raise_together(error)
    if "megatron" not in manifest["meta"]:
        raise CheckpointError(f"{path}: does not say what it holds")
    return manifest


def load(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a sharded state dict asks for, from a checkpoint that is whole. Raises CheckpointError where it
    holds something else."""
    try:
        with quiet_imports(), restricted():  # quiet: of deprecated parts of PyTorch that it uses
            return dist_checkpointing.load(state, str(path))
    except (Exception, CheckpointException) as error:  # on all ranks
        raise CheckpointError(f"{path}: it does not hold what the run asks for: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line."""
    # a BaseException, with a traceback of every rank in its text
    if isinstance(error, CheckpointException) and error.failures:
        rank, (error, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {' '.join(str(error).split())[:300]}"
    return " ".join(str(error).split())[:300]
