"""Seconds and tokens per second of each phase of an update, vanilla and PaW in one run, interleaved, and the overhead of PaW as a ratio.

    python benchmarks/loop.py [RECIPE] [key=value ...] [--updates 6]

The learning rate is set to nearly zero, so that both arms stay at the starting policy and play the very same episodes: what differs is the
world-model rows alone. The first update of each arm is not counted (caches). Ratios are medians over pairs of updates; machines are noisy, and
seconds are not portable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from paw_hpc.build import Machinery
from paw_hpc.loop import one_update
from paw_hpc.recipe import load_recipe
from paw_hpc.rollout.event_loop import EventLoop

PHASES = ("collect", "score", "plan", "train", "publish", "update")


def measure(recipe_path: Path, overrides: list[str], updates: int) -> dict[str, list[dict[str, float]]]:
    """arm -> metrics of each counted update."""
    arms = {"vanilla": "wm.enabled=false", "paw": "wm.enabled=true"}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    with EventLoop() as runner, contextlib.ExitStack() as stack:
        machines = {}
        for arm, switch in arms.items():
            recipe = load_recipe(recipe_path, [*overrides, "optimizer.lr=1e-12", switch])
            machines[arm] = stack.enter_context(Machinery(recipe, runner))
        tasks = machines["paw"].benchmark.tasks("train")
        for update in range(updates + 1):
            for arm in list(arms) if update % 2 else reversed(arms):
                metrics = one_update(machines[arm].recipe, machines[arm], tasks, update)
                if update:
                    found[arm].append(metrics)
    same = [v["rollout/generated_tokens"] == p["rollout/generated_tokens"] for v, p in zip(found["vanilla"], found["paw"], strict=True)]
    if not all(same):
        raise RuntimeError("the two arms played different episodes: the comparison would be unfair")
    return found


def tokens_of(phase: str, metrics: dict[str, float]) -> float | None:
    """Tokens that a phase works on: generated ones while playing, packed ones while training."""
    if phase == "collect":
        return metrics["rollout/generated_tokens"]
    return metrics["policy/tokens"] if phase == "train" else None


def report(found: dict[str, list[dict[str, float]]], console: Console) -> dict[str, float]:
    """Print the table; returns the median ratio PaW / vanilla of each phase."""
    table = Table("phase", "vanilla s", "PaW s", "PaW / vanilla", "vanilla tokens/s", "PaW tokens/s", title="one update, medians")
    ratios = {}
    for phase in PHASES:
        seconds = {arm: np.array([m[f"time/{phase}_s"] for m in values]) for arm, values in found.items()}
        ratios[phase] = float(np.median(seconds["paw"] / np.maximum(seconds["vanilla"], 1e-9)))
        rates = []
        for arm, values in found.items():
            tokens = [tokens_of(phase, m) for m in values]
            rates.append("" if tokens[0] is None else f"{np.median(np.array(tokens, dtype=float) / seconds[arm]):,.0f}")
        medians = [f"{np.median(s):.3f}" for s in seconds.values()]
        table.add_row(phase, *medians, f"{ratios[phase]:.3f}", *rates)
    console.print(table)
    for name, label in (("policy/tokens", "packed tokens"), ("policy/rows", "scored rows")):
        per = {arm: np.mean([m[name] for m in values]) for arm, values in found.items()}
        console.print(f"{label} per update: {per['vanilla']:,.0f} -> {per['paw']:,.0f} (x {per['paw'] / per['vanilla']:.3f})", highlight=False)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--json", type=Path, help="also write ratios and metrics here")
    options = parser.parse_args()
    found = measure(options.recipe, options.overrides, options.updates)
    ratios = report(found, Console())
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "updates": found}, indent=1))


if __name__ == "__main__":
    main()
