"""What a policy backend must do. The loop knows nothing else of it; `huggingface` (one process) and
`megatron` implement it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from paw_hpc.experience import Batch, Pool, Scores

Metrics = dict[str, float]
Seen = list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]
"""Of each micro-batch: its samples, by their transitions (int64), which of their rows these are (int64 on the
CPU; None: all), and the log-probs of these rows' targets (float[R]); on the device."""


class Policy(Protocol):
    """One trainable policy (with its reference and critic where the recipe asks for them)."""

    tokenizer: PreTrainedTokenizerBase

    def score(self, pool: Pool) -> Scores:
        """Old log-probs and entropies of every action token (and reference log-probs, values) in one no-grad
        pass per model."""
        ...

    def complete_scores(self, scores: Scores, pool: Pool) -> Scores:
        """Scores whose old log-probs and entropies are known already (from the engine), with reference
        log-probs and values where the recipe needs them."""
        ...

    def update(self, batch: Batch, update: int, row_logp: torch.Tensor | None = None) -> Metrics:
        """All optimizer steps of one update on the planned batch (PPO epochs and mini-batches; RL and WM rows
        in one forward pass).

        Args:
            row_logp: float32[R] on the CPU, on every rank or on none: filled with the log-prob of every row's
                target as the pass of the first epoch sees it, which with mini-batches is after the steps of
                those before; 0 where none saw it (`policy.skip_zero_gradient`).

        Returns the metrics of the update, each a global mean or sum. A step whose loss or gradient norm is
        not finite is skipped and counted in `skipped_steps`.
        """
        ...

    def observation_logp(self, pool: Pool) -> torch.Tensor:
        """float32[O]: log-probs of the tokens of the true next observations, in pool order, at the
        temperature that the world-model loss sees. Diagnostic, no-grad."""
        ...

    def observation_cross_entropy(self, pool: Pool) -> Metrics:
        """Diagnostic, no-grad: mean cross-entropy (nats per token) of the true next observations of a pool,
        and `observation_tokens`."""
        ...

    def save(
        self, directory: Path, update: int, meta: Mapping[str, Any], *, keep: int, wait: bool = True
    ) -> None:
        """Write a checkpoint (weights, optimizer, critic, random states), whole or not at all, and keep the
        newest `keep` in the directory.

        Args:
            update: updates that are done.
            meta: JSON values; `meta["recipe"]` lets `resume` refuse the checkpoint of another recipe.
            wait: return when it is on the disk. Otherwise a backend may write in the background, until the
                next call at the latest.

        Raises:
            StorageError: the disk is full; the earlier checkpoints stay.
        """
        ...

    def resume(self, directory: Path, may_differ: Collection[str] = ()) -> int:
        """Load the newest whole checkpoint; returns the updates that are done (0: there is none). Torn ones
        are passed over with a warning.

        Args:
            may_differ: recipe keys, or sections, in which the checkpoint's recipe may differ beside those
                that never matter (see recipe/resume.py).

        Raises:
            CheckpointError: the newest whole one is of another recipe, its shapes or names disagree, or there
                are some and none is whole.
        """
        ...

    def describe(self) -> str:
        """Its size, and where it is computed, for the log."""
        ...

    def export(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer as a Hugging Face folder that `transformers` loads."""
        ...


def rows_from_device(
    parts: Sequence[torch.Tensor], order: Sequence[torch.Tensor], out: torch.Tensor
) -> torch.Tensor:
    """What micro-batches found, put where it belongs: fetched from the device once, at the end, so that a GPU
    does not stand still between them.

    Args:
        parts: float32[n, rows of a micro-batch] on the device.
        order: int64[rows of a micro-batch] on the CPU, the places of these rows.
        out: float32[n, R] on the CPU, filled and returned; places that no micro-batch has keep their value.
    """
    if parts:
        out[:, torch.cat(list(order))] = torch.cat(list(parts), dim=1).float().cpu()
    return out
