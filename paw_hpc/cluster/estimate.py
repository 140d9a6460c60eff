"""How long an update will take, from assumptions that are printed with it. Good to a factor of two: it
compares layouts, it does not promise."""

from __future__ import annotations

from dataclasses import dataclass

from paw_hpc.cluster.layout import ClusterLayout
from paw_hpc.cluster.memory import kv_bytes_per_token
from paw_hpc.cluster.models import parameters
from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.recipe import Recipe
from paw_hpc.system.gpus import BYTES_PER_S, PEAK_FLOPS


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the recipe does not say."""

    steps_share: float = 0.6
    """Mean length of an episode, as a share of env.max_steps."""
    prompt_share: float = 0.35
    """Mean prompt, as a share of rollout.max_prompt_tokens."""
    response_share: float = 0.3
    """Mean response, as a share of rollout.max_response_tokens."""
    training_efficiency: float = 0.35
    """Model FLOPs of training and scoring, as a share of the GPU's peak."""
    prefill_efficiency: float = 0.4
    decode_bandwidth: float = 0.6
    """Share of the memory bandwidth that decoding reaches."""
    environment_step_s: float = 0.02
    publish_bytes_per_s: float = 2e9
    """Of new weights to the servers, by way of a shared disk."""

    def lines(self) -> list[str]:
        """For `paw plan`."""
        return [
            f"episodes last {self.steps_share:.0%} of env.max_steps; prompts are {self.prompt_share:.0%}, "
            f"responses {self.response_share:.0%}"
            " of their limits",
            f"training reaches {self.training_efficiency:.0%} of the peak, prefill "
            f"{self.prefill_efficiency:.0%},"
            f" decoding {self.decode_bandwidth:.0%} of the memory bandwidth, without a prefix cache",
            f"an environment step takes {self.environment_step_s * 1000:.0f} ms; weights travel at "
            f"{self.publish_bytes_per_s / 1e9:.0f} GB/s",
        ]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per phase of one update."""

    play_s: float
    score_s: float
    train_s: float
    publish_s: float
    overlapped: bool
    """rollout.staleness 1: the next episodes are played while this update trains."""

    @property
    def update_s(self) -> float:
        busy = self.score_s + self.train_s
        return (max(self.play_s, busy) if self.overlapped else self.play_s + busy) + self.publish_s


def step_time(
    recipe: Recipe, layout: ClusterLayout, model: Architecture, given: Assumptions
) -> StepTime | None:
    """None on CPU nodes, whose speed nobody states."""
    if not layout.gpus_per_node:
        return None
    name, r = recipe.cluster.gpu, recipe.rollout
    peak, bandwidth = PEAK_FLOPS[name.removesuffix("-40")], BYTES_PER_S[name]
    episodes, size = r.groups * r.group_size, parameters(model)
    turns = max(1.0, given.steps_share * recipe.env.max_steps)
    prompt, response = given.prompt_share * r.max_prompt_tokens, given.response_share * r.max_response_tokens
    transitions = episodes * turns
    observation = recipe.wm.alpha * 0.5 * recipe.wm.max_observation_tokens if recipe.wm.enabled else 0.0
    trainers = layout.trainer.processes * given.training_efficiency * peak
    passes = (
        2 * (1 + (recipe.algorithm.kl_coefficient > 0))
        if recipe.algorithm.old_logp == "recompute"
        else 2 * (recipe.algorithm.kl_coefficient > 0)
    )
    again = (
        recipe.megatron.recompute == "full"
        if recipe.policy.backend == "megatron"
        else recipe.model.gradient_checkpointing
    )
    train_flops = (
        (8 if again else 6) * size * transitions * (prompt + response + observation) * recipe.optimizer.epochs
    )
    groups = _server_groups(recipe, layout)
    per_group = episodes / groups
    gpus = recipe.rollout.fleet.tensor_parallel if r.starts_servers else 1
    bytes_per = 2 if recipe.model.dtype == "bfloat16" else 4
    token_s = (bytes_per * size + per_group * kv_bytes_per_token(model, bytes_per) * (prompt + response)) / (
        gpus * bandwidth * given.decode_bandwidth
    )
    prefill_s = 2 * size * per_group * prompt / (gpus * peak * given.prefill_efficiency)
    return StepTime(
        play_s=turns * (response * token_s + prefill_s + given.environment_step_s),
        score_s=passes * size * transitions * (prompt + response) / trainers,
        train_s=train_flops / trainers,
        publish_s=bytes_per * size / given.publish_bytes_per_s if r.starts_servers else 0.0,
        overlapped=r.staleness > 0,
    )


def _server_groups(recipe: Recipe, layout: ClusterLayout) -> int:
    """How many engines share the episodes."""
    if recipe.rollout.own_weights:
        m = recipe.megatron
        model = (
            m.tensor_parallel * m.pipeline_parallel * m.context_parallel
            if recipe.policy.backend == "megatron"
            else 1
        )
        return max(1, layout.trainer.processes // model)
    return (
        layout.rollout.processes
        if layout.rollout
        else max(1, layout.own_servers, len(recipe.rollout.fleet.addresses))
    )
