"""Layouts that cannot hold a model are refused at load, in one line with the key to change; micro-batches are
balanced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paw_hpc.objective import batching
from paw_hpc.objective.plan import pack
from paw_hpc.objective.prefixes import Prefixes
from paw_hpc.policy.convert.architecture import Architecture, architecture_of
from paw_hpc.policy.megatron import model as megatron_model
from paw_hpc.policy.megatron.layout import Layout, has_transformer_engine
from paw_hpc.policy.megatron.microbatches import micro_batches, partition, partition_sharing
from paw_hpc.policy.megatron.model import transformer_engine_wanted
from paw_hpc.policy.throughput import ModelCost
from paw_hpc.recipe import MegatronSection
from paw_hpc.system.errors import CheckpointError, RecipeError
from tests.factories import random_pool, tiny_recipe
from tests.policy.models import random_model
from tests.test_prefixes import batch_of, families

QWEN_1_5B = Architecture(
    model_type="qwen2",
    layers=28,
    hidden=1536,
    heads=12,
    kv_heads=2,
    head_dim=128,
    ffn_hidden=8960,
    vocabulary=151936,
    tied=True,
    qkv_bias=True,
    qk_norm=False,
    norm_eps=1e-6,
    max_positions=32768,
)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tensor=8), r"tensor_parallel: 8 does not divide the model's 12 attention heads"),
        (Layout(tensor=4), r"tensor_parallel: 4 does not divide the model's 2 key-value heads"),
        (
            Layout(pipeline=29),
            r"pipeline_parallel: 29 makes more stages than the model has layers, which are 28",
        ),
        (
            Layout(pipeline=4, virtual=8),
            r"virtual_pipeline: 8 x pipeline_parallel 4 makes more stages than the model has layers, which "
            r"are 28",
        ),
        (
            Layout(context=5),
            r"context_parallel: 5 does not divide the 12 attention heads of a tensor-parallel rank",
        ),
        (
            Layout(tensor=2, context=4),
            r"context_parallel: 4 does not divide the 6 attention heads of a tensor-parallel rank",
        ),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(layout: Layout, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layout.check(QWEN_1_5B)


def test_a_feed_forward_layer_that_tensor_parallelism_does_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="2 does not divide the model's 8961 features"):
        Layout(tensor=2).check(replace(QWEN_1_5B, ffn_hidden=8961))


def test_layouts_that_fit_pass_and_any_vocabulary_is_padded() -> None:
    for layout in (
        Layout(context=6),
        Layout(tensor=2, context=3),
        Layout(),
        Layout(tensor=2, sequence=True),
        Layout(pipeline=4),
        Layout(tensor=2, pipeline=2, virtual=7, data=3),
    ):
        layout.check(QWEN_1_5B)
    assert [Layout(tensor=2).padded_vocabulary(size) for size in (231, 232)] == [232, 232]
    assert Layout(tensor=4).padded_vocabulary(151936) == 151936


def test_layers_that_are_left_over_go_to_the_middle_and_never_to_the_head() -> None:
    assert Layout(pipeline=4).stages(28) == [7, 7, 7, 7]
    assert Layout(pipeline=4).stages(30) == [7, 8, 8, 7]
    assert Layout(pipeline=4).stages(31) == [8, 8, 8, 7]
    assert Layout(pipeline=2).stages(5) == [3, 2]
    assert Layout(pipeline=2, virtual=2).stages(5) == [1, 2, 1, 1]
    for pipeline in range(1, 31):
        stages = Layout(pipeline=pipeline).stages(30)
        assert (
            sum(stages) == 30
            and len(stages) == pipeline
            and max(stages) - min(stages) <= 1
            and stages[-1] == min(stages)
        )
        Layout(pipeline=pipeline).check(replace(QWEN_1_5B, layers=30))


def test_processes_make_up_the_replicas() -> None:
    section = MegatronSection(tensor_parallel=2, pipeline_parallel=2)
    assert Layout.of(section, 8) == Layout(tensor=2, pipeline=2, data=2)
    assert Layout.of(section, 8).processes == 8
    with pytest.raises(RecipeError, match=r"do not divide the 6 processes .* multiple of 4"):
        Layout.of(section, 6)
    with pytest.raises(RecipeError, match="data_parallel: 3 needs 12 processes, but 8 were started"):
        Layout.of(section.model_copy(update={"data_parallel": 3}), 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sequence_parallel": True}, "sequence_parallel: .* raise tensor_parallel"),
        ({"virtual_pipeline": 2}, "virtual_pipeline: it needs pipeline_parallel"),
        (
            {"overlap_param_gather": True},
            "overlap_param_gather: it needs distributed_optimizer and overlap_grad_reduce",
        ),
        ({"tensor_parallel": 0}, "tensor_parallel"),
    ],
)
def test_impossible_combinations_are_refused_at_load(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(**{f"megatron.{key}": value for key, value in keys.items()})


@pytest.mark.skipif(has_transformer_engine(), reason="here it is installed")
def test_transformer_engine_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(RecipeError, match=r"megatron.layers: Transformer Engine is not installed"):
        transformer_engine_wanted(tiny_recipe(**{"megatron.layers": "transformer_engine"}))
    assert not transformer_engine_wanted(tiny_recipe())


@pytest.mark.parametrize("asked", [{"megatron.context_parallel": 2}, {"policy.share_prefixes": True}])
def test_what_transformer_engine_cannot_do_here_takes_other_layers(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron_model, "has_transformer_engine", lambda: True)
    assert transformer_engine_wanted(tiny_recipe())
    assert not transformer_engine_wanted(tiny_recipe(**asked))
    [key] = asked
    with pytest.raises(RecipeError, match=rf"megatron\.layers: transformer_engine cannot do {key}"):
        transformer_engine_wanted(tiny_recipe(**asked, **{"megatron.layers": "transformer_engine"}))


def test_an_unknown_architecture_is_refused_by_name() -> None:
    config = random_model("qwen2 tied").config
    config.model_type = "mamba2"
    with pytest.raises(
        CheckpointError,
        match="model_type 'mamba2' cannot be trained with Megatron; known: qwen2, qwen3, llama",
    ):
        architecture_of(config)


# ---------------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 40, 300, 10_000])
def test_micro_batches_hold_every_sample_once_and_are_balanced(
    ranks: int, multiple: int, max_tokens: int
) -> None:
    lengths = torch.randint(5, 60, (70,), generator=torch.Generator().manual_seed(0))
    shares = partition(lengths, ranks, max_tokens, multiple)
    assert sorted(sample for share in shares for part in share for sample in part) == list(range(70))
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) % multiple == 0
    sizes = [[int(lengths[part].sum()) for part in share] for share in shares]
    assert all(
        size <= max_tokens or len(part) == 1
        for share, row in zip(shares, sizes, strict=True)
        for part, size in zip(share, row, strict=True)
    )
    assert len(shares[0]) <= -(-70 // ranks) + multiple, "never more passes than samples"
    if max_tokens > 60:
        totals = [sum(row) for row in sizes]
        assert max(totals) - min(totals) <= 60, "ranks differ by less than the longest sample"
        fewest = -(-int(lengths.sum()) // (ranks * max_tokens))
        assert len(shares[0]) <= -(-fewest // multiple) * multiple + multiple, (
            "and no more passes than the tokens need (packing costs one at most)"
        )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 40, 300, 10_000])
def test_micro_batches_of_what_begins_alike(ranks: int, multiple: int, max_tokens: int) -> None:
    pool = families(conversations=False)
    batch = pack(pool, [t.observation_ids for t in pool.transitions])
    shares = partition_sharing(batch, ranks, max_tokens, multiple)
    assert sorted(s for share in shares for part in share for s in part) == list(range(batch.num_sequences))
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) % multiple == 0
    parts = [batch.take(torch.tensor(part)) for share in shares for part in share if part]
    computed = [len(Prefixes.of(part).computed) for part in parts]
    assert all(c <= max_tokens or p.num_sequences == 1 for c, p in zip(computed, parts, strict=True))
    fewest = len(batching.micro_batches(batch, max_tokens, share_prefixes=True))
    assert len(shares[0]) == -(-fewest // (ranks * multiple)) * multiple
    # What is cut apart is computed twice, so few and large parts share most.
    apart = partition(batch.lengths, ranks, max_tokens, multiple)
    if max_tokens >= 300:
        assert len(shares[0]) <= len(apart[0]) and sum(computed) < 0.9 * batch.num_tokens
        assert max(computed) <= 1.5 * sum(computed) / len(computed) + int(batch.lengths.max())


def test_many_micro_batches_of_what_begins_alike() -> None:
    """As many as in a real run: what each computes anew of a shared beginning must not mount up."""
    rng = np.random.default_rng(0)
    firsts = [rng.integers(0, 1000, 40).tolist() for _ in range(8)]
    batch = batch_of(*(first + rng.integers(0, 1000, 60).tolist() for first in firsts for _ in range(100)))
    [passes] = partition_sharing(batch, 1, 1000)
    computed = [len(Prefixes.of(batch.take(torch.tensor(part))).computed) for part in passes]
    once = len(Prefixes.of(batch).computed)
    assert max(computed) <= 1000 and once < sum(computed) <= 1.1 * once and len(passes) <= 1.1 * once / 960


def test_few_samples_leave_some_ranks_without_any() -> None:
    assert partition(torch.tensor([7]), 3, 10) == [[[0]], [[]], [[]]]
    assert partition(torch.tensor([], dtype=torch.long), 2, 10) == [[[]], [[]]]
    assert partition_sharing(batch_of([1, 2, 3]), 3, 10) == [[[0]], [[]], [[]]]
    assert partition_sharing(batch_of(), 2, 10) == [[[]], [[]]]


def test_padding_is_what_sequence_parallelism_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool(0)
    batch = pack(pool, [t.observation_ids for t in pool.transitions])
    monkeypatch.setattr(Layout, "data_rank", 0)
    device = torch.device("cpu")
    assert all(part.padding == 0 for part in micro_batches(batch, Layout(tensor=2), 50, device))
    for part in micro_batches(batch, Layout(tensor=4, sequence=True), 50, device):
        assert (
            part.padding < 4
            and len(part.tokens) % 4 == 0
            and len(part.tokens) == part.batch.num_tokens + part.padding
        )
        assert torch.equal(part.tokens[: part.batch.num_tokens], part.batch.tokens)
        assert torch.equal(batch.row_target[part.row_index], part.batch.row_target)


# ------------------------------------------------------------------------------------------------ model FLOPs


def test_model_flops_are_those_that_torch_counts() -> None:
    """Against torch's own counter on the eager model; that one multiplies all of the attention matrix, of
    which causality needs half."""
    model = random_model("qwen2 tied")
    model.set_attn_implementation("eager")
    length = 40
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None] % 50, use_cache=False)
    counted = sum(n for name, n in counter.get_flop_counts()["Global"].items() if "bmm" not in str(name))
    attention = sum(n for name, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(name))
    pool = random_pool(0, groups=1, members=1, max_steps=1)
    batch = pack(pool, [t.observation_ids for t in pool.transitions])
    sample = replace(
        batch,
        tokens=torch.zeros(length),
        cu_seqlens=torch.tensor([0, length]),
        row_target=torch.zeros(length),
    )
    cost = ModelCost.of(model.config)
    assert cost is not None
    rotary = 2 * length * 4  # angles are an outer product there: [d / 2, 1] x [1, length]
    assert cost.flops(sample, passes=1) == pytest.approx(counted + (attention - rotary * 1) / 2, rel=5e-3)
    assert cost.flops(sample) == 3 * cost.flops(sample, passes=1)
