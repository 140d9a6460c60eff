"""Memory and time before a GPU hour is spent: sizes against published ones, refusals that name a layout which
fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster.footprint import footprint_lines, footprint_of
from paw_hpc.cluster.layout import lay_out
from paw_hpc.cluster.memory import server_memory, trainer_memory
from paw_hpc.cluster.models import PUBLISHED, architecture_for, parameters
from paw_hpc.cluster.suggestion import apply_overrides
from paw_hpc.recipe import Recipe, load_recipe, parse_recipe
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.gpus import GIB, GPU_BYTES
from tests.recipe_files import RECIPES


def big(model: str = "Qwen/Qwen2.5-7B-Instruct", **changes: Any) -> Recipe:
    recipe = parse_recipe(
        {
            "model": {"path": model, "dtype": "bfloat16"},
            "policy": {"backend": "megatron"},
            "rollout": {"engine": "sglang"},
            "cluster": {"gpus_per_node": 8, "rollout_nodes": 1},
        }
    )
    return apply_overrides(recipe, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen2.5-0.5B", 0.494),
        ("Qwen2.5-1.5B", 1.544),
        ("Qwen2.5-7B", 7.616),
        ("Qwen2.5-14B", 14.77),
        ("Qwen3-8B", 8.191),
        ("Llama-3.2-1B", 1.236),
    ],
)
def test_shapes_give_the_published_numbers_of_parameters(name: str, billions: float) -> None:
    assert parameters(PUBLISHED[name]) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_parameters_of_a_real_model_are_counted() -> None:
    from paw_hpc.policy.loading import load_model, load_tokenizer

    recipe = parse_recipe({"model": {"path": "warm-start"}})
    model = load_model(recipe, load_tokenizer(recipe.model))
    assert parameters(architecture_for(recipe)) == sum(p.numel() for p in model.parameters())


def test_states_are_bytes_per_parameter() -> None:
    recipe = big(megatron__distributed_optimizer=False)
    memory, count = (
        trainer_memory(recipe, lay_out(recipe), architecture_for(recipe)),
        parameters(architecture_for(recipe)),
    )
    assert memory.weights == pytest.approx(2 * count, rel=1e-6)  # bfloat16
    assert memory.gradients == pytest.approx(4 * count, rel=1e-6)  # float32 main gradients
    assert memory.optimizer == pytest.approx(12 * count, rel=1e-6)  # float32 masters and two moments


def test_parallelism_and_sharding_divide_states() -> None:
    one, model = big(), architecture_for(big())
    alone = trainer_memory(one, lay_out(one), model)
    tensor = big(megatron__tensor_parallel=4)
    split = trainer_memory(tensor, lay_out(tensor), model)
    assert split.weights == pytest.approx(alone.weights / 4, rel=1e-3)
    assert alone.optimizer == pytest.approx(12 * parameters(model) / 8, rel=1e-3)  # eight replicas share it
    assert split.optimizer == pytest.approx(12 * parameters(model) / 4 / 2, rel=1e-3)
    recomputed = big(megatron__recompute="full")
    assert trainer_memory(recomputed, lay_out(recomputed), model).activations < alone.activations / 8


def test_the_cache_is_what_weights_leave() -> None:
    server = server_memory(big(), architecture_for(big()))
    assert server.bytes_per_token == 2 * 28 * 4 * 128 * 2
    assert server.cache == int(
        0.8 * GPU_BYTES["H100"]
    ) - server.weights and server.requests == server.cache // (server.bytes_per_token * 2560)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"megatron__tensor_parallel": 2},
        {"cluster__gpu": "A100-40"},
        {"model__path": "Qwen/Qwen2.5-32B-Instruct", "megatron__tensor_parallel": 4},
        {"rollout__fleet__memory_fraction": 0.15},
    ],
)
def test_a_refusal_names_a_layout_that_fits(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="the nearest layout that fits: ") as refused:
        footprint_of(big(**changes))
    overrides = dict(word.split("=") for word in str(refused.value).rpartition("that fits: ")[2].split())
    found = footprint_of(apply_overrides(big(**changes), overrides))
    assert found.trainer is not None and found.trainer.total < GPU_BYTES[found.recipe.cluster.gpu]


def test_what_nothing_can_hold_is_said() -> None:
    with pytest.raises(RecipeError, match="use a smaller model"):
        footprint_of(
            big("Qwen/Qwen2.5-72B-Instruct", cluster__gpu="L40S", optimizer__max_tokens_per_micro_batch=2**22)
        )


def test_a_layout_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match=r"megatron.tensor_parallel: 8 does not divide the model's 4 key-value heads|attention heads",
    ):
        footprint_of(big(megatron__tensor_parallel=8))


def test_an_unknown_model_is_refused_with_those_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read on import
    with pytest.raises(RecipeError, match=r"nobody/nothing.*Qwen2.5-7B"):
        footprint_of(big("nobody/nothing"))


def test_more_gpus_are_faster_and_memory_is_listed() -> None:
    few = footprint_of(big(megatron__tensor_parallel=2, megatron__recompute="full"))
    many = footprint_of(
        big(
            megatron__tensor_parallel=2,
            megatron__recompute="full",
            cluster__trainer_nodes=2,
            cluster__rollout_nodes=2,
        )
    )
    assert few.trainer is not None and few.time is not None and many.time is not None
    assert many.time.train_s == pytest.approx(few.time.train_s / 2) and many.time.play_s < few.time.play_s
    text = "\n".join(footprint_lines(few))
    for word in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "head",
        "KV cache",
        "assumed:",
        "node 1: 8 SGLang servers x 1 GPU",
    ):
        assert word in text
    assert f"{few.trainer.total / GIB:.1f} GiB of 80 GiB" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan(path: Path) -> None:
    plan = footprint_of(load_recipe(path))
    assert plan.layout.nodes >= 1 and footprint_lines(plan)[0].startswith(plan.recipe.name)
