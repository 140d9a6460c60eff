"""The parts that a recipe chooses, put together in one place: benchmark, policy, engine, publisher,
collector."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedConfig

from paw_hpc.envs.base import Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.experience import Group, Pool, Scores
from paw_hpc.policy.backend import Policy
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.loading import resolve_device, tokenizer_key
from paw_hpc.recipe import Recipe
from paw_hpc.recipe.doors import ENGINES
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector, CollectStats, PlaySettings
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.playing import Parts, Playing
from paw_hpc.run.limits import allow_open_files
from paw_hpc.system import distributed
from paw_hpc.system.errors import RecipeError

if TYPE_CHECKING:  # megatron-core is an extra of the package
    from paw_hpc.policy.megatron.policy import MegatronPolicy

T = TypeVar("T")


def processes_of(recipe: Recipe) -> AbstractContextManager[Any]:
    """Inside, the processes of a run have met; to be entered before its machinery is made. Nothing to do for
    a backend of one process."""
    if recipe.policy.backend == "huggingface" or dist.is_initialized():
        return contextlib.nullcontext()
    return distributed.joined(
        gpu=resolve_device(recipe.model).type == "cuda", timeout_s=recipe.megatron.timeout_s
    )


def for_started_processes(recipe: Recipe) -> Recipe:
    """A recipe as the processes that were started can run it: one process takes the whole model, whatever
    layout trained it."""
    if recipe.policy.backend == "huggingface" or distributed.Process.of_environment().processes > 1:
        return recipe
    whole = {
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "virtual_pipeline": None,
        "context_parallel": 1,
        "data_parallel": 1,
    }
    return recipe.model_copy(
        update={"megatron": recipe.megatron.model_copy(update=whole | {"sequence_parallel": False})}
    )


class Machinery:
    """Everything of a run that holds processes or weights. Use as a context manager: leaving it ends the
    environment workers.

    With a backend of many processes every one of them has one, and calls the same methods in the same order.

    Args:
        runner: its event loop serves environments and engine for the whole run.
        workspace: where SGLang servers log and exchange weights; none: a temporary folder.
    """

    def __init__(self, recipe: Recipe, runner: EventLoop, workspace: Path | None = None):
        allow_open_files(recipe)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.recipe, self._runner = recipe, runner
        self._ahead: tuple[int, Future[tuple[list[Group], CollectStats]]] | None = None
        self.benchmark = make_benchmark(recipe.env)
        policy, config = _make_policy(recipe)
        self.policy: Policy = policy
        self.chat = ChatFormat(policy.tokenizer, tokenizer_key(recipe.model))
        self.playing: Playing = ENGINES.find(recipe.rollout.engine).make(
            Parts(recipe, policy, runner, workspace)
        )
        self.engine, self.publisher, self.players = (
            self.playing.engine,
            self.playing.publisher,
            self.playing.players,
        )
        _check_context(recipe, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ahead is not None:
            self._runner.cancel(self._ahead[1])
        self._runner.run(self.benchmark.close())
        self.playing.close()

    def describe(self) -> str:
        """What is trained, where, on what; and a warning where the model's dtype makes that many times
        slower."""
        slow = resolve_device(self.recipe.model).type == "cpu" and self.recipe.model.dtype != "float32"
        warning = (
            f" (model.dtype={self.recipe.model.dtype}: most CPUs are many times faster with float32)"
            if slow
            else ""
        )
        return f"{self.policy.describe()}{warning}, {self.benchmark.source}"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, from the event loop of the run (on a rank that plays: requests to its engine)."""
        return self._runner.run(coroutine, serve=True)

    def play(
        self,
        tasks: Sequence[Task],
        members: int,
        index: int,
        *,
        purpose: str,
        temperature: float,
        first_group: int = 0,
        leave: Callable[[], bool] | None = None,
    ) -> tuple[list[Group], CollectStats]:
        """Play tasks with the current weights, shared by all players; `purpose` and `index` name the seeds
        (see `Collector.collect`).

        Raises:
            EvaluationLeft: `leave` said, while it was played, that nobody waits for it any more.
        """
        collector = self._collector(purpose, temperature)

        def play(share: Sequence[Task], first: int) -> tuple[list[Group], CollectStats]:
            return self._runner.run(
                collector().collect(share, members, index, first), serve=True, leave=leave
            )

        return self.players.play(tasks, first_group, play)

    def collect(self, tasks: Sequence[Task], members: int, update: int) -> tuple[list[Group], CollectStats]:
        """The groups of one training update; where `collect_ahead` has begun to play them, those."""
        collector, ahead = self._collector("train", self.recipe.rollout.temperature), self._ahead
        self._ahead = None

        def play(share: Sequence[Task], first: int) -> tuple[list[Group], CollectStats]:
            begun = (
                ahead[1]
                if ahead is not None and ahead[0] == update
                else self._runner.start(collector().collect(share, members, update, first))
            )
            groups, stats = self._runner.wait(begun, serve=True)
            stats.engine = self.playing.collected()
            return groups, stats

        return self.players.play(tasks, 0, play)

    def collect_ahead(self, tasks: Sequence[Task], members: int, update: int) -> None:
        """Begin to play the groups of an update while another one is trained (`rollout.staleness: 1`)."""
        if self.playing.ahead:
            collector = self._collector("train", self.recipe.rollout.temperature)
            self._ahead = update, self._runner.start(collector().collect(tasks, members, update))

    def _collector(self, purpose: str, temperature: float) -> Callable[[], Collector]:
        """Makes the collector, on ranks that play."""
        rollout = self.recipe.rollout
        settings = PlaySettings(
            run_seed=self.recipe.seed,
            purpose=purpose,
            temperature=temperature,
            max_prompt_tokens=rollout.max_prompt_tokens,
            max_response_tokens=rollout.max_response_tokens,
            max_observation_tokens=self.recipe.wm.max_observation_tokens,
            seeds="place" if purpose == "train" else self.recipe.eval.seeds,
            conversation=self.recipe.env.conversation,
        )

        def collector() -> Collector:
            assert self.engine is not None  # only players are asked
            return Collector(self.benchmark, self.engine, self.chat, settings)

        return collector

    def scores_of(self, pool: Pool, stats: CollectStats) -> Scores:
        """Old log-probs and entropies as the in-process engine reported them: its weights are the trainer's
        own, so no pass is spent on them."""
        entropy = [
            stats.entropies[pool.episodes[int(e)].index, int(s)]
            for e, s in zip(pool.episode, pool.step, strict=True)
        ]
        scores = Scores(
            old_logp=torch.from_numpy(np.concatenate([t.response_logprobs for t in pool.transitions])),
            entropy=torch.from_numpy(np.concatenate(entropy)),
        )
        return self.policy.complete_scores(scores, pool)


