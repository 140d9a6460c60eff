"""What this machine is, and its two ceilings: products in bfloat16 and copies within the device's memory."""

from __future__ import annotations

import subprocess

import torch

from benchmarks.gpu.common import device, markdown, median_s, options, write


def main() -> None:
    chosen = options(__doc__)
    where, size = device(), 256 if chosen.toy else 8192
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    a, b = torch.randn(2, size, size, device=where).to(dtype)
    seconds = median_s(lambda: a @ b, 10)
    source = torch.randn(2**20 if chosen.toy else 2**30, device=where)
    target = torch.empty_like(source)
    copied = median_s(lambda: target.copy_(source), 10)
    rows = [
        [
            f"{size} x {size} x {size} product, {str(dtype).removeprefix('torch.')}, random numbers",
            f"{2e-12 * size**3 / seconds:.0f} TFLOP/s",
        ],
        [
            f"copy of {source.nbytes / 2**30:.3g} GiB, bytes read and written",
            f"{2e-9 * source.nbytes / copied:,.0f} GB/s",
        ],
    ]
    body = [markdown(["ceiling", "measured"], rows)]
    if where.type == "cuda":
        facts = torch.cuda.get_device_properties(0)
        body.append(
            f"{facts.total_memory / 2**30:.1f} GiB, {facts.multi_processor_count} multiprocessors, CUDA "
            f"{torch.version.cuda}"
        )
        asked = "name,driver_version,clocks.sm,clocks.mem,power.draw"
        body.append(
            subprocess.run(
                ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True
            ).stdout.strip()
        )
    write(chosen.out, "machine", "The machine", body)


if __name__ == "__main__":
    main()
