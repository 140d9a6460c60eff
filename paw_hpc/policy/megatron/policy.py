"""The Megatron policy: the objective of the one-process backend on tensor x pipeline x data parallel ranks.

Every rank holds the whole batch on the CPU (ids and streams, no activations), cuts out its replica's share,
and computes its part of each pass; what comes out (log-probs, values, metrics) is the same on all ranks. The
plan has put every normalizer into the rows' weights, so losses and gradients are plain sums over
micro-batches and replicas.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from paw_hpc.experience import Batch
from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss
from paw_hpc.objective.policy_loss import (
    Sums,
    add_sums,
    make_row_loss,
    make_value_loss,
    row_metrics,
    value_metrics,
)
from paw_hpc.policy.backend import Metrics, rows_from_device
from paw_hpc.policy.convert.architecture import parameter_count, read_architecture
from paw_hpc.policy.convert.names import hf_shapes
from paw_hpc.policy.convert.transfer import (
    BUCKET_BYTES,
    check_vocabulary,
    export_hf,
    hf_tensors,
    load_hf,
)
from paw_hpc.policy.critic import draw_head
from paw_hpc.policy.fingerprint import fingerprint
from paw_hpc.policy.loading import initial_folder, load_tokenizer, resolve_device
from paw_hpc.policy.megatron.checkpoint import Checkpoints
from paw_hpc.policy.megatron.costs import own_device, update_costs
from paw_hpc.policy.megatron.identity import Identity
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.microbatches import MicroBatch, micro_batches
from paw_hpc.policy.megatron.model import HeadKind, PackedGPT, build_model, last_chunk
from paw_hpc.policy.megatron.optimizer import TrainedModel
from paw_hpc.policy.megatron.reference import Reference
from paw_hpc.policy.megatron.schedule import Finish, run
from paw_hpc.policy.throughput import PhaseClock
from paw_hpc.policy.trainer import Trained, Trainer
from paw_hpc.recipe import Recipe


class MegatronPolicy(Trainer):
    """Implements `paw_hpc.policy.backend.Policy`; every method is a collective of all ranks.

    Args:
        layout: open. Default: the recipe's, for the processes of the default process group, opened here.
        device: default: this process's GPU, or the CPU.

    Raises:
        RecipeError: no such model, or a layout that does not fit it.
        CheckpointError: an architecture that Megatron cannot train, weights that are torn, a tokenizer that
            does not belong to them.
    """

    def __init__(
        self, recipe: Recipe, layout: Layout | None = None, *, device: torch.device | str | None = None
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device) if device is not None else own_device(resolve_device(recipe.model))
        self.tokenizer = load_tokenizer(recipe.model)
        with tempfile.TemporaryDirectory() as scratch:
            folder = initial_folder(recipe, self.tokenizer, Path(scratch))
            self.architecture, self.hf_config = read_architecture(folder)
            check_vocabulary(self.architecture, self.tokenizer, str(folder))
            if layout is None:
                layout = Layout.of(recipe.megatron, dist.get_world_size())
                layout.check(self.architecture)
                layout.open()
            self.layout = layout
            models = self._build("vocabulary")
            load_hf(models, folder, layout, self.architecture)
        self._clock = PhaseClock(self.device)
        self._computed = torch.zeros(2, dtype=torch.long)  # this replica's tokens in an update, and padding
        # Model folders and seeds give the reference again after a resume, so checkpoints need not hold it.
        wanted, on_cpu = recipe.algorithm.kl_coefficient > 0, recipe.megatron.reference_on_cpu
        self.reference = Reference(self._frozen(models), stays_on_cpu=on_cpu) if wanted else None
        self.initial_fingerprint = fingerprint(hf_tensors(models, layout, self.architecture))
        critic = self._critic(models) if recipe.algorithm.values is not None else None
        self.trained = TrainedModel(models, recipe.optimizer.lr, recipe, self._clock)
        self.critic = (
            None if critic is None else TrainedModel(critic, recipe.optimizer.critic_lr, recipe, self._clock)
        )
        made_of = self.architecture, self.hf_config, self.tokenizer, self.initial_fingerprint
        trained = {"policy": self.trained} | ({} if self.critic is None else {"critic": self.critic})
        self._checkpoints = Checkpoints(layout, Identity(*made_of, has_reference=wanted), trained)
        self._head_options: dict[str, Any] = {
            "temperature": recipe.rollout.temperature,
            "chunk_rows": recipe.model.head_chunk_rows,
            "tp_group": layout.tensor_group if layout.tensor > 1 else None,
            "vocab_size": self.architecture.vocabulary,
        }

    @property
    def models(self) -> list[PackedGPT]:
        """This rank's chunks of the policy."""
        return self.trained.models

    def save(
        self, directory: Path, update: int, meta: Mapping[str, Any], *, keep: int, wait: bool = True
    ) -> None:
        """See `Policy.save`."""
        self._checkpoints.save(
            directory, update, meta, keep=keep, wait=wait or not self.recipe.checkpoint.background
        )

    def resume(self, directory: Path, may_differ: Collection[str] = ()) -> int:
        """See `Policy.resume`; the layout may be another one than the checkpoint was written in."""
        return self._checkpoints.resume(directory, self.recipe, may_differ)

    def whole_tensors(
        self, bucket_bytes: int = BUCKET_BYTES, *, own_stage: bool = False
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The current weights under their Hugging Face names, whole and on every rank (see
        `convert.transfer.hf_tensors`)."""
        return hf_tensors(self.models, self.layout, self.architecture, bucket_bytes, own_stage=own_stage)

    @property
    def whole_bytes(self) -> int:
        """Of the tensors of `whole_tensors`."""
        dtype: torch.dtype = getattr(torch, self.recipe.model.dtype)
        return sum(math.prod(shape) for shape in hf_shapes(self.architecture).values()) * dtype.itemsize

    def describe(self) -> str:
        """See `Policy.describe`."""
        count = sum(math.prod(shape) for shape in hf_shapes(self.architecture).values())
        return f"{parameter_count(count)} parameters on {self.device.type}, {self.layout.described()}"

    def export(self, folder: Path) -> None:
        """See `Policy.export`."""
        export_hf(self.models, folder, self.layout, self.hf_config, self.architecture, self.tokenizer)

    # ------------------------------------------------------------------------------------------------- models

    def _build(self, head: HeadKind) -> list[PackedGPT]:
        return build_model(self.hf_config, self.layout, self.recipe, head=head, device=self.device)

    def _frozen(self, models: Sequence[PackedGPT]) -> list[PackedGPT]:
        """Copies that are never trained: the policy before any update."""
        copies = self._build("vocabulary")
        for copy, model in zip(copies, models, strict=True):
            copy.load_state_dict(model.state_dict())
        return copies

    def _critic(self, models: Sequence[PackedGPT]) -> list[PackedGPT]:
        """The policy's backbone with a scalar head, drawn as the one-process backend draws it."""
        critics = self._build("value")
        for critic, model in zip(critics, models, strict=True):
            body = {
                name: value
                for name, value in model.state_dict().items()
                if not name.startswith("output_layer.")
            }
            if critic.post_process:
                body |= {
                    f"value_head.{name}": value
                    for name, value in draw_head(self.architecture.hidden, self.recipe.seed)
                    .state_dict()
                    .items()
                }
            critic.load_state_dict(body)
        return critics

    def _trained_models(self) -> list[TrainedModel]:
        return [self.trained] if self.critic is None else [self.trained, self.critic]

    # ------------------------------------------------------------------------------------------------- passes

    @property
    def _speaks(self) -> bool:
        """One rank of each group of tensor-parallel ones in a replica's last stage speaks for it; with
        context parallelism each for its own rows."""
        return self.layout.last_stage and self.layout.tensor_rank == 0

    def _parts(self, batch: Batch) -> list[MicroBatch]:
        tokens = self.recipe.optimizer.max_tokens_per_micro_batch
        return micro_batches(batch, self.layout, tokens, self.device, self.recipe.policy.share_prefixes)

    @property
    def has_reference(self) -> bool:
        return self.reference is not None

    @property
    def has_critic(self) -> bool:
        return self.critic is not None

    @torch.no_grad()
    def _rows(self, model: Literal["policy", "reference"], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainer._rows`; the same on all ranks."""
        if model == "policy":
            return self._rows_of(self.trained.chunks, batch)
        assert self.reference is not None
        with self.reference.on(self.device) as chunks:
            return self._rows_of(chunks, batch)

    def _rows_of(self, chunks: Sequence[torch.nn.Module], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        head = last_chunk(chunks)
        parts: list[torch.Tensor] = []
        order: list[torch.Tensor] = []

        def finish(part: MicroBatch, hidden: torch.Tensor) -> None:
            scores = linear_logprob_entropy(
                hidden, head.head_weight, part.batch.row_target, **self._head_options
            )
            parts.append(torch.stack(scores).float())
            order.append(part.row_index)

        run(chunks, self._parts(batch), finish, backward=False)
        found = rows_from_device(parts, order, torch.zeros(2, batch.num_rows))
        self._share(found)
        return found[0], found[1]

    @torch.no_grad()
    def _values(self, batch: Batch) -> torch.Tensor:
        """See `Trainer._values`; the same on all ranks."""
        critic = self._model("critic")
        head = last_chunk(critic.chunks)
        parts: list[torch.Tensor] = []
        order: list[torch.Tensor] = []

        def finish(part: MicroBatch, hidden: torch.Tensor) -> None:
            parts.append(head.values(hidden)[None])
            order.append(part.row_index)

        run(critic.chunks, self._parts(batch), finish, backward=False)
        found = rows_from_device(parts, order, torch.zeros(1, batch.num_rows))[0]
        self._share(found)
        return found

    def _model(self, name: Trained) -> TrainedModel:
        model = self.trained if name == "policy" else self.critic
        assert model is not None
        return model

    def _begin(self) -> None:
        self._checkpoints.poll()
        self._clock.take()
        self._computed.zero_()

    def _accumulate(self, model: Trained, batch: Batch, sums: list[Sums]) -> torch.Tensor:
        """See `Trainer._accumulate`; the loss is this rank's share of it, float64[]."""
        trained, make_loss = self._model(model), self._row_loss if model == "policy" else self._value_loss
        with self._clock.measure("packing"):
            parts = self._parts(batch)
        if model == "policy":
            self._computed += torch.tensor([[part.computed, part.padding] for part in parts]).sum(0)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        trained.accumulate(parts, make_loss(trained, total, sums))
        return total

    def _step(self, model: Trained, loss: torch.Tensor, update: int) -> tuple[float, bool]:
        """See `Trainer._step`; the same on all ranks."""
        return self._model(model).step(loss, update)

    def _settle(self) -> None:
        for model in self._trained_models():
            model.settle()

    def _learning_rate(self, update: int) -> float:
        return self.trained.learning_rate(update)

    def _row_loss(self, model: TrainedModel, total: torch.Tensor, sums: list[Sums]) -> Finish:
        head = last_chunk(model.chunks)

        def finish(part: MicroBatch, hidden: torch.Tensor) -> torch.Tensor:
            row_loss = make_row_loss(part.batch, self.recipe)
            result = linear_row_loss(
                hidden, head.head_weight, part.batch.row_target, row_loss, **self._head_options
            )
            self._count(
                total,
                result.loss,
                sums,
                lambda: row_metrics(part.batch, result.logp, result.entropy, self.recipe),
            )
            if self._seen is not None:
                self._seen.append((part.batch.transition, part.own_rows, result.logp.detach()))
            return result.loss

        return finish

    def _value_loss(self, model: TrainedModel, total: torch.Tensor, sums: list[Sums]) -> Finish:
        head = last_chunk(model.chunks)

        def finish(part: MicroBatch, hidden: torch.Tensor) -> torch.Tensor:
            values = head.values(hidden)
            loss = make_value_loss(part.batch, self.recipe)(values).sum()
            self._count(total, loss, sums, lambda: value_metrics(part.batch, values.detach(), self.recipe))
            return loss

        return finish

    def _count(
        self, total: torch.Tensor, loss: torch.Tensor, sums: list[Sums], metrics: Callable[[], Sums]
    ) -> None:
        # Detached and added now: the schedule divides a loss in place.
        if self._speaks:
            total += loss.detach()
            sums.append(metrics())

    def _share(self, found: torch.Tensor) -> None:
        """Put together what the replicas found: each element is set on one speaking rank and 0 on all
        others."""
        if not self._speaks:
            found.zero_()
        if dist.get_world_size() > 1:
            dist.all_reduce(found)

    def _gathered(self, sums: Sequence[Sums]) -> Sums:
        """Sums over all ranks, the same everywhere; ranks that have none learn the names."""
        own = {name: pair.cpu() for name, pair in add_sums(sums).items()}
        everyone: list[Sums] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, own)
        return add_sums(everyone)

    def _costs(self, batch: Batch, seconds: float) -> Metrics:
        counted = self._computed if self._speaks and self.layout.context_rank == 0 else 0 * self._computed
        return update_costs(
            batch,
            self.recipe,
            self.hf_config,
            self.layout.processes,
            self.device,
            counted,
            seconds,
            self._clock.take(),
        )
