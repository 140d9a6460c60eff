"""What the head refuses, before anything is computed. Tensor-parallel ranks agree first, so that none is left
waiting in a collective."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from paw_hpc.kernels.parallel import Shard

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    grad_scale: float,
    chunk_rows: int | None,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
) -> Shard:
    """The shard of this rank, after all checks. Tensor-parallel ranks gather nine integers; on a GPU the host
    waits for those of the first call.

    Raises:
        ValueError: on every rank of the group, also on those whose own input is right.
    """
    problem = _head_problem(hidden, weight, target) or _option_problem(
        temperature, grad_scale, chunk_rows, vocab_size
    )
    return _settle(problem, hidden, hidden.shape[-1], len(weight), target, group, vocab_size, chunk_rows)


def check_logits(
    logits: torch.Tensor, target: torch.Tensor, temperature: float, group: dist.ProcessGroup | None
) -> Shard:
    """As `check_head`, for logits[R, V] that exist already."""
    problem = _logits_problem(logits, target) or _option_problem(temperature, 1.0, None, None)
    return _settle(problem, logits, 0, logits.shape[-1], target, group)


def _head_problem(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> str | None:
    if hidden.dim() != 2 or weight.dim() != 2 or target.dim() != 1:
        return (
            f"hidden[R, H], weight[V, H] and target[R] are needed, got {list(hidden.shape)}, "
            f"{list(weight.shape)} and {list(target.shape)}"
        )
    if hidden.shape[1] != weight.shape[1]:
        return f"hidden has {hidden.shape[1]} features and weight {weight.shape[1]}: they must be equal"
    if hidden.dtype != weight.dtype:
        return f"hidden is {hidden.dtype} and weight {weight.dtype}: one dtype for both is needed"
    if hidden.device != weight.device:
        return f"hidden is on {hidden.device} and weight on {weight.device}: one device is needed"
    return _rows_problem("hidden", hidden, target)


def _logits_problem(logits: torch.Tensor, target: torch.Tensor) -> str | None:
    if logits.dim() != 2 or target.dim() != 1:
        return f"logits[R, V] and target[R] are needed, got {list(logits.shape)} and {list(target.shape)}"
    return _rows_problem("logits", logits, target)


def _rows_problem(name: str, rows: torch.Tensor, target: torch.Tensor) -> str | None:
    if len(rows) != len(target):
        return f"{name} has {len(rows)} rows and target {len(target)}: they must be equal"
    if rows.dtype not in FLOATING:
        return f"{name} is {rows.dtype}: float64, float32, bfloat16 or float16 is needed"
    if target.dtype != torch.int64:
        return f"target is {target.dtype}: int64 is needed"
    if rows.device != target.device:
        return f"{name} is on {rows.device} and target on {target.device}: one device is needed"
    return None


def _option_problem(
    temperature: float, grad_scale: float, chunk_rows: int | None, vocab_size: int | None
) -> str | None:
    if not (math.isfinite(temperature) and temperature > 0):
        return f"temperature is {temperature}: a positive finite number is needed"
    if not math.isfinite(grad_scale):
        return f"grad_scale is {grad_scale}: a finite number is needed"
    if chunk_rows is not None and chunk_rows < 1:
        return f"chunk_rows is {chunk_rows}: at least 1 is needed"
    if vocab_size is not None and vocab_size < 1:
        return f"vocab_size is {vocab_size}: at least 1 is needed"
    return None


# -------------------------------------------------------------------------------------------------- agreement


def _settle(
    problem: str | None,
    rows: torch.Tensor,
    features: int,
    width: int,
    target: torch.Tensor,
    group: dist.ProcessGroup | None,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
) -> Shard:
    """Raise what is wrong here or on another rank; else this rank's shard of `width` columns."""
    if group is None or dist.get_world_size(group) == 1:
        if problem:
            raise ValueError(problem)
        columns = _real_columns(width, 0, vocab_size)
        _check_targets(target, columns)
        return Shard(None, 0, columns, columns)
    fixed = (
        [1, 0, 0, 0, 0, 0]
        if problem
        else [0, len(rows), features, FLOATING.index(rows.dtype), chunk_rows or 0, width]
    )
    facts = _gather_facts(fixed, target, rows.device, group)
    if problem:
        raise ValueError(problem)
    if not rows.is_cuda:
        return _agree(facts.tolist(), group, vocab_size)
    key = (group, width, vocab_size)
    if key not in _KNOWN:
        _KNOWN[key] = _agree(facts.tolist(), group, vocab_size)
        return _KNOWN[key]
    # Who has which columns is known from the first call; that all is well is left to the device, for which
    # the host does not wait.
    torch._assert_async(well(facts, vocab_size), "tensor-parallel ranks disagree: replicate the rows")
    return _KNOWN[key]


