"""What the steps share: their options, what they say of the machine, tables."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.__main__ import SKIPPED

PACKAGES = ("torch", "triton", "transformers", "megatron-core", "liger-kernel", "cut-cross-entropy", "verl", "quack-kernels", "flash-attn")


def options(description: str | None, add: Callable[[argparse.ArgumentParser], object] = lambda parser: None) -> argparse.Namespace:
    """--toy and --out, which every step has, and what `add` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()}, threads: {torch.get_num_threads()})"
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
