"""How much of an update's gradient the differences between the protocols change that no key of a recipe sets,
beside those that one does.

    python benchmarks/protocol_differences.py [RECIPE] [key=value ...] [--updates 5] [--draws 5] [--groups 6
    16] [--out FILE]

Every batch is one update's experience of the recipe's starting policy, never trained: GRPO, the world model
off, loss averaged over all response tokens, at the starting weights (old log-probs are the policy's own). Of
each batch the gradient of the whole update is taken several ways:

- averaged per micro-batch: samples in random order, cut into micro-batches of n; the mean over a
  micro-batch's tokens, weighted by its samples;
- duplicated: random samples are added, each at most once, until 64 divides their number, before means and
  deviations of the groups are taken;
- means and deviations over samples instead of episodes, and the penalty on its own step's sample as well:
  keys of a recipe, for comparison;
- another batch: other games, played by the same policy; how much two gradients of this size differ anyway.

Cosine and ratio of norms are to the gradient that `algorithm.aggregation: token` gives, by the statistics of
the protocol that the difference belongs to. With a policy that answers in a few tokens lengths spread
otherwise than with thoughts; their coefficient of variation is printed.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_hpc.build import Machinery
from paw_hpc.experience import Batch, Pool
from paw_hpc.loop import tasks_of
from paw_hpc.objective import advantages
from paw_hpc.objective.plan import plan
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.rollout.event_loop import EventLoop

DIVISOR = 64
"""Samples must divide by this in the reference's example with two GPUs."""
MICRO_BATCHES = (8, 16, 32, 64)
CHANGES = (
    "wm.enabled=false",
    "algorithm.name=grpo",
    "algorithm.aggregation=token",
    "algorithm.kl_coefficient=0.0",
    "env.invalid_penalty=0.1",
)
Gradient = torch.Tensor
"""float[parameters]."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the losses of one update's samples are made of."""

    batch: Batch
    score: torch.Tensor  # float64[N], the episode's return less the penalty of this sample's own step
    returns: torch.Tensor  # float64[E], less all penalties
    group: torch.Tensor  # int64[N]
    episode: torch.Tensor  # int64[N]
    episode_group: torch.Tensor  # int64[E]

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def lengths(self) -> torch.Tensor:
        """int64[N]: response tokens."""
        return self.batch.row_cu[1:] - self.batch.row_cu[:-1]

    @classmethod
    def of(cls, pool: Pool, batch: Batch, penalty: float) -> Samples:
        invalid = penalty * (~pool.valid).double()
        returns = pool.returns.double()
        clean = returns[pool.episode]
        penalized = returns - torch.zeros_like(returns).index_add(0, pool.episode, invalid)
        return cls(batch, clean - invalid, penalized, pool.group, pool.episode, pool.episode_group)

    def over_samples(self) -> torch.Tensor:
        """float64[N]: advantages by the protocol `reference`, statistics over samples and each penalty on its
        own sample."""
        return advantages.grpo(self.score, self.group)

    def over_episodes(self) -> torch.Tensor:
        """float64[N]: advantages by the protocol `ours`."""
        return advantages.grpo(self.returns, self.episode_group)[self.episode]

    def statistics_alone(self) -> torch.Tensor:
        """float64[N]: an episode counts as often as it has samples; all its penalties still in all of
        them."""
        return advantages.grpo(self.returns[self.episode], self.group)


def sample_gradients(policy: Any, samples: Samples) -> torch.Tensor:
    """float32[N, parameters]: the gradient of each sample's loss, at weight and advantage 1. At the weights
    that played, every ratio of probabilities is 1 and nothing is clipped, so the gradient of any weighted
    loss is a weighted sum of these; `measure` checks that.
    """
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    found = torch.zeros(len(samples), sum(p.numel() for p in parameters))
    for number in range(len(samples)):
        _backward(policy, samples, torch.tensor([number]), torch.ones(1), torch.ones(1))
        torch.cat([p.grad.flatten() for p in parameters], out=found[number])
        policy.model.zero_grad(set_to_none=True)
    return found


