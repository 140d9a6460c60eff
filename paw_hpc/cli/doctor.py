"""`paw doctor`: what this machine has, what is missing, what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paw_hpc.system.errors import UserError
from paw_hpc.system.extras import EXTRAS

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the examination. `ok` None: optional and absent."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""
    """What to do; empty where nothing needs doing."""


def examine() -> list[Check]:
    """Every check, in the order shown. Reads only; takes a few seconds (importing torch)."""
    parts: tuple[Callable[[], list[Check]], ...] = (
        _python,
        _torch,
        _hardware,
        _environments,
        _data,
        _optional,
        _cluster,
    )
    return [check for part in parts for check in part()]


def main(console: Console | None = None) -> int:
    """Print the table. Returns 1 where something required is missing, else 0."""
    console = console or Console()
    checks = examine()
    table = Table(title="paw doctor", title_justify="left", box=None, pad_edge=False)
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = {True: "[green]ok[/green]", False: "[red]missing[/red]", None: "[dim]optional[/dim]"}[check.ok]
        table.add_row(mark, *map(escape, (check.name, check.found, check.advice)))
    console.print(table)
    missing = [check.name for check in checks if check.ok is False]
    console.print(f"missing: {', '.join(missing)}" if missing else "everything that is required is here")
    return 1 if missing else 0


def _python() -> list[Check]:
    fine = sys.version_info >= (3, 11)
    return [
        Check(
            "Python",
            fine,
            f"{platform.python_version()} ({sys.executable})",
            "" if fine else "use Python 3.11 or newer",
        )
    ]


def _torch() -> list[Check]:
    try:
        import torch
    except ImportError as error:
        return [
            Check(
                "torch",
                False,
                str(error),
                "run `make setup`, or pip install 'paw-hpc[train]' (environments and reports work without)",
            )
        ]
    checks = [
        Check("torch", True, torch.__version__),
        _package("transformers", required=True, advice="run `make setup`"),
    ]
    if not torch.cuda.is_available():
        why = (
            "torch is built without CUDA"
            if torch.version.cuda is None
            else f"torch for CUDA {torch.version.cuda} sees no device"
        )
        return [
            *checks,
            Check(
                "GPU",
                None,
                why,
                "tiny models train on the CPU; for larger ones install torch for CUDA on a machine with a "
                "GPU",
            ),
        ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        checks.append(
            Check(
                f"GPU {index}",
                True,
                f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}",
            )
        )
    return checks


def _hardware() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    memory, free = _memory_bytes() / GIB, shutil.disk_usage(Path.cwd()).free / GIB
    return [
        Check("CPU cores", True, str(cores)),
        Check(
            "memory", memory >= 4, f"{memory:.1f} GiB", "" if memory >= 4 else "the quickstart needs 4 GiB"
        ),
        Check(
            "disk here",
            free >= 1,
            f"{free:.1f} GiB free",
            "" if free >= 1 else "runs and checkpoints need room: free at least 1 GiB",
        ),
    ]


def _memory_bytes() -> int:
    """What this process may use: the machine's memory, or the limit of its control group (container, Slurm
    job)."""
    total = psutil.virtual_memory().total
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _environments() -> list[Check]:
    advice = "pip install 'paw-hpc[alfworld]' (builds with a C++ compiler)"
    return [_package(name, required=True, advice=advice) for name in ("alfworld", "textworld")]


def _data() -> list[Check]:
    if util.find_spec("textworld") is None or util.find_spec("alfworld") is None:
        return []
    from paw_hpc.envs.alfworld import official

    try:
        origin = official.find()
        verb = official.installed_verb()
    except UserError as error:
        return [
            Check("ALFWorld games", False, str(error), "put that right, or set PAW_DATA to another folder")
        ]
    release = Check("ALFWorld release", True, f"its games say '{verb} ...'")
    if origin is None:
        looked = ", ".join(str(folder) for folder in official.search_folders())
        return [
            release,
            Check(
                "ALFWorld games",
                None,
                f"no official games in {looked}",
                "`paw data alfworld fetch`; without them games are generated",
            ),
        ]
    return [release, Check("ALFWorld games", True, f"{origin.kind} at {origin.path}")]


def _optional() -> list[Check]:
    # one of each extra
    modules = {
        "triton": "triton",
        "megatron-core": "megatron",
        "aiohttp": "aiohttp",
        "bm25s": "bm25s",
        "rapidfuzz": "rapidfuzz",
    }
    advice = {
        name: f"pip install 'paw-hpc[{EXTRAS[module].name}]' for {EXTRAS[module].use}"
        for name, module in modules.items()
    }
    return [_package(name, required=False, advice=said) for name, said in advice.items()]


def _cluster() -> list[Check]:
    """Slurm's commands, and inside an image whether the environment is the one that it was made for."""
    found = shutil.which("sbatch")
    checks = [
        Check(
            "Slurm",
            True if found else None,
            found or "sbatch is not found",
            "" if found else "paw launch --executor local runs jobs here",
        )
    ]
    versions = Path(__file__).parents[2] / "containers" / "versions.txt"
    # an image for CPUs has the versions of constraints.txt
    if not versions.is_file() or os.environ.get("PAW_IMAGE", "cpu") == "cpu":
        return checks
    pinned = re.findall(
        r"^([\w-]+)==(\S+)$",
        versions.read_text(encoding="utf-8").partition("[server]")[0],
        flags=re.MULTILINE,
    )
    differing = [
        f"{name} {installed} (pinned {wanted})"
        for name, wanted in pinned
        if (installed := _version(name)) not in (None, wanted)
    ]
    advice = "build the image anew: see containers/README.md" if differing else ""
    return [
        *checks,
        Check(
            "versions of the image",
            None if differing else True,
            ", ".join(differing) or "all as pinned",
            advice,
        ),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, *, required: bool, advice: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False if required else None, "not installed", advice)
