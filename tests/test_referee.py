"""`paw eval MODEL --protocol ...`: any checkpoint is judged by a protocol's rules, whole, and the result
names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.webshop import data, teacher
from paw_hpc.evaluation.panel import evaluate_path
from paw_hpc.evaluation.referee import judged
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.policy.tiny import build_tiny
from paw_hpc.recipe import PROTOCOLS, ProtocolName, TinyModel, load_recipe, parse_recipe
from paw_hpc.recipe.protocols import departures, judged_as, judged_by, protocol, standing
from paw_hpc.recipe.shipped import shipped_recipes
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.errors import RecipeError, UserError
from tests.recipe_files import ROOT

BY_PROTOCOL = pytest.mark.parametrize("name", PROTOCOLS)
SMALL = (
    "env.max_steps=2",
    "rollout.max_response_tokens=4",
    "rollout.max_prompt_tokens=6000",
    "model.dtype=float32",
    "threads=1",
)
"""What a random model of a byte-level vocabulary needs to be judged in seconds."""
PLAYED: dict[str, tuple[str, tuple[str, ...]]] = {
    "alfworld": ("valid_seen:1@0", ("env.games=auto",)),
    "webshop": ("test:2@0", ("env.webshop.catalogue=generated", "env.webshop.goals=synthetic")),
    "search": ("test:2@0", ("env.search.data=generated", "env.search.retriever=bm25", "env.search.url=null")),
}
"""Benchmark -> a panel, and the overrides with which it is there on every machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder as it would be downloaded: weights, tokenizer, chat template, and no recipe."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = teacher.build_tokenizer(
        ["go to the shelf and take the mug. search[dress shirts] click[buy now] who wrote it?"] * 3, 400
    )
    tokenizer.save_pretrained(folder)
    build_tiny(
        TinyModel(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=64), tokenizer, 0
    ).save_pretrained(folder)
    assert not (folder / "recipe.yaml").exists()
    return folder


@pytest.fixture
def small_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.generated_files, "__defaults__", (150, 1, None))
    monkeypatch.setattr("paw_hpc.envs.webshop.benchmark.TEST_GOALS", 20)


@pytest.mark.usefixtures("small_shop")
@BY_PROTOCOL
@pytest.mark.parametrize("benchmark", PLAYED)
def test_a_folder_is_judged_on_every_benchmark(
    model: Path, tmp_path: Path, benchmark: str, name: ProtocolName
) -> None:
    panel, own = PLAYED[benchmark]
    result = evaluate_path(
        str(model),
        panel=panel,
        workers=1,
        out=tmp_path,
        protocol=name,
        benchmark=benchmark,
        overrides=[*SMALL, *own],
    )
    rules = protocol(name, benchmark)
    assert (
        result.games == int(panel.split(":")[1][0])
        and 0 <= result.interval[0] <= result.success <= result.interval[1] <= 1
    )
    assert result.temperature == rules.eval.temperature and result.update == 0
    assert result.label.startswith(f"{name}-{benchmark}-test") or result.label.startswith(
        f"{name}-alfworld-valid_seen"
    )
    assert read_evaluations(tmp_path) == [result]
    # It names the protocol, and every rule that these overrides changed; nothing else.
    said, _, changed = result.judged_by.partition(", except ")
    keys = {item.split(":")[0] for item in changed.split("; ")}
    assert said == name and keys == {
        *("env.max_steps", "rollout.max_response_tokens", "rollout.max_prompt_tokens"),
        *(
            key
            for key, value in (item.split("=") for item in own)
            if _value(rules, key) != value and key != "env.search.url"
        ),
    }
    assert f"env.max_steps: 2 ({name}: {rules.env.max_steps})" in changed