def whole_gradient(policy: Any, samples: Samples, weight: torch.Tensor, advantage: torch.Tensor) -> Gradient:
    """As training takes it: one pass over the packed batch."""
    _backward(policy, samples, torch.arange(len(samples)), weight, advantage)
    parts = [p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]
    policy.model.zero_grad(set_to_none=True)
    return torch.cat(parts).double()


def _backward(
    policy: Any, samples: Samples, chosen: torch.Tensor, weight: torch.Tensor, advantage: torch.Tensor
) -> None:
    batch = samples.batch.take(chosen)
    for name, values in (("weight", weight), ("advantage", advantage)):
        batch.streams[name] = torch.repeat_interleave(values.float(), samples.lengths[chosen])
    policy._accumulate("policy", batch, [])


def over_all(lengths: torch.Tensor) -> torch.Tensor:
    """float64[n]: the weight of a token where the loss is the mean over all tokens."""
    return torch.full((len(lengths),), 1.0 / float(lengths.sum()), dtype=torch.float64)


def per_micro_batch(lengths: torch.Tensor, size: int, draw: np.random.Generator) -> torch.Tensor:
    """float64[n]: the weight of a sample's tokens where each micro-batch is averaged alone and counts by its
    samples."""
    weight = torch.empty(len(lengths), dtype=torch.float64)
    order = torch.from_numpy(draw.permutation(len(lengths)))
    for part in order.split(size):
        weight[part] = len(part) / len(lengths) / float(lengths[part].sum())
    return weight


def duplicated(count: int, draw: np.random.Generator) -> torch.Tensor:
    """int64[n]: all samples, and random ones again until DIVISOR divides their number."""
    return torch.from_numpy(
        np.concatenate([np.arange(count), draw.choice(count, -count % DIVISOR, replace=False)])
    )


