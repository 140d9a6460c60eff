"""The paper's numbers, word for word, and the recipes they belong to."""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import Any

import pytest

from paw_hpc.recipe import PROTOCOLS, QUESTION_SETS, ProtocolName, Recipe, load_recipe, parse_recipe
from paw_hpc.recipe.protocols import protocol, standing
from paw_hpc.recipe.shipped import protocol_recipe
from paw_hpc.study.report import paper
from paw_hpc.study.report.paper import paper_row
from tests.beside import SHARED, beside

SOURCE = SHARED / "paper.md"


def recipe(model: str = "Qwen/Qwen2.5-1.5B-Instruct", **changes: Any) -> Recipe:
    return parse_recipe({"model": {"path": model}, "optimizer": {"mini_batch": 256}} | changes)


def rows_of(text: str, first_column_after: str) -> dict[str, list[str]]:
    table = text[text.index(first_column_after) :].split("\n\n", 1)[0].splitlines()[2:]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    return {line[0]: line[1:] for line in lines}


@beside("paper.md")
def test_every_number_is_the_papers() -> None:
    text = SOURCE.read_text()
    text = text[text.index("## 3.") : text.index("## 4.")]
    main = rows_of(text, "| | Pick | Look")
    assert {
        k: tuple(tuple(float(x) for x in cell.split("±")) for cell in row) for k, row in main.items()
    } == paper.MAIN
    search = rows_of(text, "| | NQ | Tri")
    assert {k: tuple(map(float, row)) for k, row in search.items()} == paper.SEARCH

    flat = " ".join(text.split())
    prompting = flat[flat.index("Prompting baselines") : flat.index("Search QA")]
    found, family = {}, ""
    for name, *numbers in re.findall(r"([A-Z][\w.-]*) (\d+\.\d) / (\d+\.\d) / (\d+\.\d)", prompting):
        family = name if name.startswith("Qwen") else family
        label = f"{family} {name}" if name in ("ReAct", "Reflexion") else name
        found[label] = tuple(map(float, numbers))
    assert found == paper.PROMPTING

    webshop = flat[flat.index("WebShop success, vanilla") : flat.index("Ablation")]
    assert {
        m[0].strip(): (float(m[1]), float(m[2]))
        for m in re.findall(r"[:;] ([\w. -]+?) (\d+\.\d) -> (\d+\.\d)", webshop)
    } == paper.WEBSHOP_SUCCESS

    ablation = flat[flat.index("Ablation") : flat.index("Sensitivity")]
    numbers = re.findall(r"(\d+\.\d) / (\d+\.\d)", ablation)
    assert [tuple(map(float, pair)) for pair in numbers] == list(paper.ABLATION.values())
    assert (
        f"+{paper.OVERHEAD_S} s on ~{paper.STEP_S:.0f} s per step ({paper.OVERHEAD_SHARE:.1%})".replace(
            "%", " %"
        )
        in flat
    )
    assert f"+{paper.PEAK_MEMORY_GB} GB peak memory, +{paper.MEAN_MEMORY_GB} GB average" in flat
    assert f"rho = {paper.BEST_RHO} and alpha = {paper.BEST_ALPHA} best" in flat


SET_UP: dict[str, tuple[str, ...]] = {
    "max prompt / response tokens": ("rollout.max_prompt_tokens", "rollout.max_response_tokens"),
    "max steps": ("env.max_steps",),
    "actor lr (PPO critic lr)": ("optimizer.lr", "optimizer.critic_lr"),
    "success / failure reward = R_max / 0": ("env.success_reward",),
    "invalid action penalty": ("env.invalid_penalty",),
    "group size x groups": ("rollout.group_size", "rollout.groups"),
    "GiGPO omega / gamma": ("algorithm.gigpo_omega", "algorithm.gamma", "algorithm.gigpo_similarity"),
    "temperature train / validation": ("rollout.temperature", "eval.temperature"),
    "PPO mini-batch": ("optimizer.mini_batch",),
    "KL loss coefficient (low-variance KL) [T]": ("algorithm.kl_coefficient",),
    "iterations [T]": ("updates",),
}
"""The rows of the notes' table of the set-up, and the recipe keys of their numbers, in their order."""


def values(of: Recipe) -> dict[str, Any]:
    """Dotted key -> value; every value that this test asks for."""
    found = {}
    for key in {key for keys in SET_UP.values() for key in keys} | {"env.history"}:
        value: Any = of
        for part in key.split("."):
            value = getattr(value, part)
        found[key] = value
    return found


