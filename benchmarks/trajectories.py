"""Whole trajectories: what an update costs when every step is a sample of its own with all that came before
it, and when an episode is one sequence.

    python benchmarks/trajectories.py [RECIPE] [key=value ...] [--steps 5 10 20 50] [--episodes 4] [--rounds
    2] [--json FILE]

The same random conversations are scored and trained both ways, vanilla and PaW, in alternating order,
`--rounds` times; the least counts. With n steps of k new tokens, samples hold about k n (n + 1) / 2 tokens
and a chain k n: (n + 1) / 2 times fewer, before attention's share. Losses of both ways are compared. Ratios
of one run can be compared; seconds are not portable.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from paw_hpc.experience import Episode, Group, Pool, Transition
from paw_hpc.objective.plan import plan
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.system.seeding import generator

ARMS = ("vanilla", "paw")
WAYS = ("samples", "chains")
TOLERANCE = 1e-4
"""On losses and the norm of the gradient, relative: both ways compute the same in another order."""


@dataclass(frozen=True)
class Found:
    """Of one arm, one way and one number of steps."""

    steps: int
    arm: str
    way: str
    tokens: int
    rows: int
    score_s: float
    update_s: float
    loss: float
    grad_norm: float

    @property
    def seconds(self) -> float:
        return self.score_s + self.update_s


def conversations(steps: int, options: argparse.Namespace, vocabulary: int) -> Pool:
    """One group of episodes of `steps` transitions each, whose prompts go on from one another; every second
    one is won."""
    rng = generator(0, "trajectories", steps)

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    group = Group(0, "task", "benchmark")
    for member in range(options.episodes):
        won = member % 2 == 0
        episode = Episode(member, 0, "task", "benchmark", seed=member, success=won)
        prompt = ids(options.opening)
        for step in range(steps):
            response, bridge, observation = ids(options.response), ids(4), ids(options.observation)
            logp = -rng.exponential(1.0, len(response)).astype(np.float32)
            reward = 10.0 * (won and step == steps - 1)
            episode.transitions.append(
                Transition(
                    0, member, step, prompt, response, logp, bridge, observation, reward, True, f"{step}", 0
                )
            )
            prompt = np.concatenate([prompt, response, bridge, observation, ids(options.rest)])
        group.episodes.append(episode)
    return Pool.from_groups([group])


def measured(recipe: Recipe, pool: Pool, steps: int, arm: str, way: str) -> Found:
    """One scoring and one update, from the recipe's own weights."""
    sections = {
        "policy": recipe.policy.model_copy(update={"merge_turns": way == "chains"}),
        "wm": recipe.wm.model_copy(update={"enabled": arm == "paw"}),
    }
    policy = HuggingFacePolicy(recipe.model_copy(update=sections))
    start = time.perf_counter()
    scores = policy.score(pool)
    scored = time.perf_counter()
    planned = plan(pool, scores, policy.recipe, 0)
    start_update = time.perf_counter()
    metrics = policy.update(planned.batch, 0)
    end = time.perf_counter()
    loss = metrics["policy_loss"] + metrics.get("wm_loss", 0.0)
    batch = planned.batch
    return Found(
        steps,
        arm,
        way,
        batch.num_tokens,
        batch.num_rows,
        scored - start,
        end - start_update,
        loss,
        metrics["grad_norm"],
    )


def least(one: Found, other: Found | None) -> Found:
    """The shorter times of two measurements of the same."""
    if other is None:
        return one
    return Found(
        **(
            asdict(one)
            | {name: min(getattr(one, name), getattr(other, name)) for name in ("score_s", "update_s")}
        )
    )


def table(found: dict[tuple[int, str, str], Found], steps: Sequence[int]) -> Table:
    made = Table()
    for title in (
        "steps",
        "arm",
        "tokens of samples",
        "of chains",
        "ratio",
        "samples: score s",
        "update s",
        "chains: score s",
        "update s",
        "faster",
    ):
        made.add_column(title, justify="right")
    for way in WAYS:
        made.add_column(f"PaW / vanilla, {way}", justify="right")
    for n in steps:
        for arm in ARMS:
            apart, whole = (found[n, arm, way] for way in WAYS)
            over = [found[n, "paw", way].seconds / found[n, "vanilla", way].seconds for way in WAYS]
            made.add_row(
                *(
                    str(n),
                    arm,
                    f"{apart.tokens:,}",
                    f"{whole.tokens:,}",
                    f"{apart.tokens / whole.tokens:.1f}",
                ),
                *(f"{value:.2f}" for value in (apart.score_s, apart.update_s, whole.score_s, whole.update_s)),
                f"{apart.seconds / whole.seconds:.1f}",
                *([f"{value:.2f}" for value in over] if arm == "paw" else ["", ""]),
            )
    return made


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    for name, default in (("opening", 60), ("response", 12), ("observation", 30), ("rest", 30)):
        parser.add_argument(f"--{name}", type=int, default=default, help="tokens")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    fixed = ["optimizer.mini_batch=null", "optimizer.epochs=1", "model.gradient_checkpointing=false"]
    recipe = load_recipe(options.recipe, [*options.overrides, *fixed])
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    vocabulary = HuggingFacePolicy(recipe).model.config.vocab_size
    found: dict[tuple[int, str, str], Found] = {}
    for n in options.steps:
        pool = conversations(n, options, vocabulary)
        for round_ in range(options.rounds):
            for arm, way in [(arm, way) for arm in ARMS for way in WAYS][:: -1 if round_ % 2 else 1]:
                found[n, arm, way] = least(measured(recipe, pool, n, arm, way), found.get((n, arm, way)))
        for arm in ARMS:
            apart, whole = (found[n, arm, way] for way in WAYS)
            for name in ("loss", "grad_norm"):
                one, other = getattr(apart, name), getattr(whole, name)
                if abs(one - other) > TOLERANCE * max(1.0, abs(one)):
                    raise SystemExit(f"{n} steps, {arm}: {name} is {one} of samples and {other} of chains")
    Console(width=200).print(table(found, options.steps))
    rows = [asdict(each) for each in found.values()]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
