"""Weights between a Hugging Face folder and the model chunks of this rank, and from all ranks to wherever
Hugging Face tensors are wanted.

Nothing here holds a whole model: loading copies slice by slice into the parameters, and gathering goes bucket
by bucket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.policy.convert.folder import MAX_FILE_BYTES, FolderReader, FolderWriter
from paw_hpc.policy.convert.names import EMBEDDING, OUTPUT, Share, hf_shapes, local_name, parameters, share
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.system.errors import CheckpointError, UserError

BUCKET_BYTES = 256 << 20
VALUE_HEAD = "value_head."
"""Prefix of what a critic has in place of the output layer."""
_ALIGNMENT = 16
"""Bytes; tensors of all dtypes lie in one buffer."""


def load_hf(chunks: Sequence[nn.Module], folder: Path, layout: Layout, architecture: Architecture) -> int:
    """Fill the parameters of this rank's model chunks from a Hugging Face folder; returns the bytes that were
    read for it.

    Slices are copied one by one into the parameters (in their dtype): beyond them, a rank holds one slice at
    a time. A padded vocabulary's last rows are zero. With an optimizer that keeps float32 masters, call its
    `reload_model_params` afterwards.

    Args:
        chunks: `GPTModel`s, wrapped or not, in the order of their virtual stages.

    Raises:
        CheckpointError: the folder or the chunks are not of this architecture (names and shapes are
            compared).
    """
    with FolderReader(folder, hf_shapes(architecture)) as reader, torch.no_grad():
        for name, parameter in named_parameters(chunks, layout, architecture).items():
            part = _share_of(name, parameter, layout, architecture)
            position = 0
            for piece in part.pieces:
                parameter.narrow(part.dim, position, len(piece)).copy_(reader.read(piece, part.dim))
                position += len(piece)
            parameter.narrow(part.dim, position, part.length - position).zero_()
        return reader.bytes_read


def hf_tensors(
    chunks: Sequence[nn.Module],
    layout: Layout,
    architecture: Architecture,
    bucket_bytes: int = BUCKET_BYTES,
    *,
    own_stage: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the Hugging Face layout, whole, in the parameters' dtype and on their device; the same
    order on every rank.

    A collective over the tensor- and pipeline-parallel ranks of a data-parallel replica: each of them
    iterates to the end, and each receives all tensors. Replicas need nothing of each other, so ranks that do
    not want the weights may stay away together. Parameters that the distributed optimizer gathers lazily must
    be gathered before.

    A parameter's pipeline stage sends its shards, each tensor-parallel group gathers them: beyond the
    parameters, a rank holds one bucket of shards, the bucket gathered, and the tensor yielded. A tensor may
    be a view of the bucket or of the live parameter: copy what is kept.

    Args:
        bucket_bytes: of gathered parameters; a parameter larger than that is a bucket of its own.
        own_stage: only what this rank's pipeline stage holds; a collective over its tensor-parallel ranks
            alone.
    """
    across_stages = layout.pipeline > 1 and not own_stage
    own = named_parameters(chunks, layout, architecture)
    mine = [
        _Entry(layout.pipeline_rank, name, tuple(p.shape), p.dtype)
        for name, p in own.items()
        if not _is_copy(name, architecture)
    ]
    stages: list[list[_Entry]] = [mine]
    if across_stages:
        stages = [[] for _ in range(layout.pipeline)]
        dist.all_gather_object(stages, mine, group=layout.pipeline_group)
    device = next(iter(own.values())).device
    for bucket in _buckets([entry for stage in stages for entry in stage], bucket_bytes // layout.tensor):
        shards = _gather(bucket, own, layout, device, across_stages)
        for entry, offset in zip(bucket, _offsets(bucket), strict=True):
            yield from _merge(entry, [entry.view(shard, offset) for shard in shards], layout, architecture)


def export_hf(
    chunks: Sequence[nn.Module],
    folder: Path,
    layout: Layout,
    config: PreTrainedConfig,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Write the model as a Hugging Face folder. A collective of all ranks; the first rank writes, and an
    error there is raised on all.

    Raises:
        CheckpointError, StorageError: see `FolderWriter`.
    """
    check_vocabulary(architecture, tokenizer, str(folder))
    error: Exception | None = None
    writing = dist.get_rank() == 0
    if layout.data_rank == 0 and layout.context_rank == 0:
        tensors = hf_tensors(chunks, layout, architecture, bucket_bytes)
        if writing:
            try:
                with FolderWriter(folder, max_file_bytes=max_file_bytes) as writer:
                    for name, tensor in tensors:
                        writer.add(name, tensor)
                    writer.finish(config, tokenizer)
            except Exception as caught:
                error = caught
        for _ in tensors:  # also where writing failed: the other ranks gather to the end
            pass
    raise_together(error)


def check_vocabulary(
    architecture: Architecture, tokenizer: PreTrainedTokenizerBase | None, where: str
) -> None:
    """Raises CheckpointError where the tokenizer has ids that the model has no row for. (Rows without a token
    are usual: Qwen2 has 271 of them.)"""
    if tokenizer is not None and len(tokenizer) > architecture.vocabulary:
        raise CheckpointError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens but the model only "
            f"{architecture.vocabulary}; they do not belong together"
        )


def named_parameters(
    chunks: Sequence[nn.Module], layout: Layout, architecture: Architecture
) -> dict[str, nn.Parameter]:
    """This rank's parameters that a Hugging Face folder has (not a critic's value head), named as in a whole
    model.

    Raises:
        CheckpointError: they are not those that the architecture asks for.
    """
    found: dict[str, nn.Parameter] = {}
    layers: list[int] = []
    critic = False
    for chunk in chunks:
        model = unwrapped(chunk)
        numbers = [int(layer.layer_number) - 1 for layer in model.decoder.layers]  # type: ignore[union-attr]
        layers += numbers
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.layers."):
                _, _, index, leaf = name.split(".", 3)
                name = f"decoder.layers.{numbers[int(index)]}.{leaf}"
            if name.startswith(VALUE_HEAD):
                critic = True
            else:
                found[name] = parameter
    expected = parameters(
        architecture, layers, first=layout.first_stage, last=layout.last_stage, output=not critic
    )
    odd = sorted(expected ^ {local_name(name) for name in found})
    if odd:
        raise CheckpointError(
            f"the Megatron model and its configuration differ in {len(odd)} parameters, such as {odd[0]}"
        )
    return found


def unwrapped(chunk: nn.Module) -> nn.Module:
    """The model inside data-parallel and precision wrappers."""
    while isinstance(inner := getattr(chunk, "module", None), nn.Module):
        chunk = inner
    return chunk


@dataclass(frozen=True, slots=True)
class _Entry:
    """One parameter of some pipeline stage; shape and dtype are of one tensor-parallel rank's shard."""

    stage: int
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: torch.Tensor, offset: int) -> torch.Tensor:
        return buffer[offset : offset + self.nbytes].view(self.dtype).view(self.shape)


