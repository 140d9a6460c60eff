"""How the processes of a run share one model: tensor x pipeline x context x data parallel ranks, and what
does not divide."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.recipe import MegatronSection
from paw_hpc.system.errors import RecipeError

if TYPE_CHECKING:  # checking a layout (`paw plan`, `paw launch`) needs no torch
    import torch.distributed as dist


def has_transformer_engine() -> bool:
    """Whether layers come from Transformer Engine (fused norms and attention) or from Megatron-core's own
    modules with PyTorch's attention."""
    return importlib.util.find_spec("transformer_engine") is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a layout; ranks and groups are this process's, between `open` and `close`.

    Neighbouring ranks share a tensor-parallel group, then context, data and pipeline parallelism (Megatron's
    order tp-cp-ep-dp-pp).
    """

    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None
    """Model chunks per pipeline rank (interleaved schedule); None: one."""
    context: int = 1
    data: int = 1
    sequence: bool = False

    @classmethod
    def of(cls, section: MegatronSection, processes: int) -> Layout:
        """The layout that a recipe asks of this many processes. Raises RecipeError where they do not
        divide."""
        model = section.tensor_parallel * section.pipeline_parallel * section.context_parallel
        if processes % model:
            raise RecipeError(
                f"megatron: tensor {section.tensor_parallel} x pipeline {section.pipeline_parallel} x "
                f"context {section.context_parallel} parallel"
                f" ranks do not divide the {processes} processes that were started; start a multiple of "
                f"{model}"
            )
        data = processes // model
        if section.data_parallel not in (None, data):
            raise RecipeError(
                f"megatron.data_parallel: {section.data_parallel} needs {model * section.data_parallel} "
                f"processes, but {processes} were started"
            )
        return cls(
            section.tensor_parallel,
            section.pipeline_parallel,
            section.virtual_pipeline,
            section.context_parallel,
            data,
            section.sequence_parallel,
        )

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def chunks(self) -> int:
        """Model chunks on each rank."""
        return self.virtual or 1

    def check(self, model: Architecture) -> None:
        """Raises RecipeError where this layout cannot hold a model, with the key to change."""
        for key, size, what, count in (
            ("tensor_parallel", self.tensor, "attention heads", model.heads),
            ("tensor_parallel", self.tensor, "key-value heads", model.kv_heads),
            ("tensor_parallel", self.tensor, "features of the feed-forward layer", model.ffn_hidden),
        ):
            if count % size:
                raise RecipeError(f"megatron.{key}: {size} does not divide the model's {count} {what}")
        if model.layers < self.pipeline * self.chunks:
            key = (
                f"virtual_pipeline: {self.chunks} x pipeline_parallel"
                if self.virtual
                else "pipeline_parallel:"
            )
            raise RecipeError(
                f"megatron.{key} {self.pipeline} makes more stages than the model has layers, which are "
                f"{model.layers}"
            )
        if self.sequence and model.hidden % self.tensor:
            raise RecipeError(
                f"megatron.tensor_parallel: {self.tensor} does not divide the model's {model.hidden} "
                "hidden features"
            )
        heads = model.heads // self.tensor
        if heads % self.context:
            # Then key heads, each repeated where there are fewer than ranks, come out even, too.
            raise RecipeError(
                f"megatron.context_parallel: {self.context} does not divide the {heads} attention heads of "
                "a tensor-parallel rank"
            )

    def stages(self, layers: int) -> list[int]:
        """How many of a model's layers each stage holds, in the model's order: stage i is chunk i // pipeline
        of rank i % pipeline.

        What is left over goes to the stages in the middle first, then to the first, whose embedding costs
        little, and never to the last, which has the head.
        """
        count = self.pipeline * self.chunks
        each, left = divmod(layers, count)
        takers = [*range(1, count - 1), 0][:left]
        return [each + (stage in takers) for stage in range(count)]

    def padded_vocabulary(self, size: int) -> int:
        """Rows of the embedding in Megatron's layout: the next multiple of the tensor-parallel size. Rows
        from `size` on are never read."""
        return math.ceil(size / self.tensor) * self.tensor

    def described(self) -> str:
        """`tensor 2 x data 4`: the sizes above 1."""
        sizes = (
            ("tensor", self.tensor),
            ("pipeline", self.pipeline),
            ("context", self.context),
            ("data", self.data),
        )
        return " x ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one process"

    # -------------------------------------------------------------------------- this process, once it is open

    def open(self) -> None:
        """Make the process groups. torch.distributed must be initialized with `processes` ranks; all of them
        call."""
        from paw_hpc.policy.megatron.shim import megatron

        with megatron():
            from megatron.core import parallel_state
            from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=self.tensor,
                pipeline_model_parallel_size=self.pipeline,
                virtual_pipeline_model_parallel_size=self.virtual,
                context_parallel_size=self.context,
            )
            # Nothing here is random (no dropout, weights are loaded), but layers ask for the tracker. The
            # inference tracker needs no CUDA.
            model_parallel_cuda_manual_seed(1, inference_rng_tracker=True)

    def close(self) -> None:
        """End the groups (another layout may be opened then); all ranks call. Megatron only forgets them, and
        each holds threads and connections."""
        import torch.distributed as dist
        from megatron.core import parallel_state

        groups = [group for group in parallel_state._global_process_group_list or [] if group is not None]
        parallel_state.destroy_model_parallel()
        if groups:
            dist.barrier()
        for group in groups:
            with contextlib.suppress(ValueError):  # a few of them it has ended itself
                dist.destroy_process_group(group)

    @property
    def tensor_rank(self) -> int:
        return _parallel_state().get_tensor_model_parallel_rank()

    @property
    def pipeline_rank(self) -> int:
        return _parallel_state().get_pipeline_model_parallel_rank()

    @property
    def data_rank(self) -> int:
        return _parallel_state().get_data_parallel_rank()

    @property
    def context_rank(self) -> int:
        return _parallel_state().get_context_parallel_rank()

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        return _parallel_state().get_tensor_model_parallel_group()

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        return _parallel_state().get_pipeline_model_parallel_group()

    @property
    def data_group(self) -> dist.ProcessGroup:
        """Data-parallel replicas (without context parallelism)."""
        return _parallel_state().get_data_parallel_group()

    @property
    def first_stage(self) -> bool:
        """This rank holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def last_stage(self) -> bool:
        """This rank holds the final norm and the head."""
        return self.pipeline_rank == self.pipeline - 1

    @property
    def leader(self) -> bool:
        """The one rank of each data-parallel replica that plays episodes."""
        return self.tensor_rank == 0 and self.pipeline_rank == 0 and self.context_rank == 0

    @property
    def senders(self) -> tuple[int, ...]:
        """The first rank of every pipeline stage of the first replica, in the order of stages."""
        return tuple(range(0, self.processes, self.processes // self.pipeline))


def _parallel_state() -> Any:
    from megatron.core import parallel_state

    return parallel_state
