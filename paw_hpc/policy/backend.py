"""What a policy backend must do. The loop knows nothing else of it; `huggingface` (one process) and `megatron` implement it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from paw_hpc.experience import Batch, Pool, Scores

Metrics = dict[str, float]


class Policy(Protocol):
    """One trainable policy (with its reference and critic where the recipe asks for them)."""

    def score(self, pool: Pool) -> Scores:
        """Old log-probs and entropies of every action token (and reference log-probs, values) in one no-grad pass per model."""
        ...

    def complete_scores(self, scores: Scores, pool: Pool) -> Scores:
        """Scores whose old log-probs and entropies are known already (from the engine), with reference log-probs and values where the recipe needs
        them."""
        ...

    def update(self, batch: Batch, update: int) -> Metrics:
        """All optimizer steps of one update on the planned batch (PPO epochs and mini-batches; RL and WM rows in one forward pass).

        Returns the metrics of the update, each a global mean or sum. A step whose loss or gradient norm is not finite is skipped and counted in
        `skipped_steps`.
        """
        ...

    def observation_cross_entropy(self, pool: Pool) -> Metrics:
        """Diagnostic, no-grad: mean cross-entropy (nats per token) of the true next observations of a pool, and `observation_tokens`."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Everything that a checkpoint needs of this backend: weights, optimizer, critic, random states."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`. Raises CheckpointError where shapes or names disagree."""
        ...

    def export(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as a Hugging Face folder that `transformers` loads."""
        ...
