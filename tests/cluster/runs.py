"""Small runs on a cluster, and what is left of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.recipe import Recipe, dump_recipe, parse_recipe
from paw_hpc.run.metrics import read_metrics

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "updates": 5,
    "threads": 1,
    "env": {"prompt": "compact", "max_steps": 2, "train_games": 4, "task_types": ["pick_and_place_simple"]},
    "model": {"path": "warm-start"},
    "rollout": {"groups": 1, "group_size": 3, "max_prompt_tokens": 512, "max_response_tokens": 12},
    "optimizer": {"lr": 1e-4, "mini_batch": 8},
    "checkpoint": {"every": 1},
    "cluster": {"cpus_per_node": 2, "time_min": 20},
}
PAW = [sys.executable, "-m", "paw_hpc.cli.main"]


def recipe(base: dict[str, Any] = TINY, **sections: Any) -> Recipe:
    merged = {**base}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(merged)


def write(what: Recipe, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_recipe(what))
    return path


def paw(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Standard output and error of a `paw` command that succeeds; in this process, which has imported all
    that takes long."""
    with contextlib.chdir(cwd or Path.cwd()):
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def stream(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, less what depends on the machine."""
    return [
        {
            k: v
            for k, v in line.items()
            if not k.startswith(("time/", "fleet/", "system/")) and k not in _OF_THE_MACHINE
        }
        for line in read_metrics(run / "metrics.jsonl")
    ]


_OF_THE_MACHINE = ("policy/seconds",)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def job_state(job: str) -> str:
    shown = slurm("scontrol", "show", "job", job, "--oneliner").split()
    return next(word.removeprefix("JobState=") for word in shown if word.startswith("JobState="))


def wait_until(what: Callable[[], bool], explain: Callable[[], str], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def explain(run: Path) -> Callable[[], str]:
    """Everything that a run has said, for a failure."""

    def texts() -> str:
        files = [
            *sorted((run / "cluster").glob("job-*.log")),
            run / "cluster" / "attempts.jsonl",
            *sorted(run.glob("attempt_*/*.log")),
        ]
        return "\n".join(
            f"== {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files if file.exists()
        )

    return texts


def processes_naming(text: str) -> list[str]:
    """Command lines of processes of this machine, nodes' namespaces included, that mention `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if text in line and not zombie and "pytest" not in line:
            found.append(line)
    return found
