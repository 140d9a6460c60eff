"""What the head refuses, before anything is computed. Tensor-parallel ranks agree first, so that none is left waiting in a collective."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from paw_hpc.kernels.parallel import Shard

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    grad_scale: float,
    chunk_rows: int | None,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
) -> Shard:
    """The shard of this rank, after all checks. One host synchronisation; under tensor parallelism also one all-gather of eight integers.

    Raises:
        ValueError: on every rank of the group, also on those whose own input is right.
    """
    problem = _local_problem(hidden, weight, target, temperature, grad_scale, chunk_rows, vocab_size)
    if group is None or dist.get_world_size(group) == 1:
        if problem:
            raise ValueError(problem)
        columns = _real_columns(weight, 0, vocab_size)
        _check_target_range(*_target_range(target), columns)
        return Shard(None, 0, columns)
    facts = _gather_facts(hidden, weight, target, group, failed=problem is not None)
    if problem:
        raise ValueError(problem)
    return _agree(facts, dist.get_rank(group), group, weight, vocab_size)


def _local_problem(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    grad_scale: float,
    chunk_rows: int | None,
    vocab_size: int | None,
) -> str | None:
    if hidden.dim() != 2 or weight.dim() != 2 or target.dim() != 1:
        return f"hidden[R, H], weight[V, H] and target[R] are needed, got {list(hidden.shape)}, {list(weight.shape)} and {list(target.shape)}"
    if hidden.shape[1] != weight.shape[1]:
        return f"hidden has {hidden.shape[1]} features and weight {weight.shape[1]}: they must be equal"
    if hidden.shape[0] != target.shape[0]:
        return f"hidden has {hidden.shape[0]} rows and target {target.shape[0]}: they must be equal"
    if hidden.dtype != weight.dtype or hidden.dtype not in FLOATING:
        return f"hidden is {hidden.dtype} and weight {weight.dtype}: one floating dtype for both is needed"
    if target.dtype != torch.int64:
        return f"target is {target.dtype}: int64 is needed"
    if not hidden.device == weight.device == target.device:
        return f"hidden is on {hidden.device}, weight on {weight.device}, target on {target.device}: one device is needed"
    if not (math.isfinite(temperature) and temperature > 0):
        return f"temperature is {temperature}: a positive finite number is needed"
    if not math.isfinite(grad_scale):
        return f"grad_scale is {grad_scale}: a finite number is needed"
    if chunk_rows is not None and chunk_rows < 1:
        return f"chunk_rows is {chunk_rows}: at least 1 is needed"
    if vocab_size is not None and vocab_size < 1:
        return f"vocab_size is {vocab_size}: at least 1 is needed"
    return None


def _real_columns(weight: torch.Tensor, offset: int, vocab_size: int | None) -> int:
    """Columns of this shard that are real: padding behind `vocab_size` is never computed."""
    rows = weight.shape[0]
    return rows if vocab_size is None else max(0, min(rows, vocab_size - offset))


def _target_range(target: torch.Tensor) -> tuple[int, int]:
    """(min, max); (0, -1) without rows."""
    if len(target) == 0:
        return 0, -1
    low, high = torch.stack(torch.aminmax(target)).tolist()
    return low, high


def _check_target_range(low: int, high: int, vocabulary: int) -> None:
    if low < 0 or high >= vocabulary:
        raise ValueError(f"target holds {low if low < 0 else high}, outside the vocabulary [0, {vocabulary})")


def _gather_facts(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, group: dist.ProcessGroup, failed: bool) -> list[list[int]]:
    """Of every rank: failed, rows, features, dtype, columns, and minimum, maximum and sum of the targets."""
    world = dist.get_world_size(group)
    fixed = [1, 0, 0, 0, 0] if failed else [0, *hidden.shape, FLOATING.index(hidden.dtype), weight.shape[0]]
    facts = torch.tensor([*fixed, 0, -1, 0], dtype=torch.int64, device=hidden.device)
    if not failed and len(target):
        facts[5:7] = torch.stack(torch.aminmax(target))
        facts[7] = target.sum()
    everyone = [torch.empty_like(facts) for _ in range(world)]
    dist.all_gather(everyone, facts, group=group)
    return torch.stack(everyone).tolist()


def _agree(facts: list[list[int]], rank: int, group: dist.ProcessGroup, weight: torch.Tensor, vocab_size: int | None) -> Shard:
    failed = [r for r, fact in enumerate(facts) if fact[0]]
    if failed:
        raise ValueError(f"rank {failed[0]} of the tensor-parallel group was given bad input: its own error says what")
    names = {1: "rows", 2: "features", 3: "the dtype", 5: "the smallest target", 6: "the largest target", 7: "the sum of the targets"}
    for index, name in names.items():
        if len({fact[index] for fact in facts}) > 1:
            raise ValueError(f"{name} differ among the ranks of the tensor-parallel group ({[fact[index] for fact in facts]}): replicate the rows")
    widths = [fact[4] for fact in facts]
    vocabulary = sum(widths) if vocab_size is None else min(sum(widths), vocab_size)
    _check_target_range(facts[0][5], facts[0][6], vocabulary)
    offset = sum(widths[:rank])
    return Shard(group, offset, _real_columns(weight, offset, vocab_size))