_KNOWN: dict[tuple[dist.ProcessGroup, int, int | None], Shard] = {}
"""By group, columns of this rank, and true vocabulary size."""
FAILED, ROWS, WIDTH, LOW, HIGH = 0, 1, 5, 6, 7
"""Places among a rank's facts."""


def well(facts: torch.Tensor, vocab_size: int | None) -> torch.Tensor:
    """bool scalar on the device: what `_agree` asks, of the facts int64[ranks, 9], but for the widths, which
    may differ."""
    width = facts[:, WIDTH].sum()
    vocabulary = width if vocab_size is None else width.clamp(max=vocab_size)
    same = facts == facts[0]
    same[:, WIDTH] = True
    inside = (facts[0, ROWS] == 0) | ((facts[0, LOW] >= 0) & (facts[0, HIGH] < vocabulary))
    return same.all() & inside & (facts[:, FAILED] == 0).all()


def _gather_facts(
    fixed: list[int], target: torch.Tensor, device: torch.device, group: dist.ProcessGroup
) -> torch.Tensor:
    """int64[ranks, 9]: failed, rows, features, dtype, chunk size, columns (`fixed`), and minimum, maximum and
    sum of the targets."""
    facts = torch.tensor([*fixed, 0, -1, 0], dtype=torch.int64).to(device, non_blocking=True)
    if not fixed[0] and len(target):
        facts[6:8] = torch.stack(torch.aminmax(target))
        facts[8] = target.sum()
    everyone = [torch.empty_like(facts) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, facts, group=group)
    return torch.stack(everyone)


def _agree(facts: list[list[int]], group: dist.ProcessGroup, vocab_size: int | None) -> Shard:
    failed = [r for r, fact in enumerate(facts) if fact[0]]
    if failed:
        raise ValueError(
            f"rank {failed[0]} of the tensor-parallel group was given bad input: its own error says what"
        )
    names = {
        1: "rows",
        2: "features",
        3: "the dtype",
        4: "chunk_rows",
        6: "the smallest target",
        7: "the largest target",
        8: "the sum of the targets",
    }
    for index, name in names.items():
        if len({fact[index] for fact in facts}) > 1:
            raise ValueError(
                f"{name} differ among the ranks of the tensor-parallel group "
                f"({[fact[index] for fact in facts]}): replicate the rows"
            )
    widths = [fact[5] for fact in facts]
    rows, low, high = facts[0][1], *facts[0][6:8]
    if rows:
        _check_target_range(low, high, sum(widths) if vocab_size is None else min(sum(widths), vocab_size))
    rank = dist.get_rank(group)
    offset = sum(widths[:rank])
    return Shard(group, offset, _real_columns(widths[rank], offset, vocab_size), max(widths))


def _real_columns(width: int, offset: int, vocab_size: int | None) -> int:
    """Columns of a shard that are real: padding behind `vocab_size` is never computed."""
    return width if vocab_size is None else max(0, min(width, vocab_size - offset))


def _check_targets(target: torch.Tensor, vocabulary: int) -> None:
    """On the CPU a ValueError. On a GPU the device stops before a row pass reads beyond its row, and the host
    does not wait to be told."""
    if not len(target):
        return
    low, high = torch.aminmax(target)
    if target.is_cuda:
        torch._assert_async(
            (low >= 0) & (high < vocabulary), f"a target lies outside the vocabulary [0, {vocabulary})"
        )
    else:
        _check_target_range(int(low), int(high), vocabulary)


def _check_target_range(low: int, high: int, vocabulary: int) -> None:
    if low < 0 or high >= vocabulary:
        raise ValueError(f"target holds {low if low < 0 else high}, outside the vocabulary [0, {vocabulary})")