@beside("paper.md")
def test_the_set_up_is_the_papers() -> None:
    rows = rows_of(SOURCE.read_text(), "| | ALFWorld | WebShop")
    # the first two: below; GPUs change nothing that is computed
    assert rows.keys() - SET_UP.keys() == {"PPO", "history in the prompt", "GPUs [T]"}
    for name, (column, benchmark) in itertools.product(
        PROTOCOLS, enumerate(("alfworld", "webshop", "search"))
    ):
        known = values(protocol(name, benchmark))
        for label, keys in SET_UP.items():
            numbers = [
                abs(float(number)) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-\d+)?", rows[label][column])
            ]
            assert numbers, label
            for key, number in zip(keys, numbers, strict=False):
                assert known[key] == number, (benchmark, key)
        assert rows["history in the prompt"][column] == (
            "full" if benchmark == "search" else f"last {known['env.history']} steps"
        )
        # full: every step there can be
        assert known["env.history"] == 2 or known["env.history"] == known["env.max_steps"]
        ppo = values(protocol(name, benchmark, "ppo"))
        assert (
            rows["PPO"][column] in (f"{ppo['rollout.groups']} separate environments", "same", "-")
            and ppo["rollout.group_size"] == 1
        )


def test_the_tables_are_those_that_were_compared_with_the_paper() -> None:
    """A checksum, for where the notes on the paper are not at hand; it was taken when the two tests above
    passed."""
    tables = (paper.MAIN, paper.PROMPTING, paper.SEARCH, paper.WEBSHOP_SUCCESS, paper.ABLATION)
    alone = (
        paper.OVERHEAD_S,
        paper.STEP_S,
        paper.OVERHEAD_SHARE,
        paper.PEAK_MEMORY_GB,
        paper.MEAN_MEMORY_GB,
        paper.BEST_RHO,
        paper.BEST_ALPHA,
    )
    assert (
        hashlib.sha256(repr((*tables, *alone)).encode()).hexdigest()
        == "20a7a8f084d3f9895547223a93fe1b0f9d52ee483817136bde37dc8308996634"
    )


def test_a_few_numbers_by_hand() -> None:
    assert paper.MAIN["1.5B GRPO"][6] == (70.0, 4.2) and paper.MAIN["7B GiGPO+PaW"][-1] == (76.7, 2.7)
    assert len(paper.MAIN) == len(paper.SEARCH) == 8
    assert all(
        len(row) == len(paper.ALFWORLD_COLUMNS) + len(paper.WEBSHOP_COLUMNS) for row in paper.MAIN.values()
    )


@pytest.mark.parametrize(
    ("of", "label", "success"),
    [
        (recipe(wm={"enabled": False}), "1.5B GRPO", 70.0),
        (recipe(), "1.5B GRPO+PaW", 77.9),
        (recipe(algorithm={"name": "gigpo"}), "1.5B GiGPO+PaW", 90.4),
        (
            recipe("/models/Qwen2.5-7B-Instruct/", algorithm={"name": "gigpo"}, wm={"enabled": False}),
            "7B GiGPO",
            90.8,
        ),
        (recipe(wm={"coefficient": "constant"}), "1.5B GRPO, lambda_g = 1", 75.5),
        (recipe(wm={"loss": "cross_entropy"}), "1.5B GRPO, CE instead of clipped MAE", 68.5),
    ],
)
def test_a_recipe_finds_its_row(of: Recipe, label: str, success: float) -> None:
    row = paper_row(of)
    assert row is not None
    assert row.label == label and row.columns["All"][0] == success


@pytest.mark.parametrize(
    "of",
    [
        recipe("Qwen/Qwen2.5-3B-Instruct"),
        recipe("warm-start"),
        recipe(algorithm={"name": "rloo"}),
        recipe(wm={"target": "shuffled"}),
        recipe(wm={"selection": "random"}),
        recipe(wm={"loss": "cross_entropy", "coefficient": "constant", "scale": 0.05}),
        recipe("Qwen/Qwen2.5-7B-Instruct", wm={"coefficient": "constant"}),
    ],
)
def test_what_the_paper_did_not_run_has_no_row(of: Recipe) -> None:
    assert paper_row(of) is None


WEBSHOP = {
    "env": {"name": "webshop", "max_steps": 15, "webshop": {"catalogue": "full", "goals": "human"}},
    "optimizer": {"mini_batch": 64},
}
WEBSHOP |= {"rollout": {"max_prompt_tokens": 4096}}
PPO: dict[str, Any] = {
    "rollout": {"max_prompt_tokens": 4096, "groups": 128, "group_size": 1},
    "algorithm": {"name": "ppo"},
}


@pytest.mark.parametrize(
    ("of", "label", "columns"),
    [
        (recipe(**WEBSHOP), "1.5B GRPO+PaW", {"All": (68.6, 2.9), "Score": (83.8, 2.1)}),
        (
            recipe("Qwen/Qwen2.5-7B-Instruct", **WEBSHOP, wm={"enabled": False}),
            "7B GRPO",
            {"All": (66.5, 3.6), "Score": (75.4, 2.7)},
        ),
        (
            recipe(**WEBSHOP, wm={"loss": "cross_entropy"}),
            "1.5B GRPO, CE instead of clipped MAE",
            {"All": (57.2,)},
        ),
        (recipe(**WEBSHOP, algorithm={"name": "rloo"}), "1.5B RLOO+PaW", {"All": (61.2,)}),
        (recipe(**WEBSHOP | PPO, wm={"enabled": False}), "1.5B PPO", {"All": (59.1,)}),
        (
            recipe("meta-llama/Llama-3.2-3B-Instruct", **WEBSHOP, wm={"enabled": False}),
            "Llama3.2-3B GRPO",
            {"All": (4.0,)},
        ),
    ],
)
def test_webshop_has_rows_of_its_own(of: Recipe, label: str, columns: dict[str, tuple[float, ...]]) -> None:
    row = paper_row(of)
    assert row is not None and (row.label, row.columns) == (label, columns)


