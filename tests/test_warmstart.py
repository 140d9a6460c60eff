"""What a policy from scratch is cloned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.envs.alfworld.teacher import _play
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.search.benchmark import make_retriever
from paw_hpc.envs.search.protocol import passages_text, read_action
from paw_hpc.envs.webshop.benchmark import Webshop
from paw_hpc.envs.webshop.teacher import build_tokenizer
from paw_hpc.recipe import Recipe, WarmStartSection, load_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.prompts import Conversation
from paw_hpc.study import warmstart
from paw_hpc.system.errors import UserError
from paw_hpc.system.seeding import derive_seed

CONVERSATION = ["env.prompt=conversation", "env.history=all", "rollout.max_prompt_tokens=4096"]


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_states_that_go_on_from_one_another_are_one_sequence() -> None:
    states = [
        (ids(1, 2), ids(3)),
        (ids(1, 2, 3, 4, 5), ids(6, 7)),
        (ids(1, 2, 3, 9), ids(8)),
        (ids(1, 2), ids(3)),
    ]
    found = [
        (sample.ids.tolist(), sample.ids[sample.is_answer].tolist())
        for sample in warmstart.joined(iter(states))
    ]
    assert found == [([1, 2, 3, 4, 5, 6, 7], [3, 6, 7]), ([1, 2, 3, 9, 8], [8]), ([1, 2, 3], [3])]


def test_the_rows_of_a_sample_predict_its_answers() -> None:
    samples = list(
        warmstart.joined(iter([(ids(1, 2), ids(3)), (ids(1, 2, 3, 4, 5), ids(6, 7)), (ids(1, 2), ids(3))]))
    )
    tokens, _, cu, row_position, weight, answer = warmstart._packed(samples, prompt_weight=0.5)
    assert cu.tolist() == [0, 7, 10] and len(row_position) == 8
    assert tokens[row_position + 1][answer].tolist() == [3, 6, 7, 3] and float(
        weight[answer].sum()
    ) == pytest.approx(1.0)
    *_, row_position, weight, answer = warmstart._packed(samples, prompt_weight=0.0)
    assert bool(answer.all()) and row_position.tolist() == [1, 4, 5, 8]


@pytest.mark.parametrize("recipe", ["search/warm-start", "webshop/warm-start-expert"])
def test_a_conversation_is_cloned_as_it_is_played(recipe: str) -> None:
    """The prompts of the scripted player are those of a policy that says the same to the environment."""
    few = ["warm_start.games=6", "warm_start.detour=0.0", "warm_start.fumble=0.0", "warm_start.habit=0.0"]
    made = load_recipe(Path("recipes") / f"{recipe}.yaml", [*CONVERSATION, *few])
    benchmark = make_benchmark(made.env)
    shown = list(BENCHMARKS.find(made.env.name).lessons(made, Console()).demonstrations)
    chat = ChatFormat(
        build_tokenizer(
            text
            for d in shown
            for text in (d.messages[0]["content"], d.answer, *(t.following for t in d.turns))
        )
    )
    states = list(warmstart._demonstrated(iter(shown), chat, made))
    samples, starts = list(warmstart.joined(iter(states))), [i for i, d in enumerate(shown) if not d.turns]
    assert len(samples) == len(starts) < len(shown), "without a detour an episode is one sequence"
    assert sum(len(s.ids) for s in samples) < sum(len(prompt) + len(answer) for prompt, answer in states)
    for first, end in zip(starts, [*starts[1:], len(shown)], strict=True):
        for task in benchmark.tasks("train"):
            view, act = begun(benchmark, task, made)
            if view.messages() == shown[first].messages:
                break
        played = Conversation(view, chat, 4096)
        for (prompt, answer), d in zip(states[first:end], shown[first:end], strict=True):
            assert np.array_equal(played.prompt("task", 1)[0], prompt)
            action, valid = view.parse(d.answer)
            assert valid
            state = act(action)
            view.observe(action, state)
            played.go_on(answer, state.observation)


def begun(benchmark: Any, task: Task, made: Recipe) -> tuple[Any, Callable[[str], EnvironmentState]]:
    """A view of the task's first state, and what makes the next one of an action."""
    view = benchmark.view(task, 0)
    if isinstance(benchmark, Webshop):
        session = benchmark.session(task, derive_seed(0, "teacher", 0))
        view.start(session.state())
        return view, session.act
    question, desk = benchmark.question(task), make_retriever(made.env)
    view.start(EnvironmentState(question.question, ()))

    def found(action: str) -> EnvironmentState:
        asked = read_action(action)
        assert asked is not None
        (hits,) = desk.search([asked.text], made.env.search.topk)
        return EnvironmentState(
            passages_text([hit.passage for hit in hits], made.env.search.passage_words), ()
        )

    return view, found


def test_a_conversation_that_does_not_fit_is_said(tmp_path: Path) -> None:
    words = [
        "env.prompt=conversation",
        "env.history=all",
        "rollout.max_prompt_tokens=40",
        "warm_start.games=2",
        "warm_start.steps=1",
    ]
    with pytest.raises(UserError, match=r"needs a prompt of \d+ tokens .*rollout\.max_prompt_tokens is 40"):
        warmstart.main("recipes/search/warm-start.yaml", words, tmp_path / "out")
    assert not (tmp_path / "out").exists()


IDLE = {"look", "inventory", "examine"}


def labels(habit: float) -> tuple[list[str], bool]:
    """The expert's commands over 8 episodes of one game, and whether all were won; every command was
    admissible and was played."""
    task_id, game = compose("train", "pick_and_place_simple", 2, seed=11)
    engine, section = GameEngine(game), WarmStartSection(habit=habit, max_steps=60)
    said, won = [], True
    for seed in range(8):
        played = _play(
            engine,
            Task(task_id, "pick_and_place_simple", ""),
            game["walkthrough"],
            1.0,
            0.0,
            section,
            np.random.default_rng(seed),
        )
        for step in played["steps"]:
            assert step["label"] in step["admissible"] and step["played"] == step["label"]
        said += [step["label"] for step in played["steps"]]
        won &= played["won"]
    return said, won


@pytest.mark.parametrize("habit", [0.3, 0.5])
def test_an_expert_with_the_habit_looks_about_in_its_share_of_the_steps_and_still_wins(habit: float) -> None:
    brisk, brisk_won = labels(0.0)
    slow, slow_won = labels(habit)
    assert brisk_won and slow_won
    share = sum(label.split()[0] in IDLE for label in slow) / len(slow)
    assert sum(label.split()[0] in IDLE for label in brisk) == 0
    assert abs(share - habit) < 4 * (habit * (1 - habit) / len(slow)) ** 0.5
    assert len(slow) > len(brisk)
