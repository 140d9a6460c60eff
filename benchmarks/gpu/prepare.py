"""What a GPU machine without a package index needs, as a folder to carry there: wheels for its Python, and a
model in parts.

    python -m benchmarks.gpu.prepare carried --python 3.12                       what `benchmarks.gpu` needs beside torch, Triton and transformers
    python -m benchmarks.gpu.prepare carried --python 3.12 liger-kernel verl     also these peers
    python -m benchmarks.gpu.prepare carried --model MODEL.gguf --part-mib 48    also a file, cut into parts; a folder becomes one file first

There: `pip install --no-index --no-deps --target SITE carried/*.whl`, `cat carried/MODEL.gguf.part* >
MODEL.gguf`, and SITE on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NEEDED = [
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "omegaconf",
    "submitit>=1.5.4,<2",
    "bm25s",
    "PyStemmer",
    "tenacity",
]
NEEDED += ["gguf", "megatron-core>=0.16.1,<0.17", "pytest-timeout"]
SOURCES = ["antlr4-python3-runtime==4.9.3"]
"""What the index has as source only: pure Python, built here."""
GLIBC = (17, 24, 27, 28, 31, 34)


def wheels(folder: Path, python: str, packages: list[str]) -> None:
    """One wheel of each package, for CPython `python` on 64-bit Linux."""
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC] + [
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux1_x86_64",
    ]
    chosen = [
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *platforms,
    ]
    pip = [sys.executable, "-m", "pip", "--quiet"]
    for package in packages:
        subprocess.run([*pip, "download", *chosen, "--dest", str(folder), package], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *SOURCES], check=True)


def parts(source: Path, folder: Path, part_bytes: int) -> list[Path]:
    """A file in parts of at most `part_bytes`, with the checksum of the whole beside them (`sha256sum
    --check`)."""
    digest, made = hashlib.sha256(), []
    with source.open("rb") as file:
        while piece := file.read(part_bytes):
            digest.update(piece)
            made.append(folder / f"{source.name}.part{len(made):02d}")
            made[-1].write_bytes(piece)
    (folder / f"{source.name}.sha256").write_text(f"{digest.hexdigest()}  {source.name}\n")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="*", help="further packages")
    parser.add_argument("--python", help="version there, for example 3.12; none: no wheels")
    parser.add_argument("--model", type=Path, help="a file or a folder")
    parser.add_argument("--part-mib", type=int, default=48)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.python:
        wheels(chosen.folder, chosen.python, [*NEEDED, *chosen.packages])
    if chosen.model:
        with tempfile.TemporaryDirectory() as scratch:
            source = chosen.model
            if source.is_dir():
                source = Path(scratch) / f"{chosen.model.name}.tar"
                with tarfile.open(source, "w") as archive:
                    archive.add(chosen.model, arcname=chosen.model.name)
            parts(source, chosen.folder, chosen.part_mib << 20)
    for path in sorted(chosen.folder.iterdir()):
        print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path.name}")


if __name__ == "__main__":
    main()
