"""The protocol `reference` is the table below, key by key; recipes/paper/protocol.yaml leads from `ours` to
it, one difference at a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from paw_hpc.envs.webshop.benchmark import TEST_GOALS
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.recipe.protocols import departures, protocol, standing
from paw_hpc.study.sweep import Variant, load_sweep
from tests.beside import SHARED, beside
from tests.recipe_files import CHOICES

NOTES = "reference/agent_rl/README.md"
BENCHMARKS = ("alfworld", "webshop", "search")
ALGORITHMS = ("grpo", "gigpo", "rloo", "ppo")
GONE = object()
"""The benchmark has no such key."""

Values = Any
"""One value for all benchmarks, or a list of one each: ALFWorld, WebShop, search QA."""
TABLE: dict[str, dict[str, Values]] = {
    "WebShop's catalogue and goals": {
        "env.webshop.catalogue": [GONE, "small", GONE],
        "env.webshop.goals": [GONE, "synthetic", GONE],
    },
    # ALFWorld's is the table's; see docs/reproduction.md for the others
    "ALFWorld judged on": {"eval.panel": ["valid_seen", "test", "test:700@0"]},
    "what an action must be to be *valid*": {"env.validity": "format"},
    "invalid-action penalty": {"algorithm.penalty": "sample"},
    "group mean and deviation (GRPO, RLOO, GiGPO's episode part)": {"algorithm.statistics": "samples"},
    "GiGPO's step part": {
        "algorithm.gigpo_anchor": "observation",
        "algorithm.gigpo_similarity": [None, None, 0.9],
    },
    # as the paper says; the example for WebShop, which leaves it out, is `mean-only`
    "GiGPO's normalization": {"algorithm.normalize_std": True},
    "RLOO": {"algorithm.statistics": "samples"},
    "PPO": {
        "algorithm.ppo_advantages": "tokens",
        "algorithm.token_gamma": 1.0,
        "algorithm.token_lambda": 1.0,
    },
    "entropy bonus": {"algorithm.entropy_bonus": [0.001, 0.001, 0.0]},
    "learning-rate warm-up": {"optimizer.warmup_share": [0.0, 0.0, 0.1], "optimizer.warmup_updates": 0},
    "RL loss average": {},  # stays different: docs/reproduction.md
    "divisible batches": {},  # likewise
    "KL to the start": {
        "algorithm.kl_coefficient": [0.01, 0.01, 0.001],
        "algorithm.kl_estimator": "low_variance",
    },
    "clipping": {"algorithm.clip_low": 0.2, "algorithm.clip_high": 0.2, "algorithm.dual_clip": 3.0},
    "one pass, AdamW, decay 0.01, clip norm 1, temperature 1, no top-p / top-k": {
        "optimizer.epochs": 1,
        "optimizer.weight_decay": 0.01,
        "optimizer.clip_grad": 1.0,
        "rollout.temperature": 1.0,
    },
    "sizes": {
        "rollout.groups": [16, 16, 256],
        "rollout.group_size": [8, 8, 5],
        "optimizer.mini_batch": [256, 64, 512],
        "rollout.max_prompt_tokens": [2048, 4096, 4096],
        "rollout.max_response_tokens": 512,
    },
    # search: all that there can be
    "prompt": {"env.prompt": "paper", "env.prompt_template": "reference", "env.history": [2, 2, 4]},
    "validation": {"eval.every": [5, 5, 50], "eval.temperature": [0.4, 0.4, 0.0]},
}
"""Row of the notes on the reference -> key -> values."""
OF_PPO = {"rollout.groups": 128, "rollout.group_size": 1}
"""The paper's: 128 separate environments."""


RUNS = load_sweep(CHOICES.parent / "protocol.yaml").variants
WORDS: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CHOICES))["difference"]  # type: ignore[index,call-overload,assignment]


def word_of(run: Variant) -> str:
    """Its word of the axis `difference`; empty: none."""
    return max(
        (word for word in WORDS if f"-{word}-" in run.name.split(algorithm_of(run), 1)[1]),
        key=len,
        default="",
    )


def algorithm_of(run: Variant) -> str:
    return next(name for name in ALGORITHMS if f"-{name}-" in run.name)


