"""`paw plan`: what runs where, whether it fits, and how long an update may take, before an allocation is
spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from paw_hpc.cluster.estimate import Assumptions, StepTime, step_time
from paw_hpc.cluster.layout import ClusterLayout, lay_out
from paw_hpc.cluster.memory import ServerMemory, TrainerMemory, server_memory, too_much, trainer_memory
from paw_hpc.cluster.models import NotMadeYet, architecture_for, parameters
from paw_hpc.cluster.suggestion import nearest_that_fits
from paw_hpc.policy.convert.architecture import Architecture, parameter_count
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.gpus import GIB, GPU_BYTES


@dataclass(frozen=True, slots=True)
class Footprint:
    """A recipe that fits."""

    recipe: Recipe
    layout: ClusterLayout
    model: Architecture | None
    """None: it is still to be made, and nothing is known of its size (CPU nodes only)."""
    trainer: TrainerMemory | None
    server: ServerMemory | None
    time: StepTime | None
    assumptions: Assumptions


def footprint_of(recipe: Recipe, assumptions: Assumptions | None = None) -> Footprint:
    """Raises RecipeError for a layout that does not divide or does not fit; then it names the nearest one
    that does."""
    layout, given = lay_out(recipe), assumptions or Assumptions()
    try:
        model = architecture_for(recipe)
    except NotMadeYet:
        if layout.gpus_per_node:
            raise
        return Footprint(recipe, layout, None, None, None, None, given)
    if recipe.policy.backend == "megatron":
        Layout.of(recipe.megatron, layout.trainer.processes).check(model)
    if (why := too_much(recipe, layout, model)) is not None:
        found = nearest_that_fits(recipe, model)
        nearest = (
            f"the nearest layout that fits: {' '.join(found[0])}"
            if found
            else "nothing up to sixteen times the nodes does; use a smaller model"
        )
        raise RecipeError(f"cluster: {why}; {nearest}")
    server = server_memory(recipe, model) if recipe.rollout.starts_servers and layout.gpus_per_node else None
    return Footprint(
        recipe,
        layout,
        model,
        trainer_memory(recipe, layout, model),
        server,
        step_time(recipe, layout, model, given),
        given,
    )


def print_footprint(footprint: Footprint, console: Console | None = None) -> None:
    """Everything a user may want to check before submitting."""
    out = console or Console(soft_wrap=True)
    for line in footprint_lines(footprint):
        out.print(line, markup=False, highlight=False)


def footprint_lines(footprint: Footprint) -> list[str]:
    """The text of `print_footprint`."""
    recipe, layout = footprint.recipe, footprint.layout
    size = (
        f"{parameter_count(parameters(footprint.model))} parameters"
        if footprint.model is not None
        else f"{recipe.model.path or 'a tiny model'} (not made yet)"
    )
    nodes = f"{layout.nodes} node{'s' * (layout.nodes > 1)}"
    gpus = f" x {layout.gpus_per_node} {recipe.cluster.gpu}" if layout.gpus_per_node else ", CPU"
    lines = [f"{recipe.name}: {size}, {recipe.policy.backend}, {layout.shape}, {nodes}{gpus}"]
    lines += [f"  node {index}: {layout.node(index)}" for index in range(layout.nodes)]
    if recipe.policy.backend == "megatron":
        m, count = recipe.megatron, layout.trainer.processes
        data = count // (m.tensor_parallel * m.pipeline_parallel * m.context_parallel)
        lines.append(
            f"  trainer: tensor {m.tensor_parallel} x pipeline {m.pipeline_parallel} x context "
            f"{m.context_parallel} x data {data} = {count} processes"
        )
    lines += _memory(footprint)
    if footprint.time is None:
        return [*lines, "time: not estimated for CPU nodes"]
    t = footprint.time
    lines.append(
        f"time per update, estimated: {t.update_s:.0f} s = play "
        f"{t.play_s:.0f}{' overlapping' if t.overlapped else ' +'} score {t.score_s:.0f}"
        f" + train {t.train_s:.0f}, publish {t.publish_s:.1f}; {recipe.updates} updates in "
        f"{t.update_s * recipe.updates / 3600:.1f} h"
    )
    return lines + [f"  assumed: {line}" for line in footprint.assumptions.lines()]


def footprint_data(footprint: Footprint, seeds: int) -> dict[str, Any]:
    """The same in numbers, for programs: bytes of one GPU (or process), seconds, GPU hours of one run; null
    where nothing is known.

    Args:
        seeds: as many runs are asked for.
    """
    recipe, layout, time = footprint.recipe, footprint.layout, footprint.time
    memory = {"trainer": footprint.trainer, "server": footprint.server}
    return {
        "name": recipe.name,
        "seeds": seeds,
        "updates": recipe.updates,
        "parameters": None if footprint.model is None else parameters(footprint.model),
        "nodes": [layout.node(index) for index in range(layout.nodes)],
        "gpus_per_node": layout.gpus_per_node,
        "gpu": recipe.cluster.gpu if layout.gpus_per_node else None,
        "memory_bytes": {
            name: None if part is None else asdict(part) | {"total": part.total}
            for name, part in memory.items()
        },
        "estimated": None if time is None else asdict(time) | {"update_s": time.update_s},
        "gpu_hours": None if time is None else layout.gpus * time.update_s * recipe.updates / 3600,
        "assumed": footprint.assumptions.lines() if time is not None else [],
    }


def _memory(footprint: Footprint) -> list[str]:
    if (t := footprint.trainer) is None:
        return ["memory: not known before the model is made"]
    capacity = GPU_BYTES[footprint.recipe.cluster.gpu]
    where = (
        f"of {capacity / GIB:.0f} GiB per trainer GPU"
        if footprint.layout.gpus_per_node
        else "per trainer process (not checked on CPU nodes)"
    )
    parts = (
        ("weights", t.weights),
        ("gradients", t.gradients),
        ("optimizer", t.optimizer),
        ("reference", t.reference),
        ("critic", t.critic),
        ("engine", t.engine_copy),
        ("activations", t.activations),
        ("head", t.head),
        ("other", t.other),
    )
    lines = [
        f"memory: {t.total / GIB:.1f} GiB {where}: "
        + ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts if size)
    ]
    if (s := footprint.server) is not None:
        lines.append(
            f"  server: {s.total / GIB:.1f} of {capacity / GIB:.0f} GiB per GPU: weights "
            f"{s.weights / GIB:.1f}, KV cache {s.cache / GIB:.1f}"
            f" ({s.cache // s.bytes_per_token} tokens, {s.requests} longest requests), other "
            f"{s.other / GIB:.1f}"
        )
    return lines
