"""The LM head against PyTorch and peers: time, peak extra memory, error against float64, FLOP/s, and the
ratio to the measured floor.

    python benchmarks/head.py                                    the sizes for this device (`SIZES`)
    python benchmarks/head.py --rows 8192 --features 4096        one size
    python benchmarks/head.py --out benchmarks/results           also keep the table, with versions and date

Time: contenders and floor take turns, so that a disturbance hits all, and the best of their turns counts.
Floor: the bare products on the same machine in the same dtype (logits; with gradients also both gradients).
Extra memory: the peak of a call above what was there before and above the gradients that it returns. Errors:
the largest of log-prob and entropy (nats) and of the gradient of hidden (relative to its largest element), on
a sample of rows, against float64 on the same (rounded) inputs. Peers are used where they are installed
(`head_peers`).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from head_peers import CONTENDERS, Case, Contender, Outcome
from torch.profiler import ProfilerActivity, profile

SIZES = {
    "cuda": {
        "rows": [2048, 8192, 32768],
        "features": [1536, 2048, 3584, 4096],
        "vocabulary": 151936,
        "dtype": "bfloat16",
    },
    "cpu": {"rows": [1024, 4096], "features": [160], "vocabulary": 2000, "dtype": "float32"},
}
SAMPLE = 64
"""Rows that are compared with float64."""
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "verl", "quack-kernels")


FLOOR = {3: "floor: the three bare products", 1: "floor: the logits alone"}
"""By the number of products that a contender's result needs."""


@dataclass(frozen=True)
class Probe:
    extra_bytes: int
    errors: dict[str, float]


