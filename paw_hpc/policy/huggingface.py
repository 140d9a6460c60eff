"""The one-process policy: any causal LM of `transformers`, or a tiny one from scratch, on the CPU or one GPU.

Samples are packed without padding, only scored rows reach the LM head, and what the paper asks for is already in the rows' streams: this file sums
weight * loss and steps the optimizer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from paw_hpc.experience import OBSERVATION, Batch, Pool, Scores
from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss
from paw_hpc.objective.plan import last_prompt_tokens, micro_batches, mini_batches, pack
from paw_hpc.objective.policy_loss import Sums, add_sums, finalize, make_row_loss, make_value_loss, row_metrics, value_metrics
from paw_hpc.policy import checkpoint
from paw_hpc.policy.backend import Metrics, Seen, rows_from_device
from paw_hpc.policy.checkpoint_folder import OTHER_WEIGHTS, has_moved
from paw_hpc.policy.convert.architecture import parameter_count
from paw_hpc.policy.critic import Critic, critic_batch
from paw_hpc.policy.fingerprint import fingerprint
from paw_hpc.policy.loading import load_model, load_tokenizer, resolve_device
from paw_hpc.policy.optimizer import Optimizer
from paw_hpc.policy.packed import Packing, hidden_states, use_packed_attention
from paw_hpc.policy.throughput import ModelCost, memory_peak_bytes, peak_flops, rates
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import CheckpointError
from paw_hpc.system.seeding import derive_seed

NO_IDS = np.empty(0, dtype=np.int32)


class HuggingFacePolicy:
    """Implements `paw_hpc.policy.backend.Policy`. `model` and `tokenizer` are public: an in-process engine generates with the live weights.

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
        # The reference is the policy before any update. Model folders and seeds give it again after a resume, so checkpoints need not hold it.
        self.reference = _frozen(self.model) if recipe.algorithm.kl_coefficient > 0 else None
        self.initial_fingerprint = fingerprint(self.model.named_parameters())
        self.critic = Critic(self.model, recipe.seed) if recipe.algorithm.name == "ppo" else None
        self.optimizer = Optimizer(self.model, recipe.optimizer.lr, recipe.optimizer, recipe.warmup_updates)
        self.critic_optimizer = (
            None if self.critic is None else Optimizer(self.critic, recipe.optimizer.critic_lr, recipe.optimizer, recipe.warmup_updates)
        )
        self._head_options: dict[str, Any] = {"temperature": recipe.rollout.temperature, "chunk_rows": recipe.model.head_chunk_rows}
        if recipe.model.gradient_checkpointing:
            for module in (self.model, *([] if self.critic is None else [self.critic.body])):
                module.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

    @torch.no_grad()
    def score(self, pool: Pool) -> Scores:
        """Old log-probs and entropies of every action token, reference log-probs, values: one no-grad pass per model (see `Policy.score`)."""
        return self.complete_scores(Scores(*self._rows(self.model, pack(pool, [NO_IDS] * len(pool)))), pool)

    @torch.no_grad()
    def complete_scores(self, scores: Scores, pool: Pool) -> Scores:
        """Adds what the reference and the critic say (see `Policy.complete_scores`)."""
        batch = pack(pool, [NO_IDS] * len(pool)) if self.reference is not None or self.critic is not None else None
        if self.reference is not None and batch is not None:
            scores.ref_logp = self._rows(self.reference, batch)[0]
        if self.critic is not None and batch is not None:
            batch.value_position = last_prompt_tokens(batch, pool)
            scores.values = self._values(self.critic, self._critic_batch(batch))
        return scores

    def update(self, batch: Batch, update: int, row_logp: torch.Tensor | None = None) -> Metrics:
        """All optimizer steps of one update (see `Policy.update`)."""
        started, o = time.perf_counter(), self.recipe.optimizer
        sums: list[Sums] = []
        norms: list[float] = []
        critic_norms: list[float] = []
        skipped = 0
        seen: Seen = []
        for epoch in range(o.epochs):
            for mini in mini_batches(batch, o.mini_batch, derive_seed(self.recipe.seed, "mini_batch", update, epoch)):
                loss = self._accumulate(mini, sums, seen if row_logp is not None and epoch == 0 else None)
                norm, applied = self.optimizer.step(loss, update)
                norms += [norm] if applied else []
                skipped += not applied
                if self.critic is not None and self.critic_optimizer is not None:
                    loss = self._accumulate_critic(self.critic, self._critic_batch(mini), sums)
                    norm, applied = self.critic_optimizer.step(loss, update)
                    critic_norms += [norm] if applied else []
                    skipped += not applied
        if row_logp is not None:
            rows_from_device([logp[None] for _, logp in seen], [batch.rows_of(samples) for samples, _ in seen], row_logp[None])
        metrics = finalize(add_sums(sums))
        metrics |= {"grad_norm": float(np.mean(norms))} if norms else {}
        metrics |= {"critic_grad_norm": float(np.mean(critic_norms))} if critic_norms else {}
        seconds = time.perf_counter() - started
        return (
            metrics
            | self._costs(batch, seconds)
            | {
                "lr": self.optimizer.learning_rate(update),
                "steps": float(len(norms)),
                "skipped_steps": float(skipped),
                "tokens": float(batch.num_tokens * o.epochs),
                "rows": float(batch.num_rows * o.epochs),
                "seconds": seconds,
            }
        )

    def _costs(self, batch: Batch, seconds: float) -> Metrics:
        epochs, cost = self.recipe.optimizer.epochs, ModelCost.of(self.model.config)
        flops = None if cost is None else cost.flops(batch) * epochs
        peak = peak_flops(self.device, getattr(torch, self.recipe.model.dtype))
        return rates(batch.num_tokens * epochs, batch.num_rows * epochs, seconds, memory_peak_bytes(self.device), flops, peak)

    @torch.no_grad()
    def observation_logp(self, pool: Pool) -> torch.Tensor:
        """See `Policy.observation_logp`."""
        batch = pack(pool, [t.observation_ids for t in pool.transitions])
        return self._rows(self.model, batch)[0][batch.row_kind == OBSERVATION]

    def observation_cross_entropy(self, pool: Pool) -> Metrics:
        """Nats per token of the true next observations, at the temperature that the world-model loss sees (see `Policy`)."""
        logp = self.observation_logp(pool)
        if not logp.numel():
            return {"observation_tokens": 0.0}
        return {"observation_cross_entropy": float(-logp.double().mean()), "observation_tokens": float(logp.numel())}

    def state(self) -> dict[str, Any]:
        """Weights, moments and the fingerprint of the initial policy, as copies on the CPU. Nothing here draws random numbers."""
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
            CheckpointError: shapes or names disagree, or the initial model is not the one that the run began with, where that matters.
        """
        if (self.reference is not None or moved) and state["initial_fingerprint"] != self.initial_fingerprint:
            raise CheckpointError(OTHER_WEIGHTS)
        if (state["critic"] is None) != (self.critic_optimizer is None):
            raise CheckpointError(
                f"algorithm.name: {self.recipe.algorithm.name}, but the checkpoint has {'no' if state['critic'] is None else 'a'} critic"
            )
        self.optimizer.load_state(state["policy"], "policy")
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state(state["critic"], "critic")

    def save(self, directory: Path, update: int, meta: Mapping[str, Any], *, keep: int, wait: bool = True) -> None:
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
        return f"{parameter_count(sum(p.numel() for p in self.model.parameters()))} parameters on {self.device}"

    def export(self, folder: Path) -> None:
        """See `Policy.export`."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, Batch]]:
        """Each micro-batch on the CPU and on the device."""
        for part in micro_batches(batch, self.recipe.optimizer.max_tokens_per_micro_batch):
            yield part, part.to(self.device)

    def _hidden_rows(self, model: PreTrainedModel, part: Batch, on_device: Batch) -> torch.Tensor:
        """[R, H]: hidden states at the scored rows."""
        packing = Packing.of(part.cu_seqlens, self.device)
        return hidden_states(model, on_device.tokens, on_device.position_ids, packing).index_select(0, on_device.row_position)

    def _rows(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logp, entropy), float32[R] on the CPU, of every row of a batch in its own order."""
        found, order = [], []
        for part, on_device in self._parts(batch):
            if not part.num_rows:
                continue
            hidden = self._hidden_rows(model, part, on_device)
            found.append(torch.stack(linear_logprob_entropy(hidden, _head(model), on_device.row_target, **self._head_options)).float())
            order.append(batch.rows_of(part.transition))
        logp, entropy = rows_from_device(found, order, torch.empty(2, batch.num_rows))
        return logp, entropy

    def _critic_batch(self, batch: Batch) -> Batch:
        return critic_batch(batch, self.recipe.algorithm.per_token_values)

    def _values(self, critic: Critic, batch: Batch) -> torch.Tensor:
        """float32[R] on the CPU: the critic's value at every row of a batch of the whole pool."""
        found, order = [], []
        for part, on_device in self._parts(batch):
            found.append(self._part_values(critic, part, on_device)[None])
            order.append(batch.rows_of(part.transition))
        return rows_from_device(found, order, torch.empty(1, batch.num_rows))[0]

    def _part_values(self, critic: Critic, part: Batch, on_device: Batch) -> torch.Tensor:
        return critic(on_device.tokens, on_device.position_ids, Packing.of(part.cu_seqlens, self.device), on_device.row_position)

    def _accumulate(self, mini: Batch, sums: list[Sums], seen: Seen | None = None) -> torch.Tensor:
        """Backward over the micro-batches of one optimizer step; returns their summed loss, detached."""
        total = torch.zeros((), device=self.device)
        for part, on_device in self._parts(mini):
            if not part.num_rows:
                continue
            self.optimizer.collect_directly(_head(self.model))
            hidden = self._hidden_rows(self.model, part, on_device)
            row_loss = make_row_loss(on_device, self.recipe)
            result = linear_row_loss(hidden, _head(self.model), on_device.row_target, row_loss, **self._head_options)
            result.loss.backward()
            total += result.loss.detach()
            sums.append(row_metrics(on_device, result.logp, result.entropy, self.recipe))
            if seen is not None:
                seen.append((part.transition, result.logp.detach()))
        return total

    def _accumulate_critic(self, critic: Critic, mini: Batch, sums: list[Sums]) -> torch.Tensor:
        """As `_accumulate`, for the value loss."""
        total = torch.zeros((), device=self.device)
        for part, on_device in self._parts(mini):
            if not part.num_rows:
                continue
            values = self._part_values(critic, part, on_device)
            loss = make_value_loss(on_device, self.recipe)(values).sum()
            loss.backward()
            total += loss.detach()
            sums.append(value_metrics(on_device, values.detach(), self.recipe))
        return total


def _head(model: PreTrainedModel) -> nn.Parameter:
    """[V, H]."""
    return model.get_output_embeddings().weight


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(False)
