"""Episodes of search QA: the protocol's turns and rewards, panels, and a retriever that fails in mid-run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.search import data
from paw_hpc.envs.search.benchmark import SearchQA
from paw_hpc.envs.search.protocol import INVALID, NO_RESULTS
from paw_hpc.envs.search.questions import is_in_domain
from paw_hpc.experience import Group, Pool
from paw_hpc.recipe import QUESTION_SETS, Recipe, parse_recipe
from paw_hpc.rollout.collector import Collector, CollectStats
from paw_hpc.system.errors import DataError, RecipeError
from tests.envs.search.conftest import QUESTIONS, write_corpus, write_lines
from tests.envs.search.players import CHAT, SETTINGS, Scripted
from tests.envs.search.servers import free_port, own_server, strange_server


def recipe(**env: Any) -> Recipe:
    search = {"data": "mini", **env.pop("search", {})}
    given = {
        "name": "search",
        "max_steps": 4,
        "history": 4,
        "success_reward": 1.0,
        "invalid_penalty": 0.01,
        "search": search,
        **env,
    }
    return parse_recipe({"env": given, "model": {"path": "x"}})


@pytest.fixture
def small(own_cache: Path) -> Path:
    """The tests' own corpus and questions where the mini benchmark would be. Returns their folder."""
    write_corpus(own_cache / "search" / "corpus.jsonl")
    rows = [{**row, "answer_in_corpus": True} for row in QUESTIONS]
    return write_lines(own_cache / "search" / "questions.jsonl", rows).parent


def play(benchmark: SearchQA, task_id: str, *actions: str) -> list[EnvironmentState]:
    async def run() -> list[EnvironmentState]:
        found = data.load("mini")
        question = next(q for q in (*found.train, *found.test) if q.task_id == task_id)
        (session,) = await benchmark.open(question.task(found.folder), 1)
        states = [await session.reset()]
        for action in actions:
            assert not states[-1].done
            states.append(await session.step(action))
        await benchmark.close()
        return states

    return asyncio.run(run())


def collect(
    benchmark: SearchQA, say: Callable[[str], str], tasks: int = 3, members: int = 2
) -> tuple[list[Group], CollectStats]:
    async def run() -> tuple[list[Group], CollectStats]:
        try:
            listed = (benchmark.tasks("train") + list(benchmark.panel("test").tasks))[:tasks]
            return await Collector(benchmark, Scripted(say), CHAT, SETTINGS).collect(listed, members, 0)
        finally:
            await benchmark.close()

    return asyncio.run(asyncio.wait_for(run(), 120))


class TestAnEpisode:
    def test_searches_reads_and_answers(self, small: Path) -> None:
        start, found, end = play(
            SearchQA(recipe().env), "nq/2", "<search>capital of Norway</search>", "<answer>oslo.</answer>"
        )
        assert start.observation == "what is the capital of Norway?" and not start.done
        assert (
            found.observation.startswith("Doc 1 (Title: Oslo) Oslo is the capital of Norway.")
            and found.reward == 0.0
        )
        assert 1 <= found.observation.count("Doc ") <= 3
        assert (end.reward, end.success, end.score, end.done, end.observation) == (1.0, True, 1.0, True, "")

    def test_a_wrong_answer_ends_it_with_its_f1_and_no_reward(self, small: Path) -> None:
        *_, end = play(SearchQA(recipe().env), "nq/2", "<answer>Oslo in Norway</answer>")
        assert (end.reward, end.success, end.done) == (0.0, False, True) and end.score == pytest.approx(0.8)

    def test_the_reward_is_the_recipes(self, small: Path) -> None:
        *_, end = play(SearchQA(recipe(success_reward=10.0).env), "nq/2", "<answer>Oslo</answer>")
        assert end.reward == 10.0

    def test_has_four_turns_and_searches_nothing_in_the_last(self, small: Path) -> None:
        states = play(SearchQA(recipe().env), "nq/2", *["<search>Bergen</search>"] * 4)
        assert [s.done for s in states] == [False] * 4 + [True]
        assert (
            states[3].observation
            and states[4].observation == ""
            and not states[4].success
            and states[4].score == 0.0
        )

    def test_may_answer_in_the_last_turn(self, small: Path) -> None:
        *_, end = play(
            SearchQA(recipe().env), "nq/2", *["<search>Bergen</search>"] * 3, "<answer>Oslo</answer>"
        )
        assert end.success

    def test_an_invalid_action_costs_a_turn_and_says_so(self, small: Path) -> None:
        _, after, end = play(SearchQA(recipe(max_steps=2).env), "nq/2", "", "<answer>Oslo</answer>")
        assert after.observation == INVALID and not after.done and end.success

    def test_a_search_may_find_nothing(self, small: Path) -> None:
        assert play(SearchQA(recipe().env), "nq/2", "<search>zzzz</search>")[1].observation == NO_RESULTS

    def test_depth_and_length_of_results_are_the_recipes(self, small: Path) -> None:
        benchmark = SearchQA(recipe(search={"topk": 1, "passage_words": 2}).env)
        assert (
            play(benchmark, "nq/2", "<search>capital of Norway</search>")[1].observation
            == "Doc 1 (Title: Oslo) Oslo is"
        )

    def test_what_a_passage_says_is_never_the_agents_answer(self, small: Path) -> None:
        """The passage about The Who answers `London` inside it and closes its block; the agent that repeats
        it has not answered."""
        benchmark = SearchQA(recipe().env)

        def copier(prompt: str) -> str:
            blocks = re.findall(r"<information>.*?</information>", prompt, re.DOTALL)
            return f"<think>so</think>{blocks[-1]}" if blocks else "<think>so</think><search>The Who</search>"

        groups, _ = collect(benchmark, copier, tasks=1, members=1)
        (episode,) = groups[0].episodes
        assert len(episode.transitions) == 4 and not episode.success
        assert [t.valid for t in episode.transitions] == [True, False, False, False]