def make_case(rows: int, features: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Logits of standard deviation about 2."""
    rng = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": rng, "device": device}
    hidden = torch.randn(rows, features, **options).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, features, **options) * 2 / features**0.5).to(dtype).requires_grad_()
    target = torch.randint(vocabulary, (rows,), **options)
    a, b = torch.randn(2, rows, **options)
    selected = torch.randperm(rows, **options)[: rows // 4].sort().values
    return Case(hidden, weight, target, a, b, selected, torch.zeros(vocabulary, features, device=device))


# -------------------------------------------------------------------------------------------------- measuring


def turns(runs: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Best seconds of each after one turn that is not counted. On a GPU a turn is three calls back to back,
    as micro-batches come in training."""
    best = dict.fromkeys(runs, float("inf"))
    calls = 3 if device.type == "cuda" else 1
    for i in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            started = time.perf_counter()
            for _ in range(calls):
                run()
            _wait(device)
            if i:
                best[name] = min(best[name], (time.perf_counter() - started) / calls)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Of tensors, above what is allocated now."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def errors(case: Case, found: Outcome, computes: str) -> dict[str, float]:
    """Of what a contender gave, on a sample of rows."""
    rows = (
        torch.linspace(0, len(case.target) - 1, min(SAMPLE, len(case.target)), device=case.target.device)
        .long()
        .unique()
    )
    weight = case.weight.detach().double()
    logits = case.hidden.detach()[rows].double() @ weight.T
    logits.requires_grad_()
    all_logp = logits.log_softmax(1)
    logp, entropy = all_logp.gather(1, case.target[rows][:, None])[:, 0], -(all_logp.exp() * all_logp).sum(1)
    loss = case.a[rows] * logp + (case.b[rows] * entropy if "entropy" in computes else 0.0)
    (dlogits,) = torch.autograd.grad(loss.sum(), logits)
    exact = {"logp": logp.detach(), "entropy": entropy.detach(), "hidden": dlogits @ weight}
    scale = {"logp": 1.0, "entropy": 1.0, "hidden": float(exact["hidden"].abs().max())}
    return {
        name: float((value[rows].double() - exact[name]).abs().max()) / scale[name]
        for name, value in found.items()
    }


def floors(case: Case) -> dict[str, Callable[[], object]]:
    """The bare products, by the name of the floor."""
    hidden, weight = (leaf.detach() for leaf in case.leaves)

    def three() -> None:
        z = hidden @ weight.T
        _ = z @ weight
        _ = z.T @ hidden

    return {FLOOR[3]: three, FLOOR[1]: lambda: hidden @ weight.T}


def probe(contender: Contender, case: Case, device: torch.device) -> Probe | str:
    """Errors and memory of one call, or why it cannot run."""
    obstacle = contender.obstacle(device)
    if obstacle:
        return obstacle
    try:
        found = contender.run(case)
        wrong = errors(case, found, contender.computes)
        del found
        returned = (
            sum(leaf.numel() * leaf.element_size() for leaf in case.leaves[: contender.returns])
            if contender.products == 3
            else 0
        )
        return Probe(max(0, peak_bytes(lambda: contender.run(case), device) - returned), wrong)
    except (
        Exception
    ) as error:  # a peer may fail in any way, out of memory included: it is reported, not hidden
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def measure(contenders: list[Contender], case: Case, device: torch.device, repeats: int) -> str:
    """The table of one size."""
    probes = {c.name: probe(c, case, device) for c in contenders}
    able = {c.name: c for c in contenders if isinstance(probes[c.name], Probe)}
    seconds = turns(
        floors(case) | {name: functools.partial(c.run, case) for name, c in able.items()}, device, repeats
    )
    return table(case, able, probes, seconds)


# ----------------------------------------------------------------------------------------------------- report

HEADER = (
    "| | computes | ms | extra MiB | TFLOP/s | x floor | error logp | entropy | d hidden "
    "|\n|---|---|---|---|---|---|---|---|---|"
)


def table(
    case: Case, able: dict[str, Contender], probes: dict[str, Probe | str], seconds: dict[str, float]
) -> str:
    """Markdown for one size."""
    (rows, features), vocabulary = case.hidden.shape, len(case.weight)
    flop = 2.0 * rows * features * vocabulary
    title = f"### {rows} rows x {features}, V = {vocabulary}, {str(case.hidden.dtype).removeprefix('torch.')}"
    lines = [title, "", HEADER]
    lines += [
        f"| {name} | | {_ms(seconds[name])} | | {n * flop / seconds[name] / 1e12:.3g} | 1.00 | | | |"
        for n, name in FLOOR.items()
    ]
    for name, c in able.items():
        found = probes[name]
        assert isinstance(found, Probe)
        speed, ratio = (
            c.share * c.products * flop / seconds[name] / 1e12,
            seconds[name] / seconds[FLOOR[c.products]],
        )
        wrong = " | ".join(
            f"{found.errors[key]:.0e}" if key in found.errors else "" for key in ("logp", "entropy", "hidden")
        )
        lines.append(
            f"| {name} | {c.computes} | {_ms(seconds[name])} | {found.extra_bytes / 2**20:.1f} | "
            f"{speed:.3g} | {ratio:.2f} | {wrong} |"
        )
    missing = [f"- {name}: {reason}" for name, reason in probes.items() if isinstance(reason, str)]
    return "\n".join(lines + (["", "Not run:", *missing] if missing else []))


def _ms(duration_s: float) -> str:
    return f"{1e3 * duration_s:.2f}"


def environment(device: torch.device) -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({platform.machine()}, threads: {torch.get_num_threads()})"
    )
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {where}, Python {platform.python_version()}, "
        f"{', '.join(versions)}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--features", type=int, nargs="+")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--only", nargs="+", help="contenders whose name holds one of these")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for head-<device>.md")
    chosen = parser.parse_args()
    for key, value in SIZES[torch.device(chosen.device).type].items():
        if getattr(chosen, key) is None:
            setattr(chosen, key, value)
    return chosen


def main() -> None:
    chosen = arguments()
    device = torch.device(chosen.device)
    torch.set_num_threads(chosen.threads)
    contenders = [c for c in CONTENDERS if chosen.only is None or any(part in c.name for part in chosen.only)]
    text = [f"# The head, {environment(device)}"]
    print(text[0], flush=True)
    for features in chosen.features:
        for rows in chosen.rows:
            case = make_case(rows, features, chosen.vocabulary, getattr(torch, chosen.dtype), device)
            text.append(measure(contenders, case, device, chosen.repeats))
            print(f"\n{text[-1]}", flush=True)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / f"head-{device.type}.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
