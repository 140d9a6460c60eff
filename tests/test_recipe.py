"""Recipes compose, override and refuse: every refusal is one line that names file, key and what would be
right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.panels import parse_name
from paw_hpc.recipe import TASK_TYPES, EnvSection, Recipe, dump_recipe, load_recipe, panels_of, parse_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.system.errors import DataError, RecipeError
from tests.recipe_files import RECIPES, ROOT

MODEL = "model: {path: some/model}\n"


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(folder: Path, text: str | bytes, *overrides: str) -> str:
    path = write(folder, text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, overrides)
    message = str(refused.value)
    assert "\n" not in message and (str(path) in message or message.startswith("override"))
    return message.removeprefix(f"{path}: ")


class TestComposition:
    def test_a_recipe_is_its_base_with_changes_and_overrides_come_last(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            MODEL + "name: grand\nupdates: 5\nwm: {alpha: 0.5, rho: 0.1}\nenv: {history: 4}\n",
            "bases/grand.yaml",
        )
        write(tmp_path, "base: grand.yaml\nname: parent\nwm: {alpha: 0.25}\n", "bases/parent.yaml")
        child = write(tmp_path, "base: bases/parent.yaml\nenv: {max_steps: 9}\n")
        recipe = load_recipe(child)
        assert (
            recipe.name,
            recipe.updates,
            recipe.wm.alpha,
            recipe.wm.rho,
            recipe.env.history,
            recipe.env.max_steps,
        ) == (
            "parent",
            5,
            0.25,
            0.1,
            4,
            9,
        )
        recipe = load_recipe(child, ["wm.alpha=1", "optimizer.lr=2e-6", "model.path=other", "wm.alpha=0.75"])
        assert (recipe.wm.alpha, recipe.wm.rho, recipe.optimizer.lr, recipe.model.path) == (
            0.75,
            0.1,
            2e-6,
            "other",
        )

    def test_what_is_not_said_is_the_papers(self, tmp_path: Path) -> None:
        r = load_recipe(write(tmp_path, MODEL))
        assert (r.env.max_steps, r.env.history, r.env.success_reward, r.env.invalid_penalty) == (
            50,
            2,
            10.0,
            0.1,
        )
        assert (
            r.rollout.groups,
            r.rollout.group_size,
            r.rollout.max_prompt_tokens,
            r.rollout.max_response_tokens,
        ) == (16, 8, 2048, 512)
        assert (r.wm.loss, r.wm.alpha, r.wm.rho, r.wm.coefficient, r.wm.entropy) == (
            "clipped_mae",
            0.75,
            0.2,
            "reward_adaptive",
            "full",
        )
        assert (r.algorithm.gamma, r.algorithm.gigpo_omega, r.algorithm.kl_coefficient, r.optimizer.lr) == (
            0.95,
            1.0,
            0.01,
            1e-6,
        )
        assert (r.rollout.temperature, r.eval.temperature, r.updates, r.env.task_types) == (
            1.0,
            0.4,
            150,
            TASK_TYPES,
        )

    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("env.task_types=[look_at_obj_in_light]", ("look_at_obj_in_light",)),
            ("rollout.stop=['</action>','x y']", ("</action>", "x y")),
            ("algorithm.dual_clip=null", None),
            ("wm.final_scale=0", 0.0),
            ("optimizer.betas=[0.8,0.99]", (0.8, 0.99)),
            ("eval.panel=valid_unseen:40@3", "valid_unseen:40@3"),
            ("name='1e5'", "1e5"),
        ],
    )
    def test_overrides_are_yaml(self, tmp_path: Path, override: str, value: object) -> None:
        found: Any = load_recipe(write(tmp_path, MODEL), [override])
        for part in override.split("=")[0].split("."):
            found = getattr(found, part)
        assert found == value

    def test_a_base_can_be_overridden_with_null(self, tmp_path: Path) -> None:
        write(tmp_path, "model: {tokenizer: t, tiny: {heads: 2}}\n", "b.yaml")
        recipe = load_recipe(write(tmp_path, "base: b.yaml\nmodel: {path: p, tiny: null}\n"))
        assert recipe.model.tiny is None and recipe.model.path == "p"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("wm: {alhpa: 0.5}", "wm.alhpa: unknown key; did you mean 'wm.alpha'?"),
            ("optimiser: {lr: 1}", "optimiser: unknown key; did you mean 'optimizer'?"),
            (
                "model: {tokenizer: t, tiny: {head: 2}}",
                "model.tiny.head: unknown key; did you mean 'model.tiny.heads'?",
            ),
            (
                "eval: {zzz: 1}",
                "eval.zzz: unknown key; known keys here: panel, every, temperature, repeats, seeds",
            ),
            ("1: 2", "1: Keys should be strings, got 1"),
        ],
    )
    def test_unknown_keys_with_a_suggestion(self, tmp_path: Path, text: str, said: str) -> None:
        assert refusal(tmp_path, ("" if "model" in text else MODEL) + text) == said

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("updates=many", "updates: Input should be a valid integer"),
            ("updates=0", "updates: Input should be greater than 0, got 0"),
            ("seed=1.5", "seed: Input should be a valid integer"),
            ("wm.alpha=1.5", "wm.alpha: Input should be less than or equal to 1, got 1.5"),
            ("wm.alpha=", "wm.alpha: Input should be a valid number, got None"),
            ("wm.loss=mse", "wm.loss: Input should be 'clipped_mae', 'mae' or 'cross_entropy', got 'mse'"),
            (
                "algorithm.name=PPO",
                "algorithm.name: Input should be 'grpo', 'gigpo', 'rloo' or 'ppo', got 'PPO'",
            ),
            ("env.task_types=[juggle]", "env.task_types.0: Input should be 'pick_and_place_simple'"),
            ("env.task_types=[]", "env.task_types: Tuple should have at least 1 item"),
            ("optimizer.betas=[0.9]", "optimizer.betas.1: Field required"),
            ("optimizer.lr=.inf", "optimizer.lr: Input should be a finite number, got inf"),
            ("env.success_reward=.nan", "env.success_reward: Input should be a finite number, got nan"),
            ("env=5", "env: Input should be a valid dictionary"),
            ("name=a/b", "name: String should match pattern"),
            ("eval.panel=valid", "eval.panel: no such panel; one of valid_seen, "),
        ],
    )
    def test_wrong_values(self, tmp_path: Path, override: str, said: str) -> None:
        assert refusal(tmp_path, MODEL, override).startswith(said)

    @pytest.mark.parametrize(
        "override",
        [
            "algorithm.gigpo_similarity=off",
            "wm.final_scale=off",
            "updates=yes",
            "eval.every=false",
            "name=on",
        ],
    )
    def test_switches_where_a_value_belongs(self, tmp_path: Path, override: str) -> None:
        """YAML's `off` is false, and false would pass for 0: a similarity of 0, or a world-model loss that
        fades to nothing."""
        assert refusal(tmp_path, MODEL, override).startswith(f"{override.split('=')[0]}: not a switch")
        assert load_recipe(write(tmp_path, MODEL), ["wm.enabled=off"]).wm.enabled is False

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                MODEL + "rollout: {group_size: 1}",
                "rollout.group_size: 1 leaves grpo without a baseline; use at least 2, or algorithm.name=ppo",
            ),
            (
                MODEL + "rollout: {group_size: 1}\nalgorithm: {name: gigpo}",
                "rollout.group_size: 1 leaves gigpo",
            ),
            ("updates: 1", "model: give exactly one of model.path"),
            ("model: {path: p, tokenizer: t, tiny: {}}", "model: give exactly one of model.path"),
            ("model: {tiny: {}}", "model.tokenizer: a model from scratch needs a tokenizer folder"),
            ("model: {tokenizer: t, tiny: {hidden_size: 30}}", "model.tiny: heads must divide hidden_size"),
            (
                "model: {tokenizer: t, tiny: {heads: 4, kv_heads: 3}}",
                "model.tiny: heads must divide hidden_size, and kv_heads must divide heads",
            ),
            (
                MODEL + "env: {success_reward: 0}",
                "env.success_reward: the reward-adaptive coefficient needs R_max > 0",
            ),
            (MODEL + "algorithm: {dual_clip: 1}", "algorithm.dual_clip: 1.0 must exceed 1 (or be null)"),
            (
                MODEL + "algorithm: {name: ppo, token_gamma: 0.9}",
                "algorithm: token_gamma: nothing runs over tokens with ppo_advantages=steps",
            ),
            (MODEL + "algorithm: {token_lambda: 0.9}", "algorithm: token_lambda: nothing runs over tokens"),
            (
                MODEL + "optimizer: {warmup_updates: 3, warmup_share: 0.1}",
                "optimizer.warmup_share: the warm-up is given twice",
            ),
        ],
    )
    def test_impossible_combinations(self, tmp_path: Path, text: str, said: str) -> None:
        assert refusal(tmp_path, text).startswith(said)

    def test_only_what_is_impossible(self, tmp_path: Path) -> None:
        for text in (
            MODEL + "rollout: {group_size: 1}\nalgorithm: {name: ppo}",
            MODEL + "env: {success_reward: 0}\nwm: {coefficient: constant}",
            MODEL + "env: {success_reward: 0}\nwm: {enabled: false}",
            "model: {tokenizer: t, tiny: {}}",
        ):
            assert isinstance(load_recipe(write(tmp_path, text)), Recipe)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("- a\n- b\n", "a recipe is a mapping of keys, found a list"),
            ("a: [\n", "cannot be read as YAML"),
            ("updates: 1\nupdates: 2\n", "cannot be read as YAML: while constructing a mapping"),
            (b"\xff\xfe\x00", "cannot be read as YAML"),
            ("base: 5\n", "base: expected the path of another recipe, got 5"),
            ("name: ${nowhere}\n", "Interpolation key 'nowhere' not found"),
            ("base: r.yaml\n", "its chain of `base:` leads back to itself"),
        ],
    )
    def test_files_that_are_no_recipes(self, tmp_path: Path, text: str | bytes, said: str) -> None:
        assert refusal(tmp_path, text).startswith(said)

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe file"):
            load_recipe(tmp_path / "nowhere.yaml")
        with pytest.raises(RecipeError, match=r"lost\.yaml: no such recipe file"):
            load_recipe(write(tmp_path, "base: lost.yaml\n"))
        with pytest.raises(RecipeError, match="cannot be read as YAML"):
            load_recipe(tmp_path)

    def test_circles_of_bases(self, tmp_path: Path) -> None:
        write(tmp_path, "base: sub/b.yaml\n", "a.yaml")
        write(tmp_path, "base: ../a.yaml\n", "sub/b.yaml")
        with pytest.raises(RecipeError, match="leads back to itself"):
            load_recipe(tmp_path / "a.yaml")

    @pytest.mark.parametrize("override", ["wm.alpha", "=3", "wm.alpha=[1"])
    def test_overrides_that_are_none(self, tmp_path: Path, override: str) -> None:
        assert refusal(tmp_path, MODEL, override).startswith("override")

    def test_all_of_them_at_once(self, tmp_path: Path) -> None:
        said = refusal(tmp_path, MODEL + "wm: {alpha: 2, foo: 1}\nupdates: x\n")
        assert "wm.alpha: " in said and "wm.foo: unknown key" in said and "updates: " in said

    def test_changes_after_loading(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            EnvSection().max_steps = 3  # type: ignore[misc]


def test_a_panel_that_a_recipe_takes_is_one_that_can_be_evaluated_and_the_reverse() -> None:
    for name in (
        "valid_seen",
        "valid_unseen:1@0",
        "valid_train:40@12",
        "train",
        "valid_seen:0@1",
        "valid_seen:4",
        "valid_seen:4@",
        "",
        "x\nvalid_seen",
    ):
        accepted = []
        for check, error in (
            (lambda n: parse_recipe({"model": {"path": "p"}, "eval": {"panel": n}}), RecipeError),
            (parse_name, DataError),
        ):
            try:
                check(name)
                accepted.append(True)
            except error:
                accepted.append(False)
        assert accepted[0] == accepted[1], name


class TestRoundTrip:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
    def test_every_recipe_of_the_project_loads_and_comes_back_from_its_dump(
        self, path: Path, tmp_path: Path
    ) -> None:
        recipe = load_recipe(path)
        assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe

    def test_there_are_recipes(self) -> None:
        assert len(RECIPES) >= 2

    def test_values_that_yaml_may_take_for_others_survive(self, tmp_path: Path) -> None:
        recipe = parse_recipe(
            {
                "name": "1e5",
                "model": {"path": "null", "tokenizer": "~/x: y # z"},
                "rollout": {"stop": ["</action>", "yes", "1", " \n", "'\"", "é"]},
                "optimizer": {"lr": 1e-7, "eps": 3e-300, "betas": [0.1 + 0.2, 0.99999999]},
                "wm": {"final_scale": 0.0},
                "algorithm": {"dual_clip": None, "truncated_importance": 2.0},
            }
        )
        assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


class TestBenchmarks:
    def test_each_has_its_own_panels_and_a_default_among_them(self) -> None:
        chosen = {
            name: parse_recipe({"model": {"path": "p"}, "env": {"name": name}}).eval.panel
            for name in BENCHMARKS.names()
        }
        assert chosen == {"alfworld": "valid_seen", "webshop": "test", "search": panels_of("search")[0]}
        assert (
            parse_recipe(
                {
                    "model": {"path": "p"},
                    "env": {"name": "webshop"},
                    "eval": {"panel": "train:5@1", "every": 2},
                }
            ).eval.panel
            == "train:5@1"
        )

    @pytest.mark.parametrize(
        ("benchmark", "panel"),
        [
            ("webshop", "valid_seen"),
            ("alfworld", "test"),
            ("search", "valid_seen:3@0"),
            ("webshop", "test:0@1"),
        ],
    )
    def test_refuse_the_panels_of_others(self, benchmark: str, panel: str) -> None:
        with pytest.raises(
            RecipeError, match=f"eval.panel: no such panel; one of {panels_of(benchmark)[0]}, .*got '{panel}'"
        ):
            parse_recipe({"model": {"path": "p"}, "env": {"name": benchmark}, "eval": {"panel": panel}})

    def test_refuse_the_keys_of_others(self) -> None:
        with pytest.raises(RecipeError, match="env: games: a key of alfworld, and name is webshop"):
            parse_recipe({"model": {"path": "p"}, "env": {"name": "webshop", "games": "official"}})