def compared(
    samples: Samples, draws: int, draw: np.random.Generator
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(difference, coefficients of the samples' gradients without it, with it), float64[N] each."""
    lengths = samples.lengths
    even, reference = over_all(lengths), samples.over_samples()
    base = even * reference
    for size in MICRO_BATCHES:
        for _ in range(draws):
            yield (
                f"loss averaged per micro-batch of {size} samples",
                base,
                per_micro_batch(lengths, size, draw) * reference,
            )
    for _ in range(draws):
        chosen = duplicated(len(samples), draw)
        again = over_all(lengths[chosen]) * advantages.grpo(samples.score[chosen], samples.group[chosen])
        yield (
            f"samples duplicated until {DIVISOR} divides them",
            base,
            torch.zeros_like(base).index_add(0, chosen, again),
        )
    ours = even * samples.over_episodes()
    yield "`algorithm.statistics: samples`", ours, even * samples.statistics_alone()
    yield "`algorithm.statistics: samples` and `algorithm.penalty: sample`", ours, base


def batches(recipe: Recipe, updates: int) -> Iterator[tuple[Any, Samples, dict[str, float]]]:
    """(policy, samples, what kind of batch it is) of each update's games."""
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        tasks = machinery.benchmark.tasks("train")
        for update in range(updates):
            groups, _ = machinery.collect(tasks_of(tasks, recipe, update), recipe.rollout.group_size, update)
            pool = Pool.from_groups(groups)
            samples = Samples.of(
                pool,
                plan(pool, machinery.policy.score(pool), recipe, update).batch,
                recipe.env.invalid_penalty,
            )
            lengths = samples.lengths.double()
            signs = [torch.sign(a) for a in (samples.over_episodes(), samples.over_samples())]
            kind = {
                "samples": len(pool),
                "duplicates": -len(pool) % DIVISOR,
                "variation": float(lengths.std() / lengths.mean()),
                "success": float(np.mean([episode.success for episode in pool.episodes])),
                "invalid": float((~pool.valid).double().mean()),
                "turned": float((signs[0] * signs[1] < 0).double().mean()),
            }
            yield machinery.policy, samples, kind


def measure(recipe: Recipe, updates: int, draws: int) -> list[str]:
    """Lines of Markdown: what the batches are, and a table."""
    found = defaultdict[str, list[tuple[float, float]]](list)
    kinds, bases = list[dict[str, float]](), list[Gradient]()
    for number, (policy, samples, kind) in enumerate(batches(recipe, updates)):
        kinds.append(kind)
        gradients = sample_gradients(policy, samples)
        bases.append((over_all(samples.lengths) * samples.over_samples()).float() @ gradients)
        _check(whole_gradient(policy, samples, over_all(samples.lengths), samples.over_samples()), bases[-1])
        for name, without, difference in compared(
            samples, draws, np.random.default_rng([recipe.seed, number])
        ):
            found[name].append(_beside(*(torch.stack([without, difference]).float() @ gradients)))
        del gradients  # gigabytes: not two at once
    found["another batch: other games, same policy"] = [
        _beside(a, b) for n, a in enumerate(bases) for b in bases[n + 1 :]
    ]
    spread = {
        name: f"{min(k[name] for k in kinds):,.3g} to {max(k[name] for k in kinds):,.3g}" for name in kinds[0]
    }
    lines = [
        f"{updates} batches of {recipe.rollout.groups} x {recipe.rollout.group_size} episodes: "
        f"{_range(kinds, 'samples')} samples, "
        f"{_range(kinds, 'duplicates')} duplicates, success {spread['success']}, invalid actions "
        f"{spread['invalid']}, coefficient of variation of "
        f"response lengths {spread['variation']}. Samples whose advantage has the other sign by statistics "
        "over samples with the penalty on its own: "
        f"{spread['turned']}.",
        "",
        "| difference | cosine: mean (lowest) | ratio of norms: mean (lowest to highest) | gradients |",
        "|---|---:|---:|---:|",
    ]
    return lines + [_row(name, np.array(values)) for name, values in found.items() if values]


def _check(whole: Gradient, summed: Gradient) -> None:
    """Raises RuntimeError where the sum over samples is not what training would do."""
    error = float((whole - summed).norm() / whole.norm())
    if not error < 1e-3:
        raise RuntimeError(
            f"the summed gradients of samples differ from the batch's by {error:.1e} of its norm: nothing "
            "here would be true of it"
        )


def _beside(without: Gradient, difference: Gradient) -> tuple[float, float]:
    """(cosine, ratio of norms)."""
    without, difference = without.double(), difference.double()
    norms = float(without.norm()), float(difference.norm())
    return float(without @ difference) / (norms[0] * norms[1]), norms[1] / norms[0]


def _range(kinds: Sequence[dict[str, float]], name: str) -> str:
    return f"{min(k[name] for k in kinds):,.0f} to {max(k[name] for k in kinds):,.0f}"


def _row(name: str, values: np.ndarray) -> str:
    cosine, ratio = values.T
    return (
        f"| {name} | {cosine.mean():.4f} ({cosine.min():.4f}) | {ratio.mean():.3f} ({ratio.min():.3f} "
        f"to {ratio.max():.3f}) | {len(values)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/miniature/alfworld.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=5, help="batches of each size")
    parser.add_argument(
        "--draws", type=int, default=5, help="random orders, and random duplicates, of each batch"
    )
    parser.add_argument(
        "--groups", type=int, nargs="+", default=[6, 16], help="groups per batch: a table each"
    )
    parser.add_argument("--out", type=Path, help="also write the tables here")
    options = parser.parse_args()
    command = " ".join(["python benchmarks/protocol_differences.py", str(options.recipe), *options.overrides])
    versions = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers")
    )
    groups = " ".join(map(str, options.groups))
    text = [
        "# What differences between the protocols do to an update's gradient, "
        f"{time.strftime('%Y-%m-%d')}, {versions}",
        "",
    ]
    text += [f"`{command} --updates {options.updates} --draws {options.draws} --groups {groups}`", ""]
    for count in options.groups:
        recipe = load_recipe(options.recipe, [*options.overrides, *CHANGES, f"rollout.groups={count}"])
        text += [*measure(recipe, options.updates, options.draws), ""]
    print("\n".join(text))
    if options.out:
        options.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
