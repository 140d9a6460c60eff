"""`paw plan SWEEP`: one line per run of a sweep, and what all of it may cost."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.cluster.plan import Plan
from paw_hpc.system.gpus import GIB

_HEADER = ("run", "nodes x GPUs", "GiB/GPU", "s/update", "h/run", "seeds", "GPU h")


def overview_lines(sweep: str, plans: Sequence[Plan], seeds: int) -> list[str]:
    """An aligned table of the runs (each with so many seeds), their sum, and what the times assume.

    Times of CPU nodes are not estimated: their runs count nothing in the sum, which says how many they are.
    """
    rows = [_HEADER, *(_row(plan, seeds) for plan in plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    table = [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    timed = [plan for plan in plans if plan.time is not None]
    total = (
        f"{sweep}: {len(plans)} runs x {seeds} seeds, "
        f"{sum(_gpu_hours(plan) for plan in timed) * seeds:,.0f} GPU hours, estimated"
    )
    if len(timed) < len(plans):
        total += f"; {len(plans) - len(timed)} runs on CPU nodes are not estimated"
    assumed = plans[0].assumptions.lines() if timed else []
    return [*table, total, *(f"  assumed: {line}" for line in assumed)]


def _row(plan: Plan, seeds: int) -> tuple[str, ...]:
    layout, cluster = plan.layout, plan.recipe.cluster
    where = (
        f"{layout.nodes} x {layout.gpus_per_node} {cluster.gpu}"
        if layout.gpus_per_node
        else f"{layout.nodes} x CPU"
    )
    memory = f"{plan.trainer.total / GIB:.1f}" if plan.trainer is not None and layout.gpus_per_node else "-"
    if plan.time is None:
        return plan.recipe.name, where, memory, "-", "-", str(seeds), "-"
    hours = plan.time.update_s * plan.recipe.updates / 3600
    return (
        plan.recipe.name,
        where,
        memory,
        f"{plan.time.update_s:.0f}",
        f"{hours:.1f}",
        str(seeds),
        f"{_gpu_hours(plan) * seeds:.0f}",
    )


def _gpu_hours(plan: Plan) -> float:
    """Of one run: all GPUs of its allocation, from its first update to its last (not its evaluations, nor
    starting up)."""
    assert plan.time is not None
    return plan.layout.gpus * plan.time.update_s * plan.recipe.updates / 3600
