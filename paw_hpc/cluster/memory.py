"""Bytes per GPU of a recipe in a layout, from shapes alone. An estimate to refuse what cannot fit, not a
profile.

Weights, gradients and optimizer states are exact for what the backends allocate. Activations follow
Korthikanti et al. 2022 (arXiv:2205.05198), for a gated feed-forward and attention that keeps no score matrix:
what the backward pass of one token of one layer needs, in bytes. `OTHER_BYTES` stands for the CUDA context,
communication buffers and fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from paw_hpc.cluster.layout import ClusterLayout
from paw_hpc.cluster.models import layer_parameters, parameters
from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.recipe import Recipe
from paw_hpc.system.gpus import GIB, GPU_BYTES

OTHER_BYTES = 4 * GIB


@dataclass(frozen=True, slots=True)
class TrainerMemory:
    """Bytes on the fullest GPU of the trainer."""

    weights: int
    gradients: int
    optimizer: int
    """Float32 masters and both moments."""
    reference: int
    critic: int
    engine_copy: int
    """The in-process engine's own weights (Megatron) and its KV cache."""
    activations: int
    head: int
    """One chunk of logits and what is computed in its place, and the gathered hidden states of a
    micro-batch."""
    other: int = OTHER_BYTES

    @property
    def static(self) -> int:
        """What stays between two updates."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.reference
            + self.critic
            + self.engine_copy
            + self.other
        )

    @property
    def total(self) -> int:
        return self.static + self.activations + self.head


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Bytes on each GPU of a server."""

    weights: int
    cache: int
    """What `rollout.fleet.memory_fraction` leaves for keys and values; negative: not even the weights fit."""
    bytes_per_token: int
    """Keys and values of one token on one GPU."""
    longest_request_tokens: int
    other: int = OTHER_BYTES

    @property
    def total(self) -> int:
        return self.weights + max(0, self.cache) + self.other

    @property
    def requests(self) -> int:
        """Longest requests that the cache holds at once."""
        return max(0, self.cache) // (self.bytes_per_token * self.longest_request_tokens)


def trainer_memory(recipe: Recipe, layout: ClusterLayout, model: Architecture) -> TrainerMemory:
    """Of the fullest rank (first pipeline stage: embedding, and the most micro-batches in flight)."""
    m, megatron = recipe.megatron, recipe.policy.backend == "megatron"
    tensor, pipeline, context = (
        (m.tensor_parallel, m.pipeline_parallel, m.context_parallel) if megatron else (1, 1, 1)
    )
    data = layout.trainer.processes // (tensor * pipeline * context)
    stage = _stage_parameters(model, tensor, pipeline)
    bytes_per = 2 if recipe.model.dtype == "bfloat16" else 4
    # In float32 without Megatron the parameters are their own masters.
    gradients, masters = 4, (12 if megatron or bytes_per == 2 else 8)
    shards = data * context if megatron and m.distributed_optimizer else 1
    whole = bytes_per * parameters(model)
    wants_reference = recipe.algorithm.kl_coefficient > 0 and not (megatron and m.reference_on_cpu)
    local = recipe.rollout.own_weights
    cache = (
        kv_bytes_per_token(model, bytes_per) * longest_request(recipe) * recipe.rollout.max_batch
        if local
        else 0
    )
    critic = (
        (bytes_per + gradients) * stage + masters * stage // shards
        if recipe.algorithm.values is not None
        else 0
    )
    return TrainerMemory(
        weights=bytes_per * stage,
        gradients=gradients * stage,
        optimizer=masters * stage // shards,
        reference=bytes_per * stage if wants_reference else 0,
        critic=critic,
        engine_copy=(whole if local and megatron else 0) + cache,
        activations=_activations(recipe, model, tensor, pipeline, context, bytes_per),
        head=_head(recipe, model, tensor),
    )


