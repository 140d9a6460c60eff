"""What the ranks of `test_megatron_model` do: logits and gradients of a packed batch in some layout, against
`transformers` one sample at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from paw_hpc.experience import Batch
from paw_hpc.kernels import linear_row_loss
from paw_hpc.objective.plan import pack
from paw_hpc.policy.convert import names
from paw_hpc.policy.convert.architecture import read_architecture
from paw_hpc.policy.convert.transfer import hf_tensors, load_hf
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.microbatches import MicroBatch, micro_batches
from paw_hpc.policy.megatron.model import PackedGPT, build_model
from paw_hpc.policy.megatron.optimizer import TrainedModel
from paw_hpc.policy.megatron.schedule import run
from paw_hpc.policy.throughput import PhaseClock
from paw_hpc.recipe import Recipe
from tests.factories import random_pool, tiny_recipe
from tests.policy.models import SIZES, sharpen

VOCABULARY = 51
"""Odd: two tensor-parallel ranks have a row of padding."""
CPU = torch.device("cpu")
FOUR_LAYERS: dict[str, Any] = SIZES | {"num_hidden_layers": 4, "vocab_size": VOCABULARY}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**FOUR_LAYERS, tie_word_embeddings=True)),
    "qwen2-untied": lambda: Qwen2ForCausalLM(Qwen2Config(**FOUR_LAYERS, tie_word_embeddings=False)),
    "qwen2-five": lambda: Qwen2ForCausalLM(
        Qwen2Config(**FOUR_LAYERS | {"num_hidden_layers": 5}, tie_word_embeddings=True)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**FOUR_LAYERS, head_dim=16, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**FOUR_LAYERS, rope_parameters=LLAMA3, tie_word_embeddings=False)
    ),
}


def batch() -> Batch:
    """Action and observation rows of samples of many lengths."""
    pool = random_pool(0, groups=2, members=3)
    return pack(pool, [t.observation_ids for t in pool.transitions])


def weights_of_rows(rows: int) -> torch.Tensor:
    """float32[2, R]: what the loss multiplies log-probs and entropies with."""
    return torch.randn(2, rows, generator=torch.Generator().manual_seed(1)) / rows


def write_references(folder: Path) -> None:
    """A folder of every model, with its logits at the rows and the gradients of the loss."""
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        sharpen(model)
        model.save_pretrained(folder / name)
        torch.save(_reference(model), folder / f"{name}.pt")


def _reference(model: PreTrainedModel) -> dict[str, Any]:
    whole = batch()
    logits = []
    for start, end in zip(whole.cu_seqlens, whole.cu_seqlens[1:], strict=False):
        mine = (whole.row_position >= start) & (whole.row_position < end)
        logits.append(
            model(input_ids=whole.tokens[None, start:end]).logits[0][whole.row_position[mine] - start]
        )
    found = torch.cat(logits)
    logp = found.log_softmax(-1)
    on_logp, on_entropy = weights_of_rows(whole.num_rows)
    entropy = -(logp.exp() * logp).sum(-1)
    loss = (on_logp * logp.gather(1, whole.row_target[:, None])[:, 0] + on_entropy * entropy).sum()
    loss.backward()
    return {
        "logits": found.detach(),
        "loss": loss.detach(),
        "gradients": {n: p.grad for n, p in model.named_parameters()},
    }


def compare(folder: Path, name: str, layout: Layout, **megatron: Any) -> tuple[float, float, float]:
    """Greatest error of the logits, of the loss, and of the gradients relative to each tensor's greatest, on
    any rank."""
    layout.open()
    try:
        recipe = tiny_recipe(
            **{"megatron.distributed_optimizer": False},
            **{f"megatron.{key}": value for key, value in megatron.items()},
        )
        architecture, config = read_architecture(folder / name)
        models = build_model(config, layout, recipe)
        load_hf(models, folder / name, layout, architecture)
        expected = torch.load(folder / f"{name}.pt")
        logits = _logits(models, layout)[:, :VOCABULARY]
        loss, gradients = _gradients(models, layout, recipe)
        whole = {n: g.clone() for n, g in hf_tensors(gradients, layout, architecture)}
        assert whole.keys() == expected["gradients"].keys()
        errors = [float((whole[n] - g).abs().max() / g.abs().max()) for n, g in expected["gradients"].items()]
        off = (logits - expected["logits"]).abs().max() if layout.last_stage else torch.zeros(())
        loss_off = abs(loss - float(expected["loss"])) if layout.last_stage else 0.0
        worst = torch.tensor([float(off), loss_off, max(errors)])
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        return tuple(worst.tolist())
    finally:
        layout.close()


def assert_equal(folder: Path, name: str, layout: Layout, **megatron: Any) -> None:
    errors = compare(folder, name, layout, **megatron)
    assert max(errors) < 1e-5, f"{name} in {layout}: logits, loss, gradients are off by {errors}"


def _logits(models: list[PackedGPT], layout: Layout) -> torch.Tensor:
    """[R, V padded] on the last stage."""
    whole = batch()
    found = torch.zeros(whole.num_rows, layout.padded_vocabulary(VOCABULARY))

    def finish(part: MicroBatch, hidden: torch.Tensor) -> None:
        shards = [
            torch.empty(len(hidden), layout.padded_vocabulary(VOCABULARY) // layout.tensor)
            for _ in range(layout.tensor)
        ]
        dist.all_gather(
            shards, (hidden @ models[-1].head_weight.T).detach().contiguous(), group=layout.tensor_group
        )
        found[part.row_index] = torch.cat(shards, 1)

    run(models, micro_batches(whole, layout, 60, CPU), finish, backward=False)
    if layout.last_stage:  # every replica has found its part
        dist.all_reduce(found, group=layout.data_group)
    return found


def _gradients(models: list[PackedGPT], layout: Layout, recipe: Recipe) -> tuple[float, list[PackedGPT]]:
    """The loss, and the models with their gradients where their weights were, so that they can be gathered as
    weights are."""
    whole = batch()
    on_logp, on_entropy = weights_of_rows(whole.num_rows)
    total = torch.zeros((), dtype=torch.float64)

    def finish(part: MicroBatch, hidden: torch.Tensor) -> torch.Tensor:
        def row_loss(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            mine = part.row_index[rows]
            return on_logp[mine] * logp + on_entropy[mine] * entropy

        group = layout.tensor_group if layout.tensor > 1 else None
        loss = linear_row_loss(
            hidden,
            models[-1].head_weight,
            part.batch.row_target,
            row_loss,
            tp_group=group,
            vocab_size=VOCABULARY,
        ).loss
        total.add_(loss.detach())
        return loss

    trained = TrainedModel(models, 1e-3, recipe, PhaseClock(CPU))
    trained.accumulate(micro_batches(whole, layout, 60, CPU), finish)
    if layout.last_stage:
        dist.all_reduce(total, group=layout.data_group)
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data.copy_(parameter.main_grad)
    return float(total), models


# --------------------------------------------------------------------------------------------------- one rank


def one_rank(rank: int, folder: Path) -> None:
    for name in MODELS:
        assert_equal(folder, name, Layout())


def recomputed_activations(rank: int, folder: Path) -> None:
    assert_equal(folder, "qwen2", Layout(), recompute="selective")
    assert_equal(folder, "qwen2", Layout(), recompute="full", recompute_layers=2)


def a_flat_qkv_is_seen(rank: int, folder: Path) -> None:
    right = names.interleaved_qkv

    def flat(architecture: Any, layer: str, kind: str) -> list[names.Piece]:
        return sorted(
            right(architecture, layer, kind), key=lambda piece: "qkv".index(piece.name.split(".")[-2][0])
        )

    with mock.patch.object(names, "interleaved_qkv", flat):
        errors = compare(folder, "qwen2", Layout())
    assert min(errors) > 1e-3, errors


def swapped_gate_and_up_are_seen(rank: int, folder: Path) -> None:
    right = names.gate_and_up
    with mock.patch.object(names, "gate_and_up", lambda layer: right(layer)[::-1]):
        errors = compare(folder, "qwen2", Layout())
    assert min(errors) > 1e-3, errors


def a_small_error_is_seen(rank: int, folder: Path) -> None:
    original = torch.load(folder / "qwen2.pt")
    model = AutoModelForCausalLM.from_pretrained(folder / "qwen2", dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias[0] += 0.01
    off = (_reference(model)["logits"] - original["logits"]).abs().max()
    assert off > 1e-4, "one bias of the first layer, off by 0.01, is ten times the tolerance or more"


# -------------------------------------------------------------------------------------------------- two ranks


def tensor_parallel(rank: int, folder: Path) -> None:
    for name in MODELS:
        assert_equal(folder, name, Layout(tensor=2), tensor_parallel=2)


def sequence_parallel(rank: int, folder: Path) -> None:
    for name in ("qwen2", "qwen3"):
        assert_equal(folder, name, Layout(tensor=2, sequence=True), tensor_parallel=2, sequence_parallel=True)


def pipeline_parallel_tied_and_untied(rank: int, folder: Path) -> None:
    for name in ("qwen2", "qwen2-untied"):
        assert_equal(folder, name, Layout(pipeline=2), pipeline_parallel=2)


def interleaved_pipeline(rank: int, folder: Path) -> None:
    for name in ("qwen2", "llama"):
        assert_equal(folder, name, Layout(pipeline=2, virtual=2), pipeline_parallel=2, virtual_pipeline=2)


def uneven_pipeline(rank: int, folder: Path) -> None:
    """Five layers: three and two, and one, two, one, one."""
    assert_equal(folder, "qwen2-five", Layout(pipeline=2), pipeline_parallel=2)
    assert_equal(folder, "qwen2-five", Layout(pipeline=2, virtual=2), pipeline_parallel=2, virtual_pipeline=2)


def data_parallel(rank: int, folder: Path) -> None:
    assert_equal(folder, "qwen2", Layout(data=2))


# ------------------------------------------------------------------------------------------------- four ranks


def tensor_and_pipeline_parallel(rank: int, folder: Path) -> None:
    for name in ("qwen2", "qwen2-untied"):
        assert_equal(folder, name, Layout(tensor=2, pipeline=2), tensor_parallel=2, pipeline_parallel=2)


def all_at_once(rank: int, folder: Path) -> None:
    sizes = {"tensor_parallel": 2, "pipeline_parallel": 2, "virtual_pipeline": 2, "sequence_parallel": True}
    assert_equal(folder, "qwen3", Layout(tensor=2, pipeline=2, virtual=2, sequence=True), **sizes)


def interleaved_pipeline_of_replicas(rank: int, folder: Path) -> None:
    assert_equal(
        folder, "qwen2", Layout(pipeline=2, virtual=2, data=2), pipeline_parallel=2, virtual_pipeline=2
    )