def _buckets(entries: Sequence[_Entry], limit: int) -> Iterator[list[_Entry]]:
    """Runs of entries of one stage, of at most `limit` bytes or one entry."""
    bucket: list[_Entry] = []
    for entry in entries:
        if bucket and (
            entry.stage != bucket[0].stage or _offsets([*bucket, entry])[-1] + entry.nbytes > limit
        ):
            yield bucket
            bucket = []
        bucket.append(entry)
    if bucket:
        yield bucket


def _offsets(bucket: Sequence[_Entry]) -> list[int]:
    """Where each entry begins in the buffer, bytes."""
    offsets, end = [], 0
    for entry in bucket:
        offsets.append(end)
        end += math.ceil(entry.nbytes / _ALIGNMENT) * _ALIGNMENT
    return offsets


def _gather(
    bucket: list[_Entry],
    own: dict[str, nn.Parameter],
    layout: Layout,
    device: torch.device,
    across_stages: bool,
) -> list[torch.Tensor]:
    """The buffers (uint8) of all tensor-parallel ranks."""
    offsets = _offsets(bucket)
    buffer = torch.empty(
        math.ceil((offsets[-1] + bucket[-1].nbytes) / _ALIGNMENT) * _ALIGNMENT,
        dtype=torch.uint8,
        device=device,
    )
    if bucket[0].stage == layout.pipeline_rank:
        for entry, offset in zip(bucket, offsets, strict=True):
            entry.view(buffer, offset).copy_(own[entry.name].detach())
    if across_stages:
        dist.broadcast(
            buffer, dist.get_global_rank(layout.pipeline_group, bucket[0].stage), group=layout.pipeline_group
        )
    if layout.tensor == 1:
        return [buffer]
    gathered = list(torch.empty(layout.tensor, buffer.numel(), dtype=torch.uint8, device=device))
    dist.all_gather(gathered, buffer, group=layout.tensor_group)
    return gathered


def _merge(
    entry: _Entry, shards: list[torch.Tensor], layout: Layout, architecture: Architecture
) -> Iterator[tuple[str, torch.Tensor]]:
    """The Hugging Face tensors that a parameter's shards make up."""
    shapes = hf_shapes(architecture)
    parts = [_share(entry.name, entry.shape, rank, layout, architecture) for rank in range(layout.tensor)]
    if parts[0].replicated:
        yield parts[0].pieces[0].name, shards[0]
        return
    whole: dict[str, torch.Tensor] = {}
    for part, shard in zip(parts, shards, strict=True):
        position = 0
        for piece in part.pieces:
            if piece.name not in whole:
                whole[piece.name] = shard.new_empty(shapes[piece.name])
            source = shard.narrow(part.dim, position, len(piece))
            whole[piece.name].narrow(part.dim, piece.start, len(piece)).copy_(source)
            position += len(piece)
    yield from whole.items()


def _share_of(name: str, parameter: nn.Parameter, layout: Layout, architecture: Architecture) -> Share:
    """This rank's share, its shape compared with the parameter's."""
    part = _share(name, tuple(parameter.shape), layout.tensor_rank, layout, architecture)
    shapes = hf_shapes(architecture)
    expected = list(shapes[part.pieces[0].name]) if part.pieces else [0, architecture.hidden]
    expected[part.dim] = part.length
    if tuple(parameter.shape) != tuple(expected):
        raise CheckpointError(
            f"{name}: the Megatron model has {tuple(parameter.shape)}, but its configuration asks for "
            f"{tuple(expected)}"
        )
    return part


def _share(name: str, shape: tuple[int, ...], rank: int, layout: Layout, architecture: Architecture) -> Share:
    padded = shape[0] * layout.tensor if name in (EMBEDDING, OUTPUT) else 0
    return share(architecture, name, rank, layout.tensor, padded)


def _is_copy(name: str, architecture: Architecture) -> bool:
    """The last stage's copy of a tied embedding."""
    return name == OUTPUT and architecture.tied


def raise_together(error: Exception | None) -> None:
    """A collective of all ranks: an error of one is raised on all of them, so that none waits for ever in its
    next collective."""
    said = (
        error
        if error is None or isinstance(error, UserError)
        else UserError(f"{type(error).__name__}: {error}")
    )
    errors: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, said)
    if error is not None:
        raise error
    for found in errors:
        if found is not None:
            raise found