SEARCH: dict[str, Any] = {
    "env": {"name": "search", "max_steps": 4, "history": 4, "success_reward": 1.0, "invalid_penalty": 0.01},
    "rollout": {"groups": 256, "group_size": 5, "max_prompt_tokens": 4096},
    "optimizer": {"mini_batch": 512},
    "algorithm": {"kl_coefficient": 0.001},
    "eval": {"temperature": 0.0},
    "updates": 200,
}


@pytest.mark.parametrize(
    ("of", "label", "nq", "average"),
    [
        (recipe("Qwen/Qwen2.5-3B-Instruct", **SEARCH), "3B GRPO+PaW", 45.8, 44.8),
        (recipe("Qwen/Qwen2.5-7B-Instruct", **SEARCH, wm={"enabled": False}), "7B GRPO", 47.9, 47.9),
        (
            recipe(
                "Qwen/Qwen2.5-3B-Instruct",
                **SEARCH | {"algorithm": {"name": "gigpo", "gigpo_similarity": 0.9, "kl_coefficient": 0.001}},
            ),
            "3B GiGPO+PaW",
            46.2,
            44.2,
        ),
    ],
)
def test_search_qa_has_rows_of_its_own(of: Recipe, label: str, nq: float, average: float) -> None:
    row = paper_row(of)
    assert row is not None and row.label == label
    assert row.columns["NQ"] == (nq,) and row.columns["Avg"] == (average,) and "All" not in row.columns
    assert list(row.columns) == [*(paper.COLUMN_OF[name] for name in QUESTION_SETS), "Avg"]


def test_what_the_paper_did_not_run_on_search_qa_has_no_row() -> None:
    assert paper_row(recipe("Qwen/Qwen2.5-1.5B-Instruct", **SEARCH)) is None
    assert paper_row(recipe("Qwen/Qwen2.5-3B-Instruct", **SEARCH, wm={"coefficient": "constant"})) is None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_stands_beside_the_paper_under_the_name_of_its_protocol(name: ProtocolName) -> None:
    def of(**changes: Any) -> paper.Beside | None:
        return paper.beside(protocol(name, "alfworld").model_copy(update=changes))

    [other] = set(PROTOCOLS) - {name}
    follows, silent = of(), of(protocol=None)
    assert (
        follows is not None
        and follows.protocol == name
        and follows.row.label == "1.5B GRPO+PaW"
        and follows.standing.said
    )
    # from the set-up that the paper's numbers most likely come from
    assert follows.departs is (name == "ours")
    assert silent is not None and silent.protocol == name and not silent.standing.said
    short = of(updates=60)
    assert short is not None and short.protocol == f"{name} but for 1 key" and short.departs
    assert (
        short.standing.departures[name] == (f"updates: 60 ({name}: 150)",)
        and len(short.standing.departures[other]) > 1
    )
    assert of(protocol=None, updates=60) is None  # no protocol's name, no protocol's keys
    wrong = of(protocol=other)
    assert (
        wrong is not None
        and wrong.standing.named == other
        and wrong.standing.departures[other]
        and not wrong.standing.departures[name]
    )


def test_ppo_has_separate_environments_and_no_groups() -> None:
    grouped = protocol("ours", "webshop").model_copy(
        update={"algorithm": protocol("ours", "webshop", "ppo").algorithm}
    )
    found = paper.beside(grouped)
    assert found is not None and found.standing.departures["ours"] == (
        "rollout.groups: 16 (ours: 128)",
        "rollout.group_size: 8 (ours: 1)",
    )


def test_departures_are_said_with_both_values() -> None:
    changes = [
        "env.max_steps=30",
        "env.task_types=[look_at_obj_in_light]",
        "env.train_games=9",
        "algorithm.dual_clip=null",
        "updates=60",
    ]
    found = paper.beside(load_recipe(protocol_recipe("alfworld", "ours"), changes))
    assert found is not None and found.standing.departures["ours"] == (
        "updates: 60 (ours: 150)",
        "env.task_types: look_at_obj_in_light (ours: all six)",
        "env.train_games: 9 (ours: all)",
        "env.max_steps: 30 (ours: 50)",
        "algorithm.dual_clip: off (ours: 3)",
    )
    off = load_recipe(
        protocol_recipe("search", "ours"), ["algorithm.name=gigpo", "algorithm.gigpo_similarity=null"]
    )
    assert standing(off).departures["ours"] == ("algorithm.gigpo_similarity: off (ours: 0.9)",)
