"""A quarter of an hour on a GPU: what works on this machine, and what it costs. Steps that can be chosen,
each with its own table.

    python -m benchmarks.gpu --out results                     every step, in order
    python -m benchmarks.gpu head update --out results         these steps
    python -m benchmarks.gpu --toy --out results               every step at toy size; runs on a CPU in minutes, so that nothing is tried for the
                                                               first time while a GPU waits

Each step is a process of its own: one that fails, or runs out of time or memory, takes no other with it. It
writes DIR/STEP.md (its table, or why there is none) before the next one begins, and everything that it
printed to DIR/STEP.log. What a step needs and does not find is said in one line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
"""Exit status of a step that cannot run here; its last line says why."""


@dataclass(frozen=True)
class Step:
    name: str
    what: str
    command: Callable[[bool, Path], list[str]]
    """From (toy, folder of the results): what is run, in the root of the checkout."""
    limit_s: int


def _python(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


def _kernels(toy: bool, out: Path) -> list[str]:
    tests = ["tests/kernels/test_reference.py"] if toy else ["tests/kernels", "tests/policy/test_packed.py"]
    return _python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def _head(toy: bool, out: Path) -> list[str]:
    toys = ["--rows", "64", "--features", "16", "--vocabulary", "300", "--repeats", "1", "--only", "ours"]
    sizes = ["--rows", "8192", "32768", "--features", "1536", "4096", "--repeats", "5"]
    return _python("benchmarks/head.py", *(toys if toy else sizes), "--out", out)


def _module(name: str, *words: str) -> Callable[[bool, Path], list[str]]:
    return lambda toy, out: _python(
        "-m", f"benchmarks.gpu.{name}", *words, "--out", out, *(["--toy"] if toy else [])
    )


STEPS = [
    Step(
        "machine",
        "versions, clocks, and the two ceilings: bfloat16 products and copies",
        _module("machine"),
        60,
    ),
    Step("kernels", "the tests of the head, on this device", _kernels, 240),
    Step("head", "the head beside its floor and its peers", _head, 240),
    Step("inside", "where the head's time goes, kernel by kernel, and by chunk size", _module("inside"), 90),
    Step(
        "attention",
        "packed attention on the variable-length kernel beside padded attention",
        _module("attention"),
        60,
    ),
    Step("update", "one update at the paper's shapes, vanilla and PaW, one process", _module("update"), 180),
    Step(
        "megatron", "the same with Megatron-core on one GPU", _module("update", "--backend", "megatron"), 180
    ),
    Step(
        "trajectories",
        "separate samples with full history beside chains, and PaW beside vanilla on chains",
        _module("trajectories"),
        240,
    ),
    Step("generate", "generation in process: prompts and new tokens per second", _module("generate"), 90),
    Step("learn", "real runs, vanilla and PaW, from a policy that was given", _module("learn"), 420),
    Step("sanitize", "compute-sanitizer on small calls of the head", _module("sanitize"), 90),
]


def run(step: Step, toy: bool, out: Path) -> tuple[str, float]:
    """(what became of it, seconds). Its output goes to a file as it comes, so that nothing is lost when this
    process is ended."""
    log = out / f"{step.name}.log"
    started = time.monotonic()
    # a checkout that nobody installed works, too
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": found, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        try:
            words = step.command(toy, out)
            status = subprocess.run(
                words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=step.limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    seconds = time.monotonic() - started
    last = next(
        (line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), ""
    )[:200]
    if status == SKIPPED:
        return f"skipped: {last}", seconds
    if status is None:
        return f"stopped after {step.limit_s} s: {last}", seconds
    return ("done" if status == 0 else f"failed with status {status}: {last}"), seconds


def main() -> None:
    """The chosen steps, in their order; ends with 1 where one failed."""
    names = [step.name for step in STEPS]
    listed = "\n".join(f"  {step.name:<13}{step.what}" for step in STEPS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=f"{__doc__}\nSteps:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument("--toy", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for tables and logs")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.steps) - set(names)):
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(names)}")
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for step in STEPS:
        if chosen.steps and step.name not in chosen.steps:
            continue
        print(f"{step.name}: {step.what}", flush=True)
        became, seconds = run(step, chosen.toy, out)
        failed |= became != "done" and not became.startswith("skipped")
        with (out / "steps.md").open("a") as file:
            file.write(f"- {step.name}, {seconds:.0f} s: {became}\n")
        print(f"  {seconds:.0f} s: {became}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