def server_memory(recipe: Recipe, model: Architecture) -> ServerMemory:
    """Of one GPU of one server."""
    fleet = recipe.rollout.fleet
    bytes_per = 2 if recipe.model.dtype == "bfloat16" else 4
    weights = bytes_per * parameters(model) // fleet.tensor_parallel
    cache = int(fleet.memory_fraction * GPU_BYTES[recipe.cluster.gpu]) - weights
    per_token = kv_bytes_per_token(model, bytes_per) // min(fleet.tensor_parallel, model.kv_heads)
    if fleet.cache_tokens is not None:
        cache = min(cache, fleet.cache_tokens * per_token)
    return ServerMemory(weights, cache, per_token, longest_request(recipe))


def kv_bytes_per_token(model: Architecture, bytes_per: int) -> int:
    """Keys and values of one token in all layers."""
    return 2 * model.layers * model.kv_heads * model.head_dim * bytes_per


def longest_request(recipe: Recipe) -> int:
    """Tokens of the longest prompt and response."""
    return recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens


def too_much(recipe: Recipe, layout: ClusterLayout, model: Architecture) -> str | None:
    """Why the layout does not fit its GPUs, or None. CPU nodes are not judged."""
    capacity = GPU_BYTES[recipe.cluster.gpu]
    if not layout.gpus_per_node:
        return None
    trainer = trainer_memory(recipe, layout, model)
    if trainer.total > capacity:
        return (
            f"the trainer needs {trainer.total / GIB:.1f} GiB of a GPU that has {capacity / GIB:.0f} "
            f"({recipe.cluster.gpu})"
        )
    if not recipe.rollout.starts_servers:
        return None
    server = server_memory(recipe, model)
    if server.requests < 1:
        return (
            f"a server has {max(0, server.cache) / GIB:.1f} GiB for keys and values beside "
            f"{server.weights / GIB:.1f} GiB of weights:"
            f" not one request of {server.longest_request_tokens} tokens fits "
            "(rollout.fleet.memory_fraction, rollout.fleet.tensor_parallel)"
        )
    if recipe.rollout.fleet.colocated and trainer.static + server.weights + server.cache > capacity:
        total = (trainer.static + server.weights + server.cache) / GIB
        return (
            f"trainer and server share a GPU while episodes are played: {total:.1f} GiB of "
            f"{capacity / GIB:.0f} (lower rollout.fleet.memory_fraction)"
        )
    return None


def _stage_parameters(model: Architecture, tensor: int, pipeline: int) -> int:
    """Parameters on the fullest rank: the first stage, which holds the embedding, or the last, which holds an
    output layer of its own (as large)."""
    vocabulary = -(-model.vocabulary // tensor) * model.hidden
    outer = vocabulary if pipeline > 1 or model.tied else 2 * vocabulary
    return -(-model.layers // pipeline) * layer_parameters(model) // tensor + outer


def _activations(
    recipe: Recipe, model: Architecture, tensor: int, pipeline: int, context: int, bytes_per: int
) -> int:
    """Of all micro-batches that are in flight on the first stage: as many as there are stages, with 1 /
    stages of the layers each."""
    m = recipe.megatron
    tokens = -(-max(recipe.optimizer.max_tokens_per_micro_batch, longest_request(recipe)) // context)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # Kept per token and layer: inputs and outputs of both norms and both residuals (not split without
    # sequence parallelism); queries, keys, values and the attention's output; gate, up, their activation and
    # product.
    outside = 6 * model.hidden
    inside = 2 * queries + 2 * keys + 4 * model.ffn_hidden
    per_layer = (outside / (tensor if m.sequence_parallel else 1) + inside / tensor) * bytes_per
    full = (
        m.recompute == "full" if recipe.policy.backend == "megatron" else recipe.model.gradient_checkpointing
    )
    if not full:
        return int(per_layer * model.layers * tokens)
    kept = model.hidden * bytes_per / (tensor if m.sequence_parallel else 1)
    return int((kept * model.layers + per_layer * m.recompute_layers) * tokens)


def _head(recipe: Recipe, model: Architecture, tensor: int) -> int:
    # float32 logits, and their gradient in bfloat16
    chunk = recipe.model.head_chunk_rows * -(-model.vocabulary // tensor) * (4 + 2)
    gradient = -(-model.vocabulary // tensor) * model.hidden * 4
    hidden = max(recipe.optimizer.max_tokens_per_micro_batch, longest_request(recipe)) * model.hidden * 4
    return chunk + gradient + hidden
