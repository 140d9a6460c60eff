"""compute-sanitizer (memory and races) on one small call of the head in each dtype: `--inside` is the program
that it watches."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import torch

from benchmarks.gpu.common import device, markdown, options, skip, write
from paw_hpc.kernels import linear_row_loss

TOOLS = ("memcheck", "racecheck")


def small_calls() -> None:
    """One chunk that is whole and one that is not, and a vocabulary that no block divides."""
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(5, 64, device=device()).to(dtype).requires_grad_()
        weight = torch.randn(9001, 64, device=device()).to(dtype).requires_grad_()
        target = torch.randint(9001, (5,), device=device())
        linear_row_loss(
            hidden, weight, target, lambda logp, entropy, rows: logp + entropy, chunk_rows=3
        ).loss.backward()
    print("finished")


def main() -> None:
    chosen = options(
        __doc__, lambda parser: parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    )
    if chosen.inside:
        small_calls()
        return
    if chosen.toy:
        small_calls()
    if not torch.cuda.is_available():
        skip("there is no GPU")
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        skip("compute-sanitizer is not installed")
    rows = []
    for check in TOOLS:
        command = [
            str(tool),
            "--tool",
            check,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "benchmarks.gpu.sanitize",
            "--inside",
        ]
        found = subprocess.run([*command, "--out", str(chosen.out)], capture_output=True, text=True)
        summary = [line for line in found.stdout.splitlines() if "SUMMARY" in line]
        rows.append(
            [
                check,
                found.returncode,
                "; ".join(summary) or found.stdout[-200:].replace("\n", " "),
                "finished" in found.stdout,
            ]
        )
    write(
        chosen.out,
        "sanitize",
        "compute-sanitizer on small calls of the head",
        [markdown(["tool", "status", "summary", "to the end"], rows)],
    )
    sys.exit(int(any(row[1] for row in rows)))


if __name__ == "__main__":
    main()