def _value(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


class TestRules:
    @BY_PROTOCOL
    @pytest.mark.parametrize("benchmark", PLAYED)
    def test_all_that_decides_an_episode_is_the_protocols(self, benchmark: str, name: ProtocolName) -> None:
        """Of a hub name too: nothing is loaded to know the rules."""
        panel, rules = PLAYED[benchmark][0], protocol(name, benchmark)
        case = judged("some/model-7b", panel, protocol=name, benchmark=benchmark)
        recipe = case.recipe
        assert case.run is None and recipe.model.path == "some/model-7b" and recipe.protocol == name
        assert (recipe.env, recipe.eval, recipe.rollout) == (rules.env, rules.eval, rules.rollout)
        assert judged_by(recipe, recipe.eval.temperature) == name
        # no second copy of a model that is only judged
        assert recipe.algorithm.kl_coefficient == 0.0 and not recipe.wm.enabled

    def test_backends_and_servers_are_overrides(self) -> None:
        found = judged(
            "m",
            "valid_seen",
            protocol="ours",
            overrides=["rollout.engine=sglang", "rollout.fleet.addresses=[http://node7:30000]", "seed=5"],
        ).recipe
        assert (
            found.rollout.engine == "sglang"
            and found.rollout.fleet.addresses == ("http://node7:30000",)
            and found.seed == 5
        )
        assert judged_by(found, found.eval.temperature) == "ours"  # who computes is no rule
        assert judged_by(found, 1.0) == "ours, except eval.temperature: 1 (ours: 0.4)"

    def test_the_panel_names_the_benchmark_where_it_can(self) -> None:
        assert judged("m", "valid_unseen:4@0", protocol="ours").recipe.env.name == "alfworld"
        assert judged("m", "musique", protocol="ours").recipe.env.name == "search"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                {"panel": "test", "protocol": "ours"},
                "webshop and search have one of this name; give --benchmark",
            ),
            ({"panel": "tset", "protocol": "ours"}, "no such panel .*valid_seen"),
            ({"panel": "valid_seen", "protocol": "theirs"}, "--protocol theirs: one of reference, ours"),
            (
                {"panel": "valid_seen", "protocol": "ours", "benchmark": "alfred"},
                "--benchmark alfred: one of alfworld, webshop, search",
            ),
            ({"panel": "valid_seen", "benchmark": "alfworld"}, "give --protocol as well"),
            (
                {"panel": "valid_seen"},
                "some/model: no recipe.yaml .* give --protocol reference, or --protocol ours",
            ),
        ],
    )
    def test_what_cannot_be_judged_is_said_in_a_line(self, arguments: dict[str, str], said: str) -> None:
        with pytest.raises(UserError, match=said) as refused:
            judged("some/model", **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)

    def test_an_override_is_checked_as_in_training(self) -> None:
        with pytest.raises(RecipeError, match=r"env\.max_step: unknown key; did you mean 'env\.max_steps'"):
            judged("m", "valid_seen", protocol="ours", overrides=["env.max_step=3"])

    def test_a_run_is_judged_by_its_own_recipe_or_by_a_protocol(self, tmp_path: Path) -> None:
        """Its model, data and machinery stay; prompt, parsing, limits and temperature are the protocol's."""
        own = parse_recipe(
            {
                "model": {"path": "warm-start"},
                "env": {"games": "generated", "prompt": "compact", "max_steps": 9, "workers": 3},
                "rollout": {"max_prompt_tokens": 512, "max_response_tokens": 12, "max_batch": 7},
                "wm": {"enabled": False},
                "eval": {"temperature": 1.0},
            }
        )
        run = RunDirectory(tmp_path / "run")
        run.open(own, "test")
        plain = judged(str(run.path), "valid_seen")
        assert plain.recipe == own and plain.run is not None and plain.run.path == run.path
        assert judged(str(run.path), "valid_seen", overrides=["env.max_steps=4"]).recipe.env.max_steps == 4
        rules = protocol("ours", "alfworld")
        found = judged(str(run.path), "valid_seen", protocol="ours", overrides=["env.history=1"]).recipe
        assert (found.env.games, found.env.workers, found.rollout.max_batch, found.model, found.wm) == (
            "generated",
            3,
            7,
            own.model,
            own.wm,
        )
        assert (found.env.prompt, found.env.max_steps, found.env.history) == (
            "paper",
            50,
            1,
        ) and found.eval == rules.eval
        assert (found.rollout.max_prompt_tokens, found.rollout.max_response_tokens) == (2048, 512)
        assert (
            judged_by(found, 0.4)
            == "ours, except env.games: generated (ours: official); env.history: 1 (ours: 2)"
        )

    def test_a_recipe_without_a_protocol_names_none(self) -> None:
        assert judged_by(parse_recipe({"model": {"path": "m"}}), 0.4) == ""


