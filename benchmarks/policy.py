"""Tokens per second, memory and step phases of the policy backends on one machine: one process, and Megatron
in some layouts.

    python benchmarks/policy.py [RECIPE] [key=value ...] [--layouts 1x1 2x1 1x2] [--samples 128] [--rounds 2]
    [--json FILE]

Every configuration runs in processes of its own (so its memory is its own) on the same random transitions, in
turns: `--rounds` times through all of them, in alternating order, because machines are noisy. A figure is the
median over rounds and repeats. Layouts are tensor x pipeline parallel sizes; on a GPU machine each process
takes one GPU. Ratios of one run can be compared; seconds are not portable.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from paw_hpc.build import processes_of
from paw_hpc.experience import Episode, Group, Pool, Transition
from paw_hpc.objective.plan import plan
from paw_hpc.policy.backend import Policy
from paw_hpc.policy.throughput import memory_peak_bytes
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.system import distributed
from paw_hpc.system.processes import run_here
from paw_hpc.system.seeding import generator

HUGGINGFACE = "huggingface"
COLUMNS = ("score_s", "update_s", "forward_backward_s", "gradient_reduction_s", "optimizer_s", "packing_s")


def transitions(options: argparse.Namespace, vocabulary: int) -> Pool:
    """Episodes of four transitions in groups of four; lengths vary by a quarter around those that were asked
    for."""
    rng = generator(0, "benchmark")

    def ids(mean: int) -> np.ndarray:
        return rng.integers(0, vocabulary, max(1, int(mean * rng.uniform(0.75, 1.25)))).astype(np.int32)

    groups: list[Group] = []
    for index in range(options.samples // 4):
        if index % 4 == 0:
            groups.append(Group(len(groups), f"task-{len(groups)}", "benchmark"))
        won = bool(rng.random() < 0.5)
        episode = Episode(index, groups[-1].index, groups[-1].task_id, "benchmark", seed=index, success=won)
        for step in range(4):
            response = ids(options.response)
            logp = -rng.exponential(1.0, len(response)).astype(np.float32)
            reward = 10.0 * won * (step == 3)
            bridge, observation = ids(4), ids(options.observation)
            episode.transitions.append(
                Transition(
                    episode.group,
                    index,
                    step,
                    ids(options.prompt),
                    response,
                    logp,
                    bridge,
                    observation,
                    reward,
                    True,
                    f"{step}",
                    0,
                )
            )
        groups[-1].episodes.append(episode)
    return Pool.from_groups(groups)


def measure(options: argparse.Namespace) -> None:
    """One configuration, on every rank of it; the first one writes what was found."""
    recipe = load_recipe(options.recipe, options.overrides)
    with processes_of(recipe) if recipe.policy.backend == "megatron" else nullcontext():
        policy = make_policy(recipe)
        pool = transitions(options, len(policy.tokenizer))  # type: ignore[attr-defined]
        found: dict[str, list[float]] = defaultdict(list)
        for repeat in range(options.repeats + 1):
            start = time.perf_counter()
            scores = policy.score(pool)
            scored = time.perf_counter() - start
            batch = plan(pool, scores, recipe, repeat).batch
            metrics = policy.update(batch, repeat)
            if not repeat:
                continue  # caches, and memory that is taken once
            found["score_s"].append(scored)
            found["update_s"].append(metrics["seconds"])
            for name, value in metrics.items():
                if name.startswith("time/policy_"):
                    found[name.removeprefix("time/policy_")].append(value)
                elif name.startswith("system/"):
                    found[name.removeprefix("system/")].append(value)
        device = policy.device  # type: ignore[attr-defined]
        memory = distributed.gather(memory_peak_bytes(device))
        if distributed.is_main():
            found["memory_peak_bytes"] = [float(max(memory))]
            found["tokens"] = [float(batch.num_tokens)]
            options.worker.write_text(json.dumps(found))


def make_policy(recipe: Recipe) -> Policy:
    if recipe.policy.backend == "megatron":
        from paw_hpc.policy.megatron.policy import MegatronPolicy

        return MegatronPolicy(recipe)
    from paw_hpc.policy.huggingface import HuggingFacePolicy

    return HuggingFacePolicy(recipe)


def run(options: argparse.Namespace, name: str, folder: Path) -> dict[str, list[float]]:
    """One configuration in fresh processes."""
    overrides, count = [f"policy.backend={HUGGINGFACE}"], 1
    if name != HUGGINGFACE:
        tensor, pipeline = (int(size) for size in name.split("x"))
        overrides = [
            "policy.backend=megatron",
            f"megatron.tensor_parallel={tensor}",
            f"megatron.pipeline_parallel={pipeline}",
        ]
        count = tensor * pipeline
    out = folder / "found.json"
    sizes = [
        f"--{key}={getattr(options, key)}"
        for key in ("samples", "prompt", "response", "observation", "repeats")
    ]
    command = [
        sys.executable,
        __file__,
        str(options.recipe),
        *options.overrides,
        *overrides,
        *sizes,
        "--worker",
        str(out),
    ]
    status = run_here(count, command)
    if status:
        sys.exit(status)
    found: dict[str, list[float]] = json.loads(out.read_text())
    return found


def report(found: dict[str, dict[str, list[float]]], console: Console) -> None:
    table = Table(
        "configuration",
        "tokens/s",
        "of one process",
        "rows/s",
        "peak MiB",
        "MFU",
        *COLUMNS,
        title="one update, medians",
    )
    base = np.median(found[HUGGINGFACE]["tokens_per_s"])
    for name, values in found.items():
        middle = {key: float(np.median(series)) for key, series in values.items()}
        label = "one process" if name == HUGGINGFACE else "megatron {} x {}".format(*name.split("x"))
        speed = middle["tokens_per_s"]
        phases = [f"{middle[column]:.3f}" if column in middle else "" for column in COLUMNS]
        mfu = f"{middle['mfu']:.3f}" if "mfu" in middle else ""
        table.add_row(
            label,
            f"{speed:,.0f}",
            f"{speed / base:.2f}",
            f"{middle['rows_per_s']:,.0f}",
            f"{middle['memory_peak_bytes'] / 2**20:,.0f}",
            mfu,
            *phases,
        )
    console.print(table)
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "CPU (peak memory is resident memory, libraries included)"
    )
    console.print(
        f"{device}; {np.median(found[HUGGINGFACE]['tokens']):,.0f} tokens per update", highlight=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument(
        "--layouts", nargs="*", default=["1x1", "2x1", "1x2"], help="tensor x pipeline parallel sizes"
    )
    parser.add_argument("--samples", type=int, default=128, help="transitions per update")
    parser.add_argument("--prompt", type=int, default=200, help="mean tokens")
    parser.add_argument("--response", type=int, default=8)
    parser.add_argument("--observation", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3, help="counted updates per process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        measure(options)
        return
    names = [HUGGINGFACE, *options.layouts]
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            for name in names if round_ % 2 == 0 else reversed(names):
                for key, series in run(options, name, Path(folder)).items():
                    found[name][key] += series
    report(found, Console(width=None if sys.stdout.isatty() else 180))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