def keys_of(word: str) -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, of in tree.items():
            walk(of, f"{prefix}{key}.") if isinstance(of, dict) else flat.__setitem__(prefix + key, of)

    walk(WORDS[word], "")
    return flat


DIFFERING = [run for run in RUNS if word_of(run)]


def value(recipe: Recipe, key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_reference_is_the_table(benchmark: str, algorithm: str) -> None:
    recipe, wanted = protocol("reference", benchmark, algorithm), dict[str, Any]()
    for keys in TABLE.values():
        for key, values in keys.items():
            wanted[key] = values[BENCHMARKS.index(benchmark)] if isinstance(values, list) else values
    wanted |= OF_PPO if algorithm == "ppo" else {}
    assert {key: value(recipe, key) for key, of in wanted.items() if of is not GONE} == {
        key: of for key, of in wanted.items() if of is not GONE
    }
    assert recipe.algorithm.name == algorithm and recipe.protocol == "reference"


def test_the_panel_of_webshop_are_the_goals_below_500() -> None:
    assert TEST_GOALS == 500


@beside(NOTES)
def test_the_table_is_that_of_the_notes() -> None:
    """Its rows are all there, and no number in ours is missing in theirs."""
    lines = (SHARED / NOTES).read_text().split("| | reference | ours")[1].split("\n\n")[0].splitlines()[2:]
    rows = {
        cells[0].strip(): " ".join(cells[:2]) for cells in (line.strip("| ").split(" | ") for line in lines)
    }
    assert rows.keys() == TABLE.keys()
    for row, keys in TABLE.items():
        said = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", rows[row])}
        for key, values in keys.items():
            numbers = {
                float(of)
                for of in (values if isinstance(values, list) else [values])
                if type(of) in (int, float) and of
            }
            # "full"; "first tenth"
            numbers -= {4.0} if key == "env.history" else {0.1} if key == "optimizer.warmup_share" else set()
            numbers -= {2.0} if key == "env.history" else set()  # "last two"
            assert numbers <= said, (row, key)


class TestOneDifferenceAtATime:
    """Of recipes/paper/protocol.yaml."""

    @pytest.mark.parametrize("run", DIFFERING, ids=lambda run: run.name)
    def test_a_run_differs_from_its_protocol_in_what_its_word_says(self, run: Variant) -> None:
        recipe, word = load_recipe(run.base, run.changes), word_of(run)
        assert recipe.protocol == ("reference" if word == "mean-only" else "ours")
        differing = {line.split(":")[0] for line in departures(recipe, recipe.protocol)}
        assert differing == set(keys_of(word)) and differing

    def test_each_is_there_without_and_with_paw(self) -> None:
        names = {run.name for run in RUNS}
        assert {name.removesuffix("-vanilla") for name in names if name.endswith("-vanilla")} == {
            name.removesuffix("-paw") for name in names if name.endswith("-paw")
        }
        assert len(names) % 2 == 0

    @pytest.mark.parametrize(
        ("benchmark", "algorithm"), sorted({(run.base.parent.name, algorithm_of(run)) for run in RUNS})
    )
    def test_all_words_of_a_benchmark_together_are_the_reference(
        self, benchmark: str, algorithm: str
    ) -> None:
        words = {word_of(run) for run in DIFFERING if run.base.parent.name == benchmark} - {"mean-only"}
        changes = [f"{key}={of}" for word in sorted(words) for key, of in keys_of(word).items()]
        recipe = load_recipe(
            CHOICES.parent.parent / benchmark / "ours.yaml", [*changes, f"algorithm.name={algorithm}"]
        )
        ours = departures(protocol("ours", benchmark, algorithm), "reference")
        # PPO's separate environments
        left = [line for line in departures(recipe, "reference") if not line.startswith("rollout.group")]
        assert ours and left == []

    def test_the_ends_are_the_protocols(self) -> None:
        for run in RUNS:
            if run not in DIFFERING:
                recipe = load_recipe(run.base, run.changes)
                assert recipe.protocol is not None and standing(recipe).departures[recipe.protocol] == ()
        ends = {
            (run.base.parent.name, algorithm_of(run), run.base.stem) for run in RUNS if run not in DIFFERING
        }
        assert ends >= {
            (run.base.parent.name, algorithm_of(run), end)
            for run in DIFFERING
            for end in ("ours", "reference")
        }
