"""The one-process policy: any causal LM of `transformers`, or a tiny one from scratch, on the CPU or one GPU.

Samples are packed without padding, only scored rows reach the LM head, and what the paper asks for is already
in the rows' streams: this file sums weight * loss and steps the optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from paw_hpc.experience import Batch
from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss
from paw_hpc.objective.plan import micro_batches
from paw_hpc.objective.policy_loss import Sums, make_row_loss, make_value_loss, row_metrics, value_metrics
from paw_hpc.objective.prefixes import Prefixes
from paw_hpc.policy import checkpoint
from paw_hpc.policy.backend import Metrics, rows_from_device
from paw_hpc.policy.checkpoint_folder import OTHER_WEIGHTS, has_moved
from paw_hpc.policy.convert.architecture import parameter_count
from paw_hpc.policy.critic import Critic
from paw_hpc.policy.fingerprint import fingerprint
from paw_hpc.policy.loading import load_model, load_tokenizer, resolve_device
from paw_hpc.policy.optimizer import Optimizer
from paw_hpc.policy.packed import Packing, hidden_states, use_packed_attention
from paw_hpc.policy.throughput import ModelCost, memory_peak_bytes, peak_flops, rates
from paw_hpc.policy.trainer import Trained, Trainer
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import CheckpointError


@dataclass(slots=True)
class _Pass:
    """One micro-batch on the device: what is computed of it, and who sees whom."""

    transition: torch.Tensor  # int64[N], on the CPU
    batch: Batch
    packing: Packing


class HuggingFacePolicy(Trainer):
    """Implements `paw_hpc.policy.backend.Policy`. `model` and `tokenizer` are public: an in-process engine
    generates with the live weights.

    Raises:
        RecipeError: no such model, a folder without weights or tokenizer, no GPU where one was asked for.
        UserError: an architecture that cannot run packed.
    """

    def __init__(self, recipe: Recipe, *, device: torch.device | str | None = None) -> None:
        self.recipe = recipe
        self.device = torch.device(device) if device is not None else resolve_device(recipe.model)
        self.tokenizer = load_tokenizer(recipe.model)
        self.model = load_model(recipe, self.tokenizer)
        nn.Module.to(self.model, self.device)
        self.model.train()  # gradient checkpointing asks for it; dropout is off either way
        use_packed_attention(self.model)
        # The reference is the policy before any update. Model folders and seeds give it again after a resume,
        # so checkpoints need not hold it.
        self.reference = _frozen(self.model) if recipe.algorithm.kl_coefficient > 0 else None
        self.initial_fingerprint = fingerprint(self.model.named_parameters())
        self.critic = Critic(self.model, recipe.seed) if recipe.algorithm.values is not None else None
        self.optimizer = Optimizer(self.model, recipe.optimizer.lr, recipe.optimizer, recipe.warmup_updates)
        self.critic_optimizer = (
            None
            if self.critic is None
            else Optimizer(self.critic, recipe.optimizer.critic_lr, recipe.optimizer, recipe.warmup_updates)
        )
        self._computed_tokens = 0
        """Of the policy, in an update so far."""
        self._head_options: dict[str, Any] = {
            "temperature": recipe.rollout.temperature,
            "chunk_rows": recipe.model.head_chunk_rows,
        }
        if recipe.model.gradient_checkpointing:
            for module in (self.model, *([] if self.critic is None else [self.critic.body])):
                module.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

    def _begin(self) -> None:
        self._computed_tokens = 0

    def _costs(self, batch: Batch, seconds: float) -> Metrics:
        epochs, cost = self.recipe.optimizer.epochs, ModelCost.of(self.model.config)
        share = self._computed_tokens / (batch.num_tokens * epochs)
        flops = None if cost is None else cost.flops(batch, computed=share) * epochs
        peak = peak_flops(self.device, getattr(torch, self.recipe.model.dtype))
        costs = rates(
            batch.num_tokens * epochs,
            batch.num_rows * epochs,
            seconds,
            memory_peak_bytes(self.device),
            flops,
            peak,
        )
        return costs | ({"shared_prefix_share": 1 - share} if self.recipe.policy.share_prefixes else {})

    def state(self) -> dict[str, Any]:
        """Weights, moments and the fingerprint of the initial policy, as copies on the CPU. Nothing here
        draws random numbers."""
        return {
            "initial_fingerprint": self.initial_fingerprint,
            "policy": self.optimizer.state(),
            "critic": None if self.critic_optimizer is None else self.critic_optimizer.state(),
        }

    def load_state(self, state: Mapping[str, Any], *, moved: bool = False) -> None:
        """The inverse of `state`.

        Args:
            moved: the initial model was found in another place than the run began with.

        Raises:
            CheckpointError: shapes or names disagree, or the initial model is not the one that the run began
                with, where that matters.
        """
        if (self.reference is not None or moved) and state["initial_fingerprint"] != self.initial_fingerprint:
            raise CheckpointError(OTHER_WEIGHTS)
        if (state["critic"] is None) != (self.critic_optimizer is None):
            raise CheckpointError(
                f"algorithm.name: {self.recipe.algorithm.name}, but the checkpoint has "
                f"{'no' if state['critic'] is None else 'a'} critic"
            )
        self.optimizer.load_state(state["policy"], "policy")
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state(state["critic"], "critic")

    def save(
        self, directory: Path, update: int, meta: Mapping[str, Any], *, keep: int, wait: bool = True
    ) -> None:
        """See `Policy.save`; always waits."""
        checkpoint.save(directory, update, self.state(), meta, keep=keep)

    def resume(self, directory: Path, may_differ: Collection[str] = ()) -> int:
        """See `Policy.resume`."""
        newest = checkpoint.latest(directory)
        if newest is None:
            return 0
        state, meta = checkpoint.load(newest, self.recipe, may_differ)
        self.load_state(state, moved=has_moved(meta, self.recipe))
        return int(meta["update"])

    def describe(self) -> str:
        """See `Policy.describe`."""
        return (
            f"{parameter_count(sum(p.numel() for p in self.model.parameters()))} parameters on {self.device}"
        )

    def export(self, folder: Path) -> None:
        """See `Policy.export`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _parts(self, batch: Batch) -> Iterator[_Pass]:
        """The micro-batches. Nothing is kept of one when the next is asked for."""
        share = self.recipe.policy.share_prefixes
        for part in micro_batches(batch, self.recipe.optimizer.max_tokens_per_micro_batch, share):
            prefixes = Prefixes.of(part) if share else None
            packing = Packing.of(part.cu_seqlens, self.device, prefixes)
            computed = part if prefixes is None else prefixes.applied(part)
            yield _Pass(part.transition, computed.to(self.device), packing)

    def _hidden_rows(self, model: PreTrainedModel, part: _Pass) -> torch.Tensor:
        """[R, H]: hidden states at the scored rows."""
        batch = part.batch
        return hidden_states(model, batch.tokens, batch.position_ids, part.packing).index_select(
            0, batch.row_position
        )

    @property
    def has_reference(self) -> bool:
        return self.reference is not None

    @property
    def has_critic(self) -> bool:
        return self.critic is not None

    @torch.no_grad()
    def _rows(self, model: Literal["policy", "reference"], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainer._rows`."""
        scoring = self.model if model == "policy" else self.reference
        assert scoring is not None
        found, order = [], []
        for part in self._parts(batch):
            if not part.batch.num_rows:
                continue
            hidden, target = self._hidden_rows(scoring, part), part.batch.row_target
            scores = linear_logprob_entropy(hidden, _head(scoring), target, **self._head_options)
            found.append(torch.stack(scores).float())
            order.append(batch.rows_of(part.transition))
        logp, entropy = rows_from_device(found, order, torch.empty(2, batch.num_rows))
        return logp, entropy

    @torch.no_grad()
    def _values(self, batch: Batch) -> torch.Tensor:
        """See `Trainer._values`."""
        assert self.critic is not None
        critic, found, order = self.critic, list[torch.Tensor](), list[torch.Tensor]()
        for part in self._parts(batch):
            found.append(_part_values(critic, part)[None])
            order.append(batch.rows_of(part.transition))
        return rows_from_device(found, order, torch.empty(1, batch.num_rows))[0]

    def _accumulate(self, model: Trained, batch: Batch, sums: list[Sums]) -> torch.Tensor:
        """See `Trainer._accumulate`."""
        return (
            self._accumulate_policy(batch, sums)
            if model == "policy"
            else self._accumulate_critic(batch, sums)
        )

    def _step(self, model: Trained, loss: torch.Tensor, update: int) -> tuple[float, bool]:
        """See `Trainer._step`."""
        optimizer = self.optimizer if model == "policy" else self.critic_optimizer
        assert optimizer is not None
        return optimizer.step(loss, update)

    def _learning_rate(self, update: int) -> float:
        return self.optimizer.learning_rate(update)

    def _accumulate_policy(self, mini: Batch, sums: list[Sums]) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for part in self._parts(mini):
            batch = part.batch
            if not batch.num_rows:
                continue
            self._computed_tokens += batch.num_tokens
            self.optimizer.collect_directly(_head(self.model))
            hidden = self._hidden_rows(self.model, part)
            row_loss = make_row_loss(batch, self.recipe)
            result = linear_row_loss(
                hidden, _head(self.model), batch.row_target, row_loss, **self._head_options
            )
            result.loss.backward()
            total += result.loss.detach()
            sums.append(row_metrics(batch, result.logp, result.entropy, self.recipe))
            if self._seen is not None:
                self._seen.append((part.transition, None, result.logp.detach()))
        return total

    def _accumulate_critic(self, mini: Batch, sums: list[Sums]) -> torch.Tensor:
        assert self.critic is not None
        total = torch.zeros((), device=self.device)
        for part in self._parts(mini):
            if not part.batch.num_rows:
                continue
            values = _part_values(self.critic, part)
            loss = make_value_loss(part.batch, self.recipe)(values).sum()
            loss.backward()
            total += loss.detach()
            sums.append(value_metrics(part.batch, values.detach(), self.recipe))
        return total


def _part_values(critic: Critic, part: _Pass) -> torch.Tensor:
    batch = part.batch
    return critic(batch.tokens, batch.position_ids, part.packing, batch.row_position)


def _head(model: PreTrainedModel) -> nn.Parameter:
    """[V, H]."""
    return model.get_output_embeddings().weight


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(False)
