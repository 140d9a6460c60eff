"""`paw plan SWEEP`: one line per run of a sweep, and what all of it may cost."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.cluster.footprint import Footprint
from paw_hpc.system.gpus import GIB

_HEADER = ("run", "nodes x GPUs", "GiB/GPU", "s/update", "h/run", "seeds", "GPU h")


def overview_lines(sweep: str, footprints: Sequence[Footprint], seeds: int) -> list[str]:
    """An aligned table of the runs (each with so many seeds), their sum, and what the times assume.

    Times of CPU nodes are not estimated: their runs count nothing in the sum, which says how many they are.
    """
    rows = [_HEADER, *(_row(footprint, seeds) for footprint in footprints)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    table = [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    timed = [footprint for footprint in footprints if footprint.time is not None]
    total = (
        f"{sweep}: {len(footprints)} runs x {seeds} seeds, "
        f"{sum(_gpu_hours(footprint) for footprint in timed) * seeds:,.0f} GPU hours, estimated"
    )
    if len(timed) < len(footprints):
        total += f"; {len(footprints) - len(timed)} runs on CPU nodes are not estimated"
    assumed = footprints[0].assumptions.lines() if timed else []
    return [*table, total, *(f"  assumed: {line}" for line in assumed)]


def _row(footprint: Footprint, seeds: int) -> tuple[str, ...]:
    layout, cluster = footprint.layout, footprint.recipe.cluster
    where = (
        f"{layout.nodes} x {layout.gpus_per_node} {cluster.gpu}"
        if layout.gpus_per_node
        else f"{layout.nodes} x CPU"
    )
    memory = (
        f"{footprint.trainer.total / GIB:.1f}"
        if footprint.trainer is not None and layout.gpus_per_node
        else "-"
    )
    if footprint.time is None:
        return footprint.recipe.name, where, memory, "-", "-", str(seeds), "-"
    hours = footprint.time.update_s * footprint.recipe.updates / 3600
    return (
        footprint.recipe.name,
        where,
        memory,
        f"{footprint.time.update_s:.0f}",
        f"{hours:.1f}",
        str(seeds),
        f"{_gpu_hours(footprint) * seeds:.0f}",
    )


def _gpu_hours(footprint: Footprint) -> float:
    """Of one run: all GPUs of its allocation, from its first update to its last (not its evaluations, nor
    starting up)."""
    assert footprint.time is not None
    return footprint.layout.gpus * footprint.time.update_s * footprint.recipe.updates / 3600