class TestWhatIsLearntFrom:
    @staticmethod
    def say(prompt: str) -> str:
        return (
            "<think>so</think><answer>Bergen</answer>"
            if "<information>" in prompt
            else "<think>so</think><search>composer of Peer Gynt</search>"
        )

    def test_the_next_observation_is_the_search_results_and_an_answer_has_none(self, small: Path) -> None:
        groups, stats = collect(SearchQA(recipe().env), self.say, tasks=2)
        for episode in (e for g in groups for e in g.episodes):
            search, answer = episode.transitions
            assert CHAT.decode(search.observation_ids).startswith(
                "Doc 1 (Title: Peer Gynt) Peer Gynt is a play"
            )
            assert len(answer.observation_ids) == 0
            assert (
                episode.truncated_observations == 1
                and len(search.observation_ids) == SETTINGS.max_observation_tokens
            )
        assert stats.truncated_observations == 4

    def test_success_pays_and_members_share_the_question(self, small: Path) -> None:
        groups, _ = collect(SearchQA(recipe().env), self.say, tasks=2)
        outcome = {e.task_id: (e.success, e.episode_return) for g in groups for e in g.episodes}
        assert outcome["nq/1"] == (True, 1.0) and outcome["hotpotqa/3"] == (False, 0.0)
        pool = Pool.from_groups(groups)
        assert pool.num_groups == 2 and len(pool) == 8


class TestARetrieverThatFails:
    @pytest.mark.parametrize("mode", ["html", "status 500", "slow"])
    def test_ends_episodes_as_failed_by_the_environment(self, mode: str, small: Path, tmp_path: Path) -> None:
        """Those that searched are excluded and counted; those that answered at once are scored as ever."""
        port = free_port()
        with strange_server(tmp_path, port) as control:
            control.write_text(mode)
            env = recipe(
                step_timeout_s=0.5,
                search={"retriever": "http", "url": f"http://127.0.0.1:{port}", "timeout_s": 0.2},
            ).env

            def say(prompt: str) -> str:
                return (
                    "<think>so</think><answer>Oslo</answer>"
                    if "capital" in prompt
                    else "<think>so</think><search>Grieg</search>"
                )

            groups, stats = collect(SearchQA(env), say, tasks=5, members=2)
        failed = {e.task_id for g in groups for e in g.episodes if e.failed_by_environment}
        assert len(failed) == 4 and "nq/2" not in failed and stats.failed_by_environment == 8
        pool = Pool.from_groups(groups)
        assert (
            pool.num_groups == 1
            and {e.task_id for e in pool.episodes} == {"nq/2"}
            and all(e.success for e in pool.episodes)
        )

    def test_for_a_while_is_waited_for(self, small: Path, bm25_folder: Path) -> None:
        """Killed before the first search, back a second later: no episode fails."""
        port = free_port()
        with own_server(bm25_folder, port):
            pass
        env = recipe(
            step_timeout_s=60.0,
            search={"retriever": "http", "url": f"http://127.0.0.1:{port}", "timeout_s": 5.0},
        ).env

        async def run() -> EnvironmentState:
            benchmark = SearchQA(env)
            (session,) = await benchmark.open(benchmark.panel("bamboogle").tasks[0], 1)
            step = asyncio.create_task(session.step("<search>capital of Norway</search>"))
            await asyncio.sleep(0.5)
            assert not step.done()
            started = own_server(bm25_folder, port)
            await asyncio.to_thread(started.__enter__)
            try:
                return await step
            finally:
                await asyncio.to_thread(started.__exit__, None, None, None)
                await benchmark.close()

        assert "Title: Oslo" in asyncio.run(run()).observation

    def test_refusing_one_query_fails_that_episode_alone(self, small: Path, tmp_path: Path) -> None:
        port = free_port()
        with strange_server(tmp_path, port) as control:
            control.write_text("refuses poison")
            env = recipe(search={"retriever": "http", "url": f"http://127.0.0.1:{port}"}).env

            async def run() -> list[Any]:
                benchmark = SearchQA(env)
                sessions = await benchmark.open(benchmark.panel("bamboogle").tasks[0], 6)
                queries = ["a", "b", "poison", "c", "d", "e"]
                found = await asyncio.gather(
                    *(s.step(f"<search>{q}</search>") for s, q in zip(sessions, queries, strict=True)),
                    return_exceptions=True,
                )
                await benchmark.close()
                return found

            found = asyncio.run(run())
        assert isinstance(found.pop(2), EnvironmentFailure) and all(
            isinstance(f, EnvironmentState) for f in found
        )


