"""The scripted teacher shows play that leads to the answer, on training questions alone, in words that the
tokenizer has; the recipes are sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from paw_hpc.envs.alfworld.tokenizer import build_tokenizer
from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.search import data, teacher
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.recipe.protocols import standing
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.study.report.paper import paper_row

RECIPES = Path(__file__).parents[3] / "recipes" / "search"


def recipe(**warm_start: float) -> Recipe:
    settings = {"games": 40, "detour": 0.0, "fumble": 0.0, "habit": 0.0} | warm_start
    return load_recipe(
        RECIPES / "warm-start.yaml", [f"warm_start.{key}={value}" for key, value in settings.items()]
    )


@pytest.fixture(autouse=True)
def _world(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(world))


def test_without_detours_an_episode_is_its_searches_and_its_answer() -> None:
    shown = list(teacher.demonstrations(recipe()))
    trained = {q.question: q for q in data.load("generated").train}
    episodes: dict[str, list[str]] = {}
    for demonstration in shown:
        (message,) = demonstration.messages
        question = message["content"].splitlines()[0].removeprefix("question: ")
        episodes.setdefault(question, []).append(demonstration.answer)
    assert len(episodes) == 40 and set(episodes) <= set(trained), "training questions alone"
    for question, said in episodes.items():
        q = trained[question]
        assert said == [*(f"search {s}".lower() for s in q.searches), f"answer {q.answers[0]}".lower()]


def test_every_line_is_an_action_and_every_answer_was_read() -> None:
    view = SearchView("q", style="compact", history=4, max_steps=4)
    for demonstration in teacher.demonstrations(recipe(detour=0.2, fumble=0.2)):
        action, valid = view.parse(demonstration.answer)
        assert valid and action
        if demonstration.answer.startswith("answer "):
            found = demonstration.messages[0]["content"].lower().partition("found: ")[2]
            assert demonstration.answer.removeprefix("answer ") in found


def test_detours_and_fumbles_are_seen_but_not_taught() -> None:
    plain = {d.answer for d in teacher.demonstrations(recipe())}
    astray = list(teacher.demonstrations(recipe(detour=0.3, fumble=0.3)))
    assert {d.answer for d in astray} <= plain and any(
        "\ninvalid\n" in d.messages[0]["content"] for d in astray
    )


def test_the_habit_is_to_guess_where_there_is_still_something_to_search_and_it_is_taught() -> None:
    shown, hasty = (list(teacher.demonstrations(recipe(habit=share))) for share in (0.0, 0.4))
    assert [d.messages for d in hasty] == [d.messages for d in shown], "it goes on as without the habit"
    changed = [(a.answer, b.answer) for a, b in zip(shown, hasty, strict=True) if a.answer != b.answer]
    searches = sum(d.answer.startswith("search ") for d in shown)
    assert all(a.startswith("search ") and b.startswith("answer ") for a, b in changed)
    assert abs(len(changed) / searches - 0.4) < 4 * (0.24 / searches) ** 0.5


def test_its_words_are_all_in_the_tokenizer_and_prompts_fit() -> None:
    made = recipe(detour=0.2, fumble=0.2)
    tokenizer = build_tokenizer(teacher.texts(made))
    chat = ChatFormat(tokenizer)
    for demonstration in teacher.demonstrations(made):
        ids = [*chat.prompt(demonstration.messages).tolist(), *chat.answer(demonstration.answer).tolist()]
        assert tokenizer.unk_token_id not in ids and len(ids) < made.rollout.max_prompt_tokens
    test_words = [q.question for q in data.load("generated").test]
    assert not any(tokenizer.unk_token_id in tokenizer.encode(text) for text in test_words), (
        "nor does a test question hold a word that is not there"
    )


def test_what_it_says_is_read_back_in_both_styles() -> None:
    from paw_hpc.envs.search.protocol import Action

    for style in ("paper", "compact"):
        view = SearchView("q", style=style, history=4, max_steps=4)
        view.start(EnvironmentState("q", ()))
        for action in (Action("search", "ada abel"), Action("answer", "oslo")):
            assert view.parse(teacher.spoken(action, style)) == (str(action), True)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_load_and_the_papers_depart_from_it_in_nothing(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.env.name == "search" and loaded.env.shown_history >= loaded.env.max_steps == 4
    if path.name.startswith("qwen2.5-"):
        row = paper_row(loaded)
        assert row is not None and standing(loaded).departures["reference"] == ()
        assert ("PaW" in row.label, "GiGPO" in row.label) == ("-paw" in path.name, "gigpo" in path.name)