class TestProtocols:
    @BY_PROTOCOL
    @pytest.mark.parametrize("benchmark", PLAYED)
    @pytest.mark.parametrize("algorithm", ["grpo", "gigpo", "rloo", "ppo"])
    def test_a_protocol_departs_from_itself_in_nothing(
        self, benchmark: str, name: ProtocolName, algorithm: str
    ) -> None:
        recipe = protocol(name, benchmark, algorithm)
        found = standing(recipe)
        assert (found.named, found.said) == (name, True) and recipe.algorithm.name == algorithm
        assert found.departures[name] == ()

    def test_keys_that_an_algorithm_does_not_read_are_no_departure(self) -> None:
        for algorithm, counted in (("grpo", False), ("gigpo", True)):
            recipe = protocol("ours", "alfworld", algorithm)
            changed = recipe.model_copy(
                update={"algorithm": recipe.algorithm.model_copy(update={"gigpo_omega": 0.5})}
            )
            assert (departures(changed, "ours") == ("algorithm.gigpo_omega: 0.5 (ours: 1)",)) is counted
        for algorithm, counted in (("grpo", False), ("ppo", True)):
            recipe = protocol("ours", "alfworld", algorithm)
            changed = recipe.model_copy(
                update={"optimizer": recipe.optimizer.model_copy(update={"critic_lr": 0.5})}
            )
            assert bool(departures(changed, "ours")) is counted

    def test_machinery_and_arm_are_no_departure_and_every_other_key_is(self) -> None:
        path = ROOT / "webshop" / "ours.yaml"
        same = [
            "model.path=other",
            "policy.backend=megatron",
            "rollout.engine=sglang",
            "seed=3",
            "wm.rho=1.0",
            "eval.every=2",
            "env.workers=9",
        ]
        assert departures(load_recipe(path, same), "ours") == ()
        for override in (
            "updates=10",
            "env.history=1",
            "rollout.groups=4",
            "optimizer.betas=[0.8,0.9]",
            "eval.temperature=1.0",
            "wm.max_observation_tokens=9",
        ):
            [found] = departures(load_recipe(path, [override]), "ours")
            assert found.startswith(override.split("=")[0] + ": ")
        vanilla = ["wm.enabled=false", "wm.max_observation_tokens=9"]
        assert departures(load_recipe(path, vanilla), "ours") == ()

    def test_order_of_task_types_means_nothing(self) -> None:
        recipe = protocol("ours", "alfworld")
        turned = recipe.model_copy(
            update={"env": recipe.env.model_copy(update={"task_types": recipe.env.task_types[::-1]})}
        )
        assert departures(turned, "ours") == ()
        less = recipe.model_copy(
            update={"env": recipe.env.model_copy(update={"task_types": recipe.env.task_types[:1]})}
        )
        assert departures(less, "ours") == ("env.task_types: pick_and_place_simple (ours: all six)",)

    def test_what_a_recipe_says_wins_over_what_it_looks_like(self) -> None:
        path = ROOT / "alfworld" / "ours.yaml"
        assert standing(load_recipe(path, ["updates=10"])).named == "ours"
        silent = standing(load_recipe(path, ["protocol=null"]))
        assert (silent.named, silent.said) == ("ours", False)
        assert standing(load_recipe(path, ["protocol=null", "updates=10"])).named is None

    def test_judged_as_another_benchmark_keeps_none_of_its_data(self) -> None:
        search, shop = protocol("ours", "search"), protocol("ours", "webshop")
        assert (
            judged_as(search, shop).env.search == shop.env.search
            and judged_as(search, shop).env.name == "webshop"
        )

    def test_the_shipped_recipes_are_those_of_this_checkout(self) -> None:
        assert shipped_recipes() == ROOT


def test_a_result_of_before_protocols_had_names_is_read(tmp_path: Path, model: Path) -> None:
    panel, own = PLAYED["search"]
    result = evaluate_path(
        str(model), panel=panel, out=tmp_path, protocol="ours", benchmark="search", overrides=[*SMALL, *own]
    )
    [summary] = (tmp_path / "evaluations").glob("*.json")
    content = json.loads(summary.read_text())
    assert content.pop("judged_by") == result.judged_by != ""
    summary.write_text(json.dumps(content))
    assert read_evaluations(tmp_path)[0].judged_by == ""
