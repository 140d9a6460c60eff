"""What `policy.share_prefixes` saves: the same experience scored and trained with and without it, in turns.

    python benchmarks/prefixes.py [RECIPE ...] [--set key=value ...] [--rounds 4]
    python benchmarks/prefixes.py --count MODEL

With `--count`: how many tokens of a model's tokenizer are computed where two groups of eight play the
benchmarks' full prompts at random, each response 25 words of thought, drawn anew, and an action. Policies
that think and act alike share more.

Otherwise: one update's episodes of each recipe are played and planned. Then old log-probs are computed and gradients
accumulated both ways, round by round, in alternating order; no step is made. The first round is not counted.
Printed are the tokens, how many of them were computed, and the ratio of the seconds with its 95 % interval
from a bootstrap over rounds. Log-probs, loss and gradient norm of the two ways are compared: more than
rounding between them ends the benchmark.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from paw_hpc.build import Machinery
from paw_hpc.envs import Environments
from paw_hpc.evaluation.statistics import ratio_interval
from paw_hpc.experience import Batch, Pool
from paw_hpc.loop import tasks_of
from paw_hpc.objective.plan import plan
from paw_hpc.objective.prefixes import sorted_by_beginning
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.rollout.event_loop import EventLoop

WAYS = {"whole": False, "shared": True}


def experience(recipe: Recipe) -> tuple[HuggingFacePolicy, Pool, Batch]:
    """The policy, what it played in the first update, and the batch that is planned of it."""
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        tasks = tasks_of(machinery.benchmark.tasks("train"), recipe, 0)
        groups, stats = machinery.collect(tasks, recipe.rollout.group_size, 0)
        pool = Pool.from_groups(groups)
        policy = machinery.policy
        assert isinstance(policy, HuggingFacePolicy)
        own = recipe.algorithm.old_logp == "rollout"
        scores = machinery.scores_of(pool, stats) if own else policy.score(pool)
        return policy, pool, plan(pool, scores, recipe, 0).batch


def measured(policy: HuggingFacePolicy, pool: Pool, batch: Batch, rounds: int) -> str:
    """A row of the table."""
    seconds: dict[tuple[str, str], list[float]] = {
        (way, phase): [] for way in WAYS for phase in ("score", "train")
    }
    computed = 0
    for turn in range(rounds + 1):
        results = []
        for way in sorted(WAYS, reverse=bool(turn % 2)):
            sections = policy.recipe.policy.model_copy(update={"share_prefixes": WAYS[way]})
            policy.recipe = policy.recipe.model_copy(update={"policy": sections})
            policy._begin()
            start = time.perf_counter()
            logp = policy.score(pool).old_logp
            scored = time.perf_counter()
            loss = float(policy._accumulate("policy", batch, []))
            trained = time.perf_counter()
            gradients = [p.grad.double() for p in policy.model.parameters() if p.grad is not None]
            norm = float(torch.sqrt(torch.stack([g.square().sum() for g in gradients]).sum()))
            policy.model.zero_grad(set_to_none=True)
            results.append((logp, torch.tensor([loss, norm])))
            computed = policy._computed_tokens if WAYS[way] else computed
            if turn:
                seconds[way, "score"].append(scored - start)
                seconds[way, "train"].append(trained - scored)
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    ratios = [ratio(seconds["shared", phase], seconds["whole", phase]) for phase in ("score", "train")]
    return (
        f"{len(pool)} | {batch.num_sequences} | {batch.num_tokens:,} | {computed:,} | "
        f"{computed / batch.num_tokens:.3f} | {' | '.join(ratios)}"
    )


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    low, high = ratio_interval(above, below, range(len(above)))
    return f"{sum(above) / sum(below):.3f} [{low:.3f}, {high:.3f}]"


PLAYED: dict[str, dict[str, Any]] = {
    "alfworld": {"games": "generated", "task_types": ["pick_and_place_simple"], "max_steps": 30},
    "webshop": {"webshop": {"catalogue": "generated"}, "max_steps": 15},
    "search": {"search": {"data": "generated"}, "max_steps": 4},
}
PROMPTS = {"paper": {"prompt": "paper"}, "conversation": {"prompt": "conversation", "history": "all"}}


def counted(tokenizer: Any, name: str, prompt: str) -> str:
    """A row of the table of `--count`."""
    rng, sequences = random.Random(0), list[list[int]]()
    with Environments(name, **PLAYED[name], **PROMPTS[prompt]) as environments:
        for task in environments.tasks("train")[:2]:
            for member in range(8):
                episode, played = environments.open(task, repeat=member), list[list[int]]()
                while not episode.done:
                    text = tokenizer.apply_chat_template(
                        episode.messages(), add_generation_prompt=True, tokenize=False
                    )
                    action = at_random(episode, rng)
                    thought = " ".join(rng.choices(WORDS, k=25))
                    said = f"{text}<think>{thought}</think><action>{action}</action>"
                    played.append(tokenizer(said, add_special_tokens=False).input_ids)
                    episode.step(action)
                sequences += played[-1:] if prompt == "conversation" else played
                episode.close()
    tokens = sum(map(len, sequences))
    computed = tokens - sum(sorted_by_beginning([np.array(ids) for ids in sequences])[1])
    return f"{len(sequences)} | {tokens:,} | {computed:,} | {computed / tokens:.3f}"


WORDS = [
    "I",
    "should",
    "look",
    "at",
    "this",
    "now",
    "maybe",
    "try",
    "there",
    "first",
    "then",
    "take",
    "it",
    "and",
    "go",
    "on",
    "to",
    "the",
    "next",
    "one",
]


def at_random(episode: Any, rng: random.Random) -> str:
    if not episode.admissible:  # search QA
        return f"<search>{' '.join(rng.choices(WORDS, k=3))}</search>"
    action = rng.choice(episode.admissible)
    return f"search[{rng.choice(WORDS)} {rng.choice(WORDS)}]" if action.startswith("search[") else action


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, default=[Path("recipes/quickstart-generated.yaml")])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--count", metavar="MODEL", help="folder with a tokenizer that has a chat template")
    options = parser.parse_args()
    if options.count:
        tokenizer = AutoTokenizer.from_pretrained(options.count)
        print("| benchmark | prompt | sequences | tokens | computed | share |")
        print("|---|---|---:|---:|---:|---:|")
        for name in PLAYED:
            for prompt in PROMPTS:
                print(f"| {name} | {prompt} | {counted(tokenizer, name, prompt)} |", flush=True)
        return
    print(
        "| recipe | transitions | sequences | tokens | computed | share | scoring, shared / whole | training |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for path in options.recipes:
        recipe = load_recipe(path, options.set)
        row = measured(*experience(recipe), options.rounds)
        print(f"| {recipe.name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