class TestPanels:
    def test_of_the_seven_sets_and_their_domains(self, mini: data.SearchData) -> None:
        benchmark = make_benchmark(recipe().env)
        whole = benchmark.panel("test")
        by_set = {name: benchmark.panel(name) for name in QUESTION_SETS}
        assert sorted(t.task_id for p in by_set.values() for t in p.tasks) == [t.task_id for t in whole.tasks]
        assert all({t.task_type for t in panel.tasks} == {name} for name, panel in by_set.items())
        inside, outside = benchmark.panel("in_domain"), benchmark.panel("out_of_domain")
        assert {t.task_type for t in inside.tasks} == {"nq", "hotpotqa"} and all(
            is_in_domain(t.task_type) for t in inside.tasks
        )
        assert (
            len(inside.tasks) + len(outside.tasks) == len(whole.tasks)
            and len({p.checksum for p in by_set.values()}) == 7
        )
        assert not {t.task_id for t in whole.tasks} & {t.task_id for t in benchmark.tasks("train")}

    def test_parts_are_chosen_once_and_for_all_in_proportion(self, mini: data.SearchData) -> None:
        benchmark = make_benchmark(recipe().env)
        part = benchmark.panel("test:70@0")
        assert (
            part == make_benchmark(recipe().env).panel("test:70@0")
            and part.name == "mini test:70@0"
            and len(part.tasks) == 70
        )
        assert part.checksum != benchmark.panel("test:70@1").checksum
        assert sum(t.task_type == "triviaqa" for t in part.tasks) == round(70 * 1000 / len(mini.test))
        assert [t.task_id for t in part.tasks] == sorted(t.task_id for t in part.tasks)

    @pytest.mark.parametrize("name", ["valid_seen", "nq:0@0", "squad"])
    def test_unknown_ones_are_refused(self, name: str, mini: data.SearchData) -> None:
        with pytest.raises(DataError, match="no such panel"):
            make_benchmark(recipe().env).panel(name)

    def test_training_questions_may_be_fewer(self, mini: data.SearchData) -> None:
        benchmark = make_benchmark(recipe(train_games=20, search={"train_sets": ["hotpotqa"]}).env)
        tasks = benchmark.tasks("train")
        assert len(tasks) == 20 and {t.task_type for t in tasks} == {"hotpotqa"}

    def test_sets_without_training_questions_are_refused(self, mini: data.SearchData) -> None:
        with pytest.raises(DataError, match="no training question of bamboogle"):
            make_benchmark(recipe(search={"train_sets": ["bamboogle"]}).env).tasks("train")


class TestRecipes:
    @pytest.mark.parametrize(
        ("search", "says"),
        [
            ({"retriever": "http"}, "retriever=http needs the server's address"),
            ({"url": "http://x"}, "give it with retriever=http"),
            ({"retriever": "google"}, "retriever"),
            ({"train_sets": []}, "train_sets"),
            ({"topk": 0}, "topk"),
        ],
    )
    def test_impossible_ones_are_refused(self, search: dict[str, Any], says: str) -> None:
        with pytest.raises(RecipeError, match=says):
            recipe(search=search)

    def test_a_dense_retriever_without_an_index_is_refused_when_it_is_opened(self, small: Path) -> None:
        with pytest.raises(RecipeError, match=r"env.search.index: a dense retriever needs"):
            play(SearchQA(recipe(search={"retriever": "dense"}).env), "nq/2", "<search>a</search>")


def test_every_question_of_the_generated_world_is_answered_by_its_own_searches(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scripted agent that knows what to ask wins wherever the answer is written, and answers nothing that
    it has not read."""
    monkeypatch.setenv("PAW_CACHE", str(world))
    benchmark = SearchQA(recipe(search={"data": "generated"}).env)

    async def run() -> list[bool]:
        read = []
        for task in benchmark.panel("test:140@0").tasks:
            question = benchmark.question(task)
            (session,) = await benchmark.open(task, 1)
            seen = [
                (await session.step(f"<search>{query}</search>")).observation for query in question.searches
            ]
            assert (await session.step(f"<answer>{question.answers[0]}</answer>")).success
            read.append(question.answers[0] in seen[-1])
            assert question.answers[0].lower() not in question.question.lower()
        await benchmark.close()
        return read

    read = asyncio.run(run())
    assert sum(read) / len(read) > 0.97
