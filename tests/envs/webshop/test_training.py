"""The whole loop on WebShop: a tiny model from scratch plays, learns and is judged; the warm start's lessons
fit it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc import loop
from paw_hpc.envs.webshop import data, teacher
from paw_hpc.envs.webshop.benchmark import Webshop
from paw_hpc.evaluation.panel import measure_noise
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.experience import Group
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector, CollectStats, PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.run.metrics import read_metrics

TINY = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 64}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [
        "task: find me dress shirts\nnow: page 1\n1 acme slim fit $18.5",
        "Back to Search [SEP] Page 1 (Total results: 50) [SEP] B0AB12CD34",
    ]
    teacher.build_tokenizer(texts * 3, 400).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(data.generated_files, "__defaults__", (150, 1, None))
    monkeypatch.setattr("paw_hpc.envs.webshop.benchmark.TEST_GOALS", 20)
    sections: dict[str, Any] = {
        "env": {
            "name": "webshop",
            "prompt": "compact",
            "max_steps": 3,
            "webshop": {"catalogue": "generated"},
        },
        "model": {"tokenizer": str(tokenizer), "tiny": TINY, "device": "cpu"},
        "rollout": {"groups": 2, "group_size": 3, "max_prompt_tokens": 700, "max_response_tokens": 6},
        "wm": {"max_observation_tokens": 24},
        "algorithm": {"kl_coefficient": 0.0},
        "optimizer": {"lr": 1e-3},
        "eval": {"panel": "test:4@0", "every": 2},
        "warm_start": {"games": 4, "hints": [0.5], "fumble": 0.3, "detour": 0.3},
    }
    return parse_recipe({"name": "shop", "updates": 2, "threads": 1} | sections)


def test_training_and_judging(recipe: Recipe, tmp_path: Path) -> None:
    """Two updates with the world-model loss on pages, which are cut and counted; an evaluation with a score
    beside success."""
    outcome = loop.train(recipe, tmp_path / "run", command="test")
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert outcome.updates == 2 and len(metrics) == 2
    for update in metrics:
        assert update["rollout/environment_steps"] == 18 and update["train/steps"] == 3
        assert 0 < update["wm/selected_transitions"] <= 18 and update["wm/loss"] > 0
        assert update["train/score"] == update["train/success"] == 0.0 and 0 < update["train/invalid"] <= 1
    (result,) = read_evaluations(tmp_path / "run")
    assert (
        result.panel == "WebShop generated-v1-150-1 synthetic test:4@0"
        and result.games == 4
        and not result.scored
    )
    assert set(result.per_task_type) <= {"beauty", "electronics", "fashion", "garden", "grocery"}


def play(recipe: Recipe, chat: ChatFormat, observation_tokens: int) -> tuple[list[Group], CollectStats]:
    """Scripted answers through the real collector."""
    benchmark = Webshop(recipe.env)
    engine = _Scripted(chat, ["search slim fit", "open 1", "buy"])
    settings = PlaySettings(0, "test", 1.0, 700, 6, observation_tokens)
    return asyncio.run(
        Collector(benchmark, engine, chat, settings).collect(benchmark.tasks("train")[:2], 2, 0)
    )  # type: ignore[arg-type]


def test_what_the_world_model_is_to_predict_is_the_page_cut_and_counted(recipe: Recipe) -> None:
    chat = ChatFormat(load_tokenizer(recipe.model))
    groups, stats = play(recipe, chat, 24)
    episode = groups[0].episodes[0]
    assert [t.valid for t in episode.transitions] == [True, True, True]
    assert (
        stats.truncated_observations == sum(e.truncated_observations for g in groups for e in g.episodes) > 0
    )
    assert all(len(t.observation_ids) <= 24 for t in episode.transitions)
    assert chat.decode(episode.transitions[0].observation_ids).startswith(
        "Back to Search [SEP] Page 1 (Total"
    )
    assert 0.0 <= episode.score < 1.0 and episode.episode_return == 0.0


def test_noise_is_measured_on_pages_of_results_alone(recipe: Recipe) -> None:
    """Under a policy that gives every token the same probability each loss spends on noise what the tokens'
    share is."""
    chat = ChatFormat(load_tokenizer(recipe.model))
    groups, _ = play(recipe, chat, 400)
    policy = SimpleNamespace(
        observation_logp=lambda pool: torch.full(
            (sum(len(t.observation_ids) for t in pool.transitions),), -3.0
        )
    )
    shares = measure_noise(SimpleNamespace(chat=chat, policy=policy), groups, 0.2)  # type: ignore[arg-type]
    assert shares is not None and shares.transitions == 4  # one page of results in each of four episodes
    assert shares.tokens == sum(len(e.transitions[0].observation_ids) for g in groups for e in g.episodes)
    assert (
        0.1 < shares.token_share < 0.9
        and shares.cross_entropy == pytest.approx(shares.token_share) == shares.mae == shares.clipped_mae
    )
    assert measure_noise(SimpleNamespace(chat=chat, policy=policy), [], 0.2) is None  # type: ignore[arg-type]


def test_lessons_lead_to_full_scores(recipe: Recipe) -> None:
    """Every demonstration is a command that the view takes for an available action; without missteps the
    teacher always buys rightly."""
    longer = recipe.model_copy(update={"env": recipe.env.model_copy(update={"max_steps": 15})})
    lessons = list(teacher.demonstrations(longer))
    assert {lesson.answer.split()[0] for lesson in lessons} >= {"search", "open", "buy"}
    benchmark = Webshop(longer.env)
    for task in benchmark.tasks("test")[:10]:
        session, view = benchmark.session(task), benchmark.view(task, 0)
        state = session.state()
        view.start(state)
        while not state.done:
            action = teacher.next_action(session.game)
            assert action is not None and view.parse(view.answer(action)) == (action, True)
            state = session.act(action)
            view.observe(action, state)
        assert state.score == 1.0


def test_the_habit_is_to_buy_at_once_and_it_is_taught(recipe: Recipe) -> None:
    def shown(habit: float) -> list[str]:
        section = recipe.warm_start.model_copy(update={"habit": habit, "detour": 0.0, "fumble": 0.0})
        return [
            lesson.answer
            for lesson in teacher.demonstrations(recipe.model_copy(update={"warm_start": section}))
        ]

    patient, always = shown(0.0), shown(1.0)
    assert len(patient) == len(always), "the session goes on as without the habit"
    changed = [(a, b) for a, b in zip(patient, always, strict=True) if a != b]
    assert changed and all(a.split()[0] != "buy" and b.split()[0] == "buy" for a, b in changed)
    assert sum(b.split()[0] == "search" for b in always) == sum(a.split()[0] == "search" for a in patient), (
        "it still searches"
    )


class _Scripted:
    """An engine that answers with the same lines in every episode."""

    def __init__(self, chat: ChatFormat, lines: list[str]):
        self._answers, self._turn = [chat.answer(line) for line in lines], dict[int, int]()

    def join(self, episode: int) -> None:
        self._turn[episode] = 0

    def leave(self, episode: int) -> None:
        pass

    async def generate(self, request: GenerationRequest) -> Completion:
        ids = self._answers[self._turn[request.episode]]
        self._turn[request.episode] += 1
        return Completion(
            ids=ids, logprobs=np.zeros(len(ids), np.float32), weight_version=0, entropies=None, finished=True
        )
