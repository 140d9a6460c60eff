"""What the steps share: their options, what they say of the machine, tables."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.__main__ import SKIPPED

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "megatron-core",
    "liger-kernel",
    "cut-cross-entropy",
    "verl",
    "quack-kernels",
    "flash-attn",
)


def options(
    description: str | None, add: Callable[[argparse.ArgumentParser], object] = lambda parser: None
) -> argparse.Namespace:
    """--toy and --out, which every step has, and what `add` adds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    add(parser)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    return chosen


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def skip(reason: str) -> None:
    """Ends this step: it cannot run here."""
    print(reason)
    sys.exit(SKIPPED)


def environment() -> str:
    """Date, chip and versions in one line."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    chip = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU ({platform.machine()}, threads: {torch.get_num_threads()})"
    )
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {chip}, {', '.join(versions)}"


def write(out: Path, name: str, title: str, body: Sequence[str]) -> None:
    """`name`.md in `out`: title, what ran where, and the body. Also printed."""
    text = "\n\n".join([f"# {title}", environment(), f"`{' '.join(sys.argv[1:]) or 'no options'}`", *body])
    (out / f"{name}.md").write_text(text + "\n")
    print(text, flush=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def by_kernel(run: Callable[[], object], most: int = 12, calls: int = 1) -> str:
    """Where `run` spends the device's time (on a CPU: this process's), per one of the `calls` that it
    makes."""
    on_gpu = torch.cuda.is_available()
    synchronize()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as record:
        run()
        synchronize()
    wall = time.perf_counter() - started
    seconds: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in record.events():
        if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu:
            seconds[event.name] += (event.device_time_total if on_gpu else event.self_cpu_time_total) * 1e-6
            times[event.name] += 1
    rows = [
        [name.replace("|", " ")[:90], f"{1e3 * s / calls:.3f}", f"{times[name] / calls:g}"]
        for name, s in seconds.most_common(most)
    ]
    said = (
        f"Under the profiler {1e3 * wall / calls:.1f} ms of wall clock, "
        f"{1e3 * sum(seconds.values()) / calls:.1f} ms in kernels."
    )
    return f"{said}\n\n{markdown(['kernel', 'ms', 'calls'], rows)}"


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call after one that is not counted; on a GPU to the end of its work."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
