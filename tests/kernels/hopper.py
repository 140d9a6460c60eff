"""Compiles the kernels for sm_90, which needs no GPU, and prints what came out as JSON. Triton interprets or
compiles, hence a program of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from paw_hpc.kernels import triton_rows

POINTERS = {"target_ptr": "*i64"}
SCALARS = {
    "rows": "i32",
    "columns": "i32",
    "readable": "i32",
    "z_stride": "i32",
    "out_stride": "i32",
    "inv_temperature": "fp32",
}
ALIGNED = {"z_ptr", "z_stride", "out_ptr", "out_stride", "readable"}
"""What is a multiple of 16 in `TritonHead`; `columns` (151643, say) is not."""


def compiled(kernel, constants: dict, **pointers: str) -> dict:
    """The global memory accesses and barriers in order, and the resources, of a kernel."""
    names = list(kernel.arg_names)
    types = SCALARS | POINTERS | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "*fp32") for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED & set(names)},
    )
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    lines = (re.sub(r"^@%p\d+ ", "", line.strip()) for line in result.asm["ptx"].splitlines())
    accesses = [line.split()[0] for line in lines if re.match(r"(ld|st)\.global|bar\.sync", line)]
    return {"accesses": accesses, "resources": resources(result.asm["cubin"])}


def resources(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        return subprocess.run(
            [tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout


if __name__ == "__main__":
    block = {"BLOCK": triton_rows.BLOCK}
    found = {"statistics": compiled(triton_rows._statistics_kernel, block)}
    for name, out in {"float32": "*fp32", "bfloat16": "*bf16"}.items():
        found[f"dlogits {name}"] = compiled(
            triton_rows._dlogits_kernel, block | {"HAS_ENTROPY": True}, out_ptr=out
        )
    json.dump(found, sys.stdout)
