"""What an update is, whichever backend computes it: epochs, mini-batches, steps of the policy and of the
critic, skipped steps, metrics.

It knows no algorithm: rows carry weights, and it sums weight * loss. A backend says how rows and values of a
packed batch are computed, how gradients are accumulated, and how a step is taken.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from paw_hpc.experience import ACTION, OBSERVATION, Batch, Pool, Scores
from paw_hpc.objective.batching import with_gradient
from paw_hpc.objective.packing import last_prompt_tokens, pack
from paw_hpc.objective.plan import mini_batches
from paw_hpc.objective.policy_loss import Sums, add_sums, finalize
from paw_hpc.policy.backend import Metrics, Seen, rows_from_device
from paw_hpc.policy.critic import critic_batch
from paw_hpc.recipe import Recipe
from paw_hpc.system.seeding import derive_seed

NO_IDS = np.empty(0, dtype=np.int32)
Trained = Literal["policy", "critic"]


class Trainer(ABC):
    """The part of `paw_hpc.policy.backend.Policy` that scores and updates. With many processes every method
    is a collective of all ranks."""

    recipe: Recipe
    _seen: Seen | None = None
    """While somebody asks for the log-probs of the policy's rows: `_accumulate` appends what each micro-batch
    found."""

    # ------------------------------------------------------------------------------------ what a backend does

    @property
    @abstractmethod
    def has_reference(self) -> bool: ...

    @property
    @abstractmethod
    def has_critic(self) -> bool: ...

    @abstractmethod
    def _rows(self, model: Literal["policy", "reference"], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logp, entropy), float32[R] on the CPU, of every row of a batch in its own order; no-grad."""

    @abstractmethod
    def _values(self, batch: Batch) -> torch.Tensor:
        """float32[R] on the CPU: the critic's value at every row of a critic's batch of the whole pool;
        no-grad."""

    @abstractmethod
    def _accumulate(self, model: Trained, batch: Batch, sums: list[Sums]) -> torch.Tensor:
        """Backward over all rows of one optimizer step; appends what is to be logged to `sums`. Returns their
        summed loss, detached, float[]."""

    @abstractmethod
    def _step(self, model: Trained, loss: torch.Tensor, update: int) -> tuple[float, bool]:
        """(gradient norm, whether the step was taken): one whose loss or norm is not finite is skipped."""

    @abstractmethod
    def _costs(self, batch: Batch, seconds: float) -> Metrics:
        """Throughput, memory and the like of an update."""

    @abstractmethod
    def _learning_rate(self, update: int) -> float: ...

    def _begin(self) -> None:
        """Called before the first step of an update."""
        return

    def _settle(self) -> None:
        """Called after its last step."""
        return

    def _share(self, found: torch.Tensor) -> None:
        """Put together what the processes found, in place: each element was set by one of them, and is 0 on
        all others."""
        return

    def _gathered(self, sums: Sequence[Sums]) -> Sums:
        """Sums over all processes."""
        return add_sums(sums)

    # ------------------------------------------------------------------------------------------- what follows

    @torch.no_grad()
    def score(self, pool: Pool) -> Scores:
        """Old log-probs and entropies of every action token, reference log-probs, values: one no-grad pass
        per model (see `Policy.score`)."""
        return self.complete_scores(Scores(*self._rows("policy", self._packed(pool))), pool)

    @torch.no_grad()
    def complete_scores(self, scores: Scores, pool: Pool) -> Scores:
        """Adds what the reference and the critic say (see `Policy.complete_scores`)."""
        batch = self._packed(pool) if self.has_reference or self.has_critic else None
        if self.has_reference and batch is not None:
            scores.ref_logp = self._rows("reference", batch)[0]
        if self.has_critic and batch is not None:
            batch.value_position = last_prompt_tokens(batch, pool)
            scores.values = self._values(self._critic_batch(batch))
        return scores

    def update(self, batch: Batch, update: int, row_logp: torch.Tensor | None = None) -> Metrics:
        """All optimizer steps of one update (see `Policy.update`)."""
        self._begin()
        started, o = time.perf_counter(), self.recipe.optimizer
        sums: list[Sums] = []
        norms: dict[str, list[float]] = {"grad_norm": [], "critic_grad_norm": []}
        skipped, seen, kept, share = 0, Seen(), self._with_gradient(batch), _Share()
        for epoch in range(o.epochs):
            self._seen = seen if row_logp is not None and epoch == 0 else None
            for mini in mini_batches(
                batch, o.mini_batch, derive_seed(self.recipe.seed, "mini_batch", update, epoch)
            ):
                trained = self._with_gradient(mini)
                share.add(trained, mini)
                work: list[tuple[str, Trained, Batch]] = [("grad_norm", "policy", trained)]
                if self.has_critic:
                    work.append(("critic_grad_norm", "critic", self._critic_batch(mini)))
                for name, model, part in work:
                    norm, applied = self._step(model, self._accumulate(model, part, sums), update)
                    norms[name] += [norm] if applied else []
                    skipped += not applied
        self._settle()
        self._seen = None
        if row_logp is not None:
            order = [
                rows if own is None else rows[own]
                for rows, own in ((batch.rows_of(samples.cpu()), own) for samples, own, _ in seen)
            ]
            rows_from_device([logp[None] for *_, logp in seen], order, row_logp.zero_()[None])
            self._share(row_logp)
        metrics = share.of_all(finalize(self._gathered(sums))) | {
            name: float(np.mean(values)) for name, values in norms.items() if values
        }
        seconds = time.perf_counter() - started
        return (
            metrics
            | self._costs(kept, seconds)
            | {
                "lr": self._learning_rate(update),
                "steps": float(len(norms["grad_norm"])),
                "skipped_steps": float(skipped),
                "tokens": float(kept.num_tokens * o.epochs),
                "rows": float(kept.num_rows * o.epochs),
                "seconds": seconds,
            }
            | (
                {"zero_gradient_share": 1.0 - kept.num_sequences / batch.num_sequences}
                if self.recipe.policy.skip_zero_gradient
                else {}
            )
        )

    @torch.no_grad()
    def observation_logp(self, pool: Pool) -> torch.Tensor:
        """See `Policy.observation_logp`."""
        batch = pack(pool, [t.observation_ids for t in pool.transitions], self.recipe.policy.merge_turns)
        return self._rows("policy", batch)[0][batch.row_kind == OBSERVATION]

    def observation_cross_entropy(self, pool: Pool) -> Metrics:
        """Nats per token of the true next observations, at the temperature that the world-model loss sees
        (see `Policy`)."""
        logp = self.observation_logp(pool)
        if not logp.numel():
            return {"observation_tokens": 0.0}
        return {
            "observation_cross_entropy": float(-logp.double().mean()),
            "observation_tokens": float(logp.numel()),
        }

    def _packed(self, pool: Pool) -> Batch:
        """All actions, and no observation."""
        return pack(pool, [NO_IDS] * len(pool), self.recipe.policy.merge_turns)

    def _critic_batch(self, batch: Batch) -> Batch:
        return critic_batch(batch, self.recipe.algorithm.per_token_values)

    def _with_gradient(self, batch: Batch) -> Batch:
        """What of a batch the policy is trained on (`policy.skip_zero_gradient`)."""
        return with_gradient(batch, self.recipe.algorithm) if self.recipe.policy.skip_zero_gradient else batch


class _Share:
    """How much of all actions was trained on. Means over those become means over all where what was left out
    is 0: its loss, and what is clipped."""

    def __init__(self) -> None:
        self._trained, self._all = np.zeros(2), np.zeros(2)  # weight, rows

    def add(self, trained: Batch, batch: Batch) -> None:
        for total, part in ((self._trained, trained), (self._all, batch)):
            weight = part.streams["weight"][part.row_kind == ACTION].double()
            total += (float(weight.sum()), len(weight))

    def of_all(self, metrics: Metrics) -> Metrics:
        shares = zip(("policy_loss", "ratio_clip_fraction"), self._trained, self._all, strict=True)
        return metrics | {
            name: metrics[name] * mine / whole
            for name, mine, whole in shares
            if name in metrics and mine != whole
        }
