"""Models and tokenizers that are found, and one clear line for those that are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.recipe import SHIPPED_POLICIES, Recipe
from paw_hpc.system.errors import RecipeError
from tests.factories import tiny_recipe
from tests.policy.models import model_folder, tokenizer_folder, word_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(model_folder(tmp_path / "model"))


def recipe_of(path: Any, **dotted: Any) -> Recipe:
    return tiny_recipe(
        **(
            {"model.tiny": None, "model.tokenizer": None, "model.path": str(path), "model.device": "cpu"}
            | dotted
        )
    )


def load(recipe: Recipe) -> None:
    load_model(recipe, load_tokenizer(recipe.model))


def message(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        load(recipe)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert message(recipe_of(folder)).startswith(f"model.path: {folder} holds no tokenizer")


def test_the_tokenizer_may_live_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    load(recipe_of(folder, **{"model.tokenizer": tokenizer_folder(tmp_path / "tokenizer")}))


def test_a_folder_without_weights_or_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in message(recipe_of(folder))
    (folder / "config.json").unlink()
    assert "holds no config.json" in message(recipe_of(folder))


def test_torn_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded as a causal language model" in message(recipe_of(folder))


def test_incomplete_weights_are_not_filled_with_random_ones(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights" in message(recipe_of(folder)) and "model.layers.1.mlp.up_proj.weight" in message(
        recipe_of(folder)
    )


def test_an_unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "teapot",
        "architectures": ["Teapot"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "teapot" in message(recipe_of(folder))


def test_a_tokenizer_larger_than_the_model(folder: Path) -> None:
    word_tokenizer(60).save_pretrained(folder)
    assert "60 tokens but the model only 50" in message(recipe_of(folder))


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c"])
def test_a_path_that_is_nothing(path: str) -> None:
    assert message(recipe_of(path)).startswith(f"model.path: no folder '{path}'")


def test_a_gpu_that_is_not_there(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match=r"model.device: 'cuda' was asked for"):
        HuggingFacePolicy(recipe_of(folder, **{"model.device": "cuda"}))


def test_a_word_level_tokenizer_stays_itself_beside_a_qwen2_model(folder: Path) -> None:
    assert load_tokenizer(recipe_of(folder).model)("w3 w7 w1")["input_ids"] == [3, 7, 1]


def test_a_tiny_model_is_a_function_of_its_sizes_vocabulary_and_seed(tmp_path: Path) -> None:
    def tiny(**dotted: Any) -> dict[str, torch.Tensor]:
        recipe = tiny_recipe(**({"model.tokenizer": tokenizer_folder(tmp_path / "tokenizer")} | dotted))
        torch.manual_seed(torch.seed() % 1000)  # whatever was drawn before does not matter
        return load_model(recipe, load_tokenizer(recipe.model)).state_dict()

    first, again, other, untied = (
        tiny(seed=1),
        tiny(seed=1),
        tiny(seed=2),
        tiny(seed=1, **{"model.tiny.tie_embeddings": False}),
    )
    assert first["model.embed_tokens.weight"].shape == (50, 32)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert first["lm_head.weight"] is not untied["lm_head.weight"] and not torch.equal(
        first["lm_head.weight"], untied["lm_head.weight"]
    )
    half = tiny(seed=1, **{"model.dtype": "bfloat16"})
    assert all(torch.equal(first[k].bfloat16(), half[k]) for k in first)


def test_building_a_tiny_model_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    recipe = tiny_recipe(**{"model.tokenizer": tokenizer_folder(tmp_path / "tokenizer")})
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load(recipe)
    assert torch.equal(torch.rand(3), expected)


def test_a_tokenizer_that_could_never_end_a_turn(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    assert "no eos_token" in message(tiny_recipe(**{"model.tokenizer": str(tmp_path)}))


def test_the_shipped_policy_is_missing_where_it_was_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setitem(SHIPPED_POLICIES, "warm-start", tmp_path / "shipped")
    assert "reinstall" in message(recipe_of("warm-start"))
    shutil.copytree(folder, tmp_path / "shipped")
    load(recipe_of("warm-start"))