def _make_policy(recipe: Recipe) -> tuple[HuggingFacePolicy | MegatronPolicy, PreTrainedConfig]:
    if recipe.policy.backend == "huggingface":
        policy = HuggingFacePolicy(recipe)
        return policy, policy.model.config
    if not dist.is_initialized():
        raise RecipeError(
            "policy.backend: megatron is for `paw train` and `paw eval`; other commands take huggingface"
        )
    try:
        from paw_hpc.policy.megatron.policy import MegatronPolicy  # takes seconds to import
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("megatron"):
            raise
        raise RecipeError(
            "policy.backend: megatron-core is not installed; install paw-hpc[megatron], or use huggingface"
        ) from None
    many = MegatronPolicy(recipe)
    return many, many.hf_config


def _check_context(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Raises RecipeError where the longest transition that the recipe allows would not fit the model."""
    context = getattr(config, "max_position_embeddings", None)
    rollout, observed = recipe.rollout, recipe.wm.max_observation_tokens if recipe.wm.enabled else 0
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens + observed
    if context is not None and longest > context:
        raise RecipeError(
            f"rollout.max_prompt_tokens: {rollout.max_prompt_tokens} + {rollout.max_response_tokens} of "
            "the response"
            f" + {observed} of the observation are more than the model's context of {context} tokens"
        )
