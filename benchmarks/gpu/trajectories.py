"""Whole trajectories at the shape of Qwen2.5-1.5B: PaW beside vanilla on chains, and separate samples with
full history beside chains.

Random weights and random conversations with the lengths of ALFWorld under a conversation's prompt (`TURNS`).
One policy serves both ways and both arms at a learning rate of nearly zero, so all see the same weights.
`benchmarks/trajectories.py` is the same on a CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.common import markdown, options, write
from benchmarks.gpu.synthetic import QWEN_1_5B, TOY, model_folder
from benchmarks.gpu.update import Found, one_update, recipes
from benchmarks.policy import make_policy
from benchmarks.trajectories import conversations
from paw_hpc.evaluation.statistics import ratio_interval
from paw_hpc.experience import Pool
from paw_hpc.policy.backend import Policy
from paw_hpc.recipe import Recipe

TURNS = {"opening": 392, "response": 150, "observation": 36, "rest": 80}
"""Tokens: prompt, response and observation as in `synthetic.LENGTHS`, and what a later turn holds beside its
observation (a chat template's words and the admissible actions)."""
TOY_TURNS = {"opening": 20, "response": 5, "observation": 6, "rest": 8}
SIZES = [(5, 4), (20, 2), (50, 1)]
"""(steps, episodes) of both ways beside each other."""
LONG = (115, 2)
"""(steps, episodes) of chains of about 31,000 tokens: what memory does."""


def with_chains(recipe: Recipe, chains: bool) -> Recipe:
    return recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"merge_turns": chains})})


def measured(
    policy: Policy, arms: dict[str, Recipe], pool: Pool, chains: bool, repeats: int
) -> dict[str, Found]:
    """Arm -> name -> its values over `repeats` updates; the arms take turns."""
    found: dict[str, Found] = {arm: defaultdict(list) for arm in arms}
    for number in range(repeats):
        for arm in list(arms) if number % 2 else reversed(list(arms)):
            recipe = with_chains(arms[arm], chains)
            policy.recipe = recipe  # type: ignore[attr-defined]
            for name, value in one_update(policy, pool, recipe, number).items():
                found[arm][name].append(value)
    return found


def middle(found: Found, name: str) -> float:
    return float(np.median(found[name]))


def peak_gib(found: Found) -> str:
    """Of a GPU; a process's own says nothing of one update."""
    return f"{middle(found, 'memory_peak_bytes') / 2**30:.2f}" if torch.cuda.is_available() else ""


COLUMNS = [
    "steps",
    "episodes",
    "arm",
    "tokens of samples",
    "of chains",
    "ratio",
    "samples: s",
    "chains: s",
    "faster",
    "samples: GiB",
    "chains: GiB",
]
COLUMNS += ["norm of the gradient, chains / samples - 1"]


def both_ways(
    policy: Policy, arms: dict[str, Recipe], pool: Pool, steps: int, episodes: int
) -> list[list[object]]:
    """A line of `COLUMNS` for each arm."""
    rows: list[list[object]] = []
    whole = measured(policy, arms, pool, True, 3)
    apart = measured(policy, arms, pool, False, 1)
    for arm in arms:
        tokens, seconds, norms = (
            [middle(f[arm], name) for f in (apart, whole)] for name in ("tokens", "total_s", "grad_norm")
        )
        cells = [
            f"{tokens[0]:,.0f}",
            f"{tokens[1]:,.0f}",
            f"{tokens[0] / tokens[1]:.1f}",
            f"{seconds[0]:.2f}",
            f"{seconds[1]:.2f}",
        ]
        cells += [
            f"{seconds[0] / seconds[1]:.1f}",
            peak_gib(apart[arm]),
            peak_gib(whole[arm]),
            f"{norms[1] / norms[0] - 1:+.1e}",
        ]
        rows.append([steps, episodes, arm, *cells])
    return rows


def arms_on_chains(policy: Policy, arms: dict[str, Recipe], pool: Pool, repeats: int) -> str:
    """PaW beside vanilla where the next observation is there anyway."""
    found = measured(policy, arms, pool, True, repeats)
    rows = []
    for arm, values in found.items():
        cells = [f"{middle(values, name):,.0f}" for name in ("tokens", "rows")] + [
            f"{middle(values, name):.3f}" for name in ("score_s", "update_s")
        ]
        rows.append([arm, *cells, peak_gib(values)])
    ratios = []
    for column, said in (("update_s", "update"), ("total_s", "scoring, planning and update")):
        paw, vanilla = (found[arm][column][1:] for arm in ("PaW", "vanilla"))
        low, high = ratio_interval(paw, vanilla, range(len(paw)))
        ratios.append(f"PaW / vanilla, {said}: {sum(paw) / sum(vanilla):.3f} [{low:.3f}, {high:.3f}]")
    tokens, rows_ratio = (
        middle(found["PaW"], name) / middle(found["vanilla"], name) for name in ("tokens", "rows")
    )
    said = "; ".join([*ratios, f"tokens {tokens:.4f}, rows {rows_ratio:.2f}"])
    return f"{markdown(['', 'tokens', 'rows', 'score s', 'update s', 'peak GiB'], rows)}\n\n{said}."


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--repeats",
            type=int,
            default=6,
            help="updates of each arm on chains; the first is not counted in ratios",
        )
        parser.add_argument("--folder", type=Path, help="where the random model is kept")

    chosen = options(__doc__, add)
    turns, vocabulary = (TOY_TURNS, TOY["vocab_size"]) if chosen.toy else (TURNS, QWEN_1_5B["vocab_size"])
    chosen.backend, chosen.checkpointing, chosen.micro_batch = "huggingface", True, 32768
    with tempfile.TemporaryDirectory() as scratch:
        arms = recipes(model_folder(chosen.folder or Path(scratch) / "model", chosen.toy), chosen, "alfworld")
        policy = make_policy(arms["PaW"])
        title = f"Whole trajectories, {policy.describe()}"
        body = [
            f"Conversations: {', '.join(f'{name} {value}' for name, value in turns.items())} tokens. "
            "Seconds: scoring, planning and update."
        ]
        steps, episodes = (4, 2) if chosen.toy else (20, 16)
        pool = conversations(steps, argparse.Namespace(episodes=episodes, **turns), vocabulary)
        body += [
            f"## PaW beside vanilla, {episodes} chains of {steps} steps",
            arms_on_chains(policy, arms, pool, 2 if chosen.toy else chosen.repeats),
        ]
        write(chosen.out, "trajectories", title, body)
        steps, episodes = (8, 2) if chosen.toy else LONG
        pool = conversations(steps, argparse.Namespace(episodes=episodes, **turns), vocabulary)
        body += [
            f"## The same, {episodes} chains of {steps} steps",
            arms_on_chains(policy, arms, pool, 2 if chosen.toy else 3),
        ]
        write(chosen.out, "trajectories", title, body)
        rows: list[list[object]] = []
        for steps, episodes in [(3, 2)] if chosen.toy else SIZES:
            pool = conversations(steps, argparse.Namespace(episodes=episodes, **turns), vocabulary)
            rows += both_ways(policy, arms, pool, steps, episodes)
            write(
                chosen.out,
                "trajectories",
                title,
                [*body, "## Separate samples beside chains", markdown(COLUMNS, rows)],
            )


if __name__ == "__main__":
    main()
