"""Trained models as sharded state dicts, which Megatron-core saves in one layout and loads in another, and
the random states beside them.

Four defects of the library (0.16.1) are put right around it. Its distributed optimizer gathers shards without
the padding between buckets, but cuts parameters out by their offsets with it: from the second bucket on,
other numbers are saved. And where Adam is PyTorch's, not Transformer Engine's or Apex's: an optimizer that
has made no step yet cannot be saved or loaded; `step` is looked for among the loaded tensors, where it is
not; and one `step` tensor is given to all parameters, each of which then counts up all of them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paw_hpc.policy.checkpoint import decode, encode
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.optimizer import TrainedModel
from paw_hpc.policy.megatron.patches import MEGATRON, patched
from paw_hpc.policy.megatron.shim import quiet_imports
from paw_hpc.policy.optimizer import SETTINGS
from paw_hpc.system.errors import CheckpointError

with quiet_imports():
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.transformer.module import MegatronModule

PREFIXES = {"policy": "", "critic": "critic."}
"""Of tensor names. A policy's are those of any Megatron GPT, so that other programs can read them."""
_KERNEL_STATE = "_extra_state"
_ADAM = (torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True)
class Weights:
    """A model that is saved without an optimizer."""

    models: list[Any]
    optimizer: None = None


def sharded_weights(name: str, models: list[Any]) -> dict[str, Any]:
    """Of a rank's chunks; the tensors are the live parameters. `name` is a key of PREFIXES."""
    chunks = {f"chunk{i}": _sharded_chunk(model, PREFIXES[name]) for i, model in enumerate(models)}
    # What kernels keep beside weights is empty (it is for FP8), and other layers have other kernels.
    return {
        i: {key: value for key, value in chunk.items() if not key.endswith(_KERNEL_STATE)}
        for i, chunk in chunks.items()
    }


def load_weights(name: str, models: list[Any], state: Mapping[str, Any]) -> None:
    """The inverse of `sharded_weights`, with what was loaded."""
    for i, model in enumerate(models):
        found = {key.removeprefix(PREFIXES[name]): value for key, value in state[f"chunk{i}"].items()}
        keys = model.load_state_dict(found, strict=False)
        odd = [key for key in (*keys.missing_keys, *keys.unexpected_keys) if not key.endswith(_KERNEL_STATE)]
        if odd:
            raise CheckpointError(f"{name}: {len(odd)} weights are only on one side, such as {odd[0]}")


def sharded_optimizer(trained: TrainedModel, weights: Mapping[str, Any], *, loading: bool) -> Any:
    """Moments, float32 masters and steps; `weights` is what `sharded_weights` gave. A collective of all
    ranks."""
    for part in _parts(trained.optimizer):
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, _ADAM):
            for state in part.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))
    with _padded_buckets(trained.optimizer):
        return trained.optimizer.sharded_state_dict(dict(weights), is_loading=loading, metadata=_metadata())


def load_optimizer(trained: TrainedModel, state: Any) -> None:
    """The inverse of `sharded_optimizer`, with what was loaded."""
    parts = _parts(trained.optimizer)
    states = [state] if len(parts) == 1 else [state[i] for i in range(len(parts))]
    for part, own in zip(parts, states, strict=True):
        load = _load_whole if "param_state" not in own else _load_sharded
        # What is stored with the moments is taken for the optimizer's settings; the recipe's are those that
        # hold.
        kept = [
            {name: group[name] for name in SETTINGS if name in group} for group in part.optimizer.param_groups
        ]
        load(part, own, isinstance(part.optimizer, _ADAM))
        for group, settings in zip(part.optimizer.param_groups, kept, strict=True):
            group.update(settings)


@contextlib.contextmanager
def _padded_buckets(optimizer: Any) -> Iterator[None]:
    """Inside, the shards of a bucket are gathered with its padding, so that the offsets of parameters
    hold."""
    with contextlib.ExitStack() as stack:
        for buffer in (buffer for part in _parts(optimizer) for buffer in getattr(part, "buffers", [])):
            stack.enter_context(patched(buffer, "numel_unpadded", buffer.numel, written_for=MEGATRON))
            for bucket in buffer.buckets:
                stack.enter_context(
                    patched(bucket, "numel_unpadded", bucket.grad_data.numel(), written_for=MEGATRON)
                )
        yield


def _load_sharded(part: Any, state: dict[str, Any], adam: bool) -> None:
    """The distributed optimizer: a rank keeps its part of what was loaded."""
    masters = state.pop("param_state")
    del state["param_state_sharding_type"]
    part.load_state_dict(state)
    steps = [float(own.pop("step")) for own in part.optimizer.state.values()] if adam else []
    part.load_parameter_state_from_fully_reshardable(masters)
    for own, step in zip(part.optimizer.state.values(), steps, strict=False):
        own["step"] = torch.tensor(step)


def _load_whole(part: Any, state: dict[str, Any], adam: bool) -> None:
    if adam:
        inner = state.get("optimizer", state)
        inner["state"].setdefault("common_step", torch.tensor(0.0))  # a step of 0 is not saved
    part.load_state_dict(state)


def sharded_random_states(layout: Layout, *, loading: bool) -> ShardedObject:
    """Of this process: Python's, NumPy's, PyTorch's on the CPU and on its GPU. They are a rank's own, so only
    the same layout reads them back."""
    data = None if loading else random_states()
    ranks = (
        layout.pipeline_rank,
        layout.tensor_rank,
        layout.data_rank * layout.context + layout.context_rank,
    )
    return ShardedObject(
        "random", data, (layout.pipeline, layout.tensor, layout.data * layout.context), ranks
    )


def random_states() -> Any:
    """In a form that `torch.load` reads without running code."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    return encode(
        states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}), "random"
    )


def load_random_states(data: Any) -> None:
    """The inverse of `random_states`."""
    states = decode(data)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _sharded_chunk(model: Any, prefix: str) -> dict[str, Any]:
    # GPTModel's own method looks for the output layer that a critic does not have
    if hasattr(model, "value_head"):
        return MegatronModule.sharded_state_dict(model, prefix, (), _metadata())
    return model.sharded_state_dict(prefix=prefix, metadata=_metadata())


def _metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        # Shards of the optimizer are gathered in CPU memory, and on one replica only.
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _parts(optimizer: Any) -> list[Any]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]
