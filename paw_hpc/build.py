"""The parts that a recipe chooses, put together in one place: benchmark, policy, engine, publisher, collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedConfig

from paw_hpc.envs.base import Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.errors import RecipeError
from paw_hpc.experience import Group, Pool, Scores
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.recipe import Recipe
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector, CollectStats, PlaySettings
from paw_hpc.rollout.engines.local import LocalEngine
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.publish import LivePublisher, Publisher


class Machinery:
    """Everything of a run that holds processes or weights. Use as a context manager: leaving it ends the environment workers.

    Args:
        runner: its event loop serves environments and engine for the whole run.
    """

    def __init__(self, recipe: Recipe, runner: EventLoop):
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.recipe, self._runner = recipe, runner
        self.benchmark = make_benchmark(recipe.env)
        self.policy = HuggingFacePolicy(recipe)
        self.chat = ChatFormat(self.policy.tokenizer)
        _check_context(recipe, self.policy.model.config)
        self.engine = LocalEngine(self.policy.model, self.policy.tokenizer, recipe.rollout)
        self.publisher: Publisher = LivePublisher(self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.run(self.benchmark.close())
        self.engine.close()

    def describe(self) -> str:
        parameters = sum(p.numel() for p in self.policy.model.parameters())
        return f"{parameters / 1e6:.2f}M parameters on {self.policy.device}, {self.benchmark.source}"

    def play(
        self, tasks: Sequence[Task], members: int, index: int, *, purpose: str, temperature: float, first_group: int = 0
    ) -> tuple[list[Group], CollectStats]:
        """Play tasks with the current weights; `purpose` and `index` name the seeds (see `Collector.collect`)."""
        rollout = self.recipe.rollout
        settings = PlaySettings(
            run_seed=self.recipe.seed,
            purpose=purpose,
            temperature=temperature,
            max_prompt_tokens=rollout.max_prompt_tokens,
            max_response_tokens=rollout.max_response_tokens,
            max_observation_tokens=self.recipe.wm.max_observation_tokens,
        )
        collector = Collector(self.benchmark, self.engine, self.chat, settings)
        return self._runner.run(collector.collect(tasks, members, index, first_group))

    def collect(self, tasks: Sequence[Task], members: int, update: int) -> tuple[list[Group], CollectStats]:
        """The groups of one training update."""
        return self.play(tasks, members, update, purpose="train", temperature=self.recipe.rollout.temperature)

    def scores_of(self, pool: Pool, stats: CollectStats) -> Scores:
        """Old log-probs and entropies as the in-process engine reported them: its weights are the trainer's own, so no pass is spent on them."""
        entropy = [stats.entropies[pool.episodes[int(e)].index, int(s)] for e, s in zip(pool.episode, pool.step, strict=True)]
        scores = Scores(
            old_logp=torch.from_numpy(np.concatenate([t.response_logprobs for t in pool.transitions])),
            entropy=torch.from_numpy(np.concatenate(entropy)),
        )
        return self.policy.complete_scores(scores, pool)


def _check_context(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raises RecipeError where the longest transition that the recipe allows would not fit the model."""
    context = getattr(config, "max_position_embeddings", None)
    rollout, observed = recipe.rollout, recipe.wm.max_observation_tokens if recipe.wm.enabled else 0
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens + observed
    if context is not None and longest > context:
        raise RecipeError(
            f"rollout.max_prompt_tokens: {rollout.max_prompt_tokens} + {rollout.max_response_tokens} of the response"
            f" + {observed} of the observation are more than the model's context of {context} tokens"
        )
