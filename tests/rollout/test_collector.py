"""The collector: what it records, what its seeds depend on, and what happens when environments break or
prompts do not fit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paw_hpc.build import Machinery
from paw_hpc.envs.alfworld import games
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.store import open_store, write_store
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.experience import Episode, Group, Pool
from paw_hpc.policy.packed import use_packed_attention
from paw_hpc.policy.tiny import build_tiny
from paw_hpc.recipe import RolloutSection, TinyModel, parse_recipe
from paw_hpc.rollout.collector import Collector, CollectStats, PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.local import LivePublisher, LocalEngine
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.system.seeding import derive_seed
from tests.rollout.desks import CHAT, SETTINGS, TOKENIZER, Delay, Desk, Parrot, World


def collect(
    world: World,
    engine: Any,
    settings: PlaySettings = SETTINGS,
    *,
    tasks: int = 3,
    members: int = 4,
    index: int = 2,
    first_group: int = 0,
) -> tuple[list[Group], CollectStats]:
    chosen = world.tasks("train")[:tasks]
    return asyncio.run(
        asyncio.wait_for(
            Collector(world, engine, CHAT, settings).collect(chosen, members, index, first_group), 60
        )
    )


def facts(groups: Sequence[Group]) -> list[Any]:
    """All that was recorded, in a form that compares exactly."""

    def of(episode: Episode) -> Any:
        arrays = ("prompt_ids", "response_ids", "response_logprobs", "bridge_ids", "observation_ids")
        plain = ("group", "episode", "step", "reward", "valid", "anchor", "weight_version")
        steps = [
            [getattr(t, name).tolist() for name in arrays] + [getattr(t, name) for name in plain]
            for t in episode.transitions
        ]
        return (
            episode.index,
            episode.group,
            episode.task_id,
            episode.seed,
            episode.success,
            episode.score,
            episode.failed_by_environment,
            steps,
        )

    return [(g.index, g.task_id, g.task_type, [of(e) for e in g.episodes]) for g in groups]


class TestWhatIsRecorded:
    @pytest.mark.parametrize("style", ["compact", "paper"])
    def test_is_what_was_shown_said_and_answered_at_each_step(self, style: str) -> None:
        """Every episode is played again here, one step after the other, from its own responses."""
        world, engine = World(style=style), Parrot()
        groups, stats = collect(world, engine, first_group=5)
        steps = 0
        for task, group in zip(world.tasks("train"), groups, strict=False):
            for member, episode in enumerate(group.episodes):
                assert (episode.index, episode.group) == (group.index * 4 + member, group.index)
                view, desk = world.view(task, episode.seed), Desk(world, task, member)
                state = asyncio.run(desk.reset())
                view.start(state)
                for number, t in enumerate(episode.transitions):
                    assert not state.done and (t.group, t.episode, t.step, t.weight_version) == (
                        group.index,
                        episode.index,
                        number,
                        3,
                    )
                    assert t.prompt_ids.tolist() == CHAT.prompt(view.messages()).tolist()
                    assert (t.anchor, t.admissible) == (view.anchor(), state.admissible)
                    said = engine.answer(request_of(engine, episode, number))
                    assert (
                        t.response_ids.tolist() == said.ids.tolist()
                        and t.response_logprobs.tolist() == said.logprobs.tolist()
                    )
                    assert t.bridge_ids.tolist() == CHAT.bridge(said.finished).tolist()
                    assert (
                        said.entropies is not None
                        and stats.entropies[episode.index, number].tolist() == said.entropies.tolist()
                    )
                    action, valid = view.parse(CHAT.decode(t.response_ids))
                    state = asyncio.run(desk.step(action))
                    view.observe(action, state)
                    assert (t.valid, t.reward) == (valid, state.reward)
                    assert t.observation_ids.tolist() == CHAT.observation(state.observation, 64)[0].tolist()
                    steps += 1
                assert state.done and (episode.success, episode.score) == (state.success, state.score)
                assert episode.episode_return == 10.0 * episode.success
        assert [g.index for g in groups] == [5, 6, 7] and stats.environment_steps == steps == len(
            stats.entropies
        )
        played = [t for g in groups for e in g.episodes for t in e.transitions]
        assert stats.generated_tokens == sum(len(t.response_ids) for t in played)
        assert stats.prompt_tokens == sum(len(t.prompt_ids) for t in played)
        # SAYINGS have no tags
        assert {t.valid for t in played} == ({True, False} if style == "compact" else {False})
        assert {r.temperature for r in engine.requests} == {0.8} and {
            r.max_tokens for r in engine.requests
        } == {12}

    def test_has_no_entropies_where_the_engine_cannot_say(self) -> None:
        assert collect(World(), Parrot(entropies=False))[1].entropies == {}

    def test_counts_observations_that_were_cut(self) -> None:
        groups, stats = collect(World(), Parrot(), replace(SETTINGS, max_observation_tokens=5))
        cut = sum(len(t.observation_ids) == 5 for g in groups for e in g.episodes for t in e.transitions)
        assert (
            stats.truncated_observations
            == sum(e.truncated_observations for g in groups for e in g.episodes)
            == cut
            > 0
        )
        assert max(len(t.observation_ids) for g in groups for e in g.episodes for t in e.transitions) == 5

    def test_tells_the_engine_of_all_episodes_before_the_first_request_and_of_each_end(self) -> None:
        engine = Parrot()
        collect(World(), engine)
        kinds = [kind for kind, _ in engine.history]
        assert kinds[:12] == ["join"] * 12 and "join" not in kinds[12:] and engine.joined == set()


def request_of(engine: Parrot, episode: Episode, step: int) -> GenerationRequest:
    [found] = [
        r
        for r in engine.requests
        if r.episode == episode.index and r.seed == derive_seed(episode.seed, "turn", step)
    ]
    return found


class TestSeeds:
    def test_come_from_run_seed_purpose_index_group_member_and_step(self) -> None:
        engine = Parrot()
        groups, _ = collect(World(), engine, index=9, first_group=4)
        for group in groups:
            for member, episode in enumerate(group.episodes):
                assert episode.seed == derive_seed(7, "train", 9, group.index, member)
                expected = {
                    derive_seed(episode.seed, "turn", step) for step in range(len(episode.transitions))
                }
                assert {r.seed for r in engine.requests if r.episode == episode.index} == expected
        assert len({r.seed for r in engine.requests}) == len(engine.requests)

    def test_make_the_same_episodes_whatever_takes_how_long(self) -> None:
        def shaky(seed: int) -> Delay:
            rng = np.random.default_rng(seed)
            return lambda: float(rng.random()) * 0.01

        expected = facts(collect(World(), Parrot())[0])
        for seed in range(3):
            assert facts(collect(World(shaky(seed)), Parrot(shaky(seed + 10)))[0]) == expected

    def test_make_the_same_group_wherever_it_stands_in_a_collection(self) -> None:
        """So that data-parallel leaders may each play a share."""
        whole = facts(collect(World(), Parrot())[0])
        world, engine = World(), Parrot()
        part = asyncio.run(
            Collector(world, engine, CHAT, SETTINGS).collect(world.tasks("train")[1:3], 4, 2, first_group=1)
        )[0]
        assert facts(part) == whole[1:]

    @pytest.mark.parametrize(
        "other",
        [
            {"index": 3},
            {"first_group": 1},
            {"settings": replace(SETTINGS, run_seed=8)},
            {"settings": replace(SETTINGS, purpose="eval")},
        ],
    )
    def test_make_other_episodes_for_another_run_purpose_or_index(self, other: dict[str, Any]) -> None:
        seeds = [
            {e.seed for g in collect(World(), Parrot(), **options)[0] for e in g.episodes}
            for options in ({}, other)
        ]
        overlap = 8 if "first_group" in other else 0  # groups 1 and 2 are the same ones
        assert len(seeds[0] & seeds[1]) == overlap


class TestAsynchrony:
    def engine(self, batching: str) -> LocalEngine:
        model = build_tiny(
            TinyModel(hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=16), TOKENIZER, seed=0
        )
        use_packed_attention(model)
        return LocalEngine(model, TOKENIZER, RolloutSection(batching=batching, max_batch=16))  # type: ignore[arg-type]

    def order(self, batching: str) -> list[tuple[str, int, int]]:
        """The order in which environments took their steps, when one of six takes half a second for its
        second."""
        world = World(max_steps=3)
        slow = Task("t0", "", "1")

        class SlowDesk(Desk):
            async def step(self, action: str) -> EnvironmentState:
                if (self.task.task_id, self.member, self.steps) == ("t0", 0, 1):
                    await asyncio.sleep(0.5)
                return await super().step(action)

        async def open_slow(task: Task, members: int) -> Sequence[Desk]:
            return [SlowDesk(world, task, m) for m in range(members)]

        world.open = open_slow  # type: ignore[method-assign]
        engine = self.engine(batching)
        collect(world, engine, tasks=3, members=2)
        engine.close()
        assert world.events.count((slow.task_id, 0, 2)) == 1
        return world.events

    def test_no_environment_waits_for_a_slow_one_when_the_engine_is_eager(self) -> None:
        events = self.order("eager")
        late = events.index(("t0", 0, 2))
        assert all(step == 3 or (task, member) == ("t0", 0) for task, member, step in events[late + 1 :])
        assert {(t, m) for t, m, s in events[:late] if s == 3} == {
            (t, m) for t in ("t0", "t1", "t2") for m in (0, 1)
        } - {("t0", 0)}

    def test_what_was_published_is_what_transitions_carry(self) -> None:
        engine = self.engine("deterministic")
        for version in (0, 4):
            LivePublisher(engine).publish(version)
            groups, _ = collect(World(max_steps=1), engine, tasks=1, members=2)
            assert {t.weight_version for e in groups[0].episodes for t in e.transitions} == {version}
        engine.close()

    def test_all_wait_for_the_slow_one_when_batches_must_not_depend_on_time(self) -> None:
        events = self.order("deterministic")
        late = events.index(("t0", 0, 2))
        assert [s for _, _, s in events[:late]].count(3) == 0

    def test_groups_open_at_once(self) -> None:
        start = time.perf_counter()
        collect(World(delay=lambda: 0.1, max_steps=3), Parrot(), tasks=6, members=2)
        assert time.perf_counter() - start < 3 * 0.4  # one after the other they take 6 * 0.4 seconds


class TestFailures:
    def test_of_environments_are_counted_told_and_left_out_of_training(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        world, engine = World(broken=[("t0", None, 0), ("t1", 2, 2), ("t2", 0, 1)]), Parrot()
        with caplog.at_level(logging.WARNING):
            groups, stats = collect(world, engine)
        failed = [[e.failed_by_environment for e in g.episodes] for g in groups]
        assert failed == [[True] * 4, [False, False, True, False], [True, False, False, False]]
        assert stats.failed_by_environment == 6 and stats.metrics()["rollout/failed_by_environment"] == 6
        assert engine.joined == set() and world.open_sessions == 0
        assert "t0: it does not load" in caplog.text and "t1: it broke" in caplog.text
        pool = Pool.from_groups(groups)
        assert (
            len(pool.episodes) == 6
            and pool.num_groups == 2
            and all(not e.failed_by_environment for e in pool.episodes)
        )
        # The others played as if nothing had happened.
        whole = facts(collect(World(), Parrot())[0])
        for g, group in enumerate(facts(groups)):
            for m, episode in enumerate(group[3]):
                assert failed[g][m] or episode == whole[g][3][m]

    def test_of_the_engine_end_everything(self) -> None:
        class Broken(Parrot):
            async def generate(self, request: GenerationRequest) -> Completion:
                if request.episode == 5 and len(self.requests) > 20:
                    raise FloatingPointError("the policy's logits are not finite")
                return await super().generate(request)

        world, engine = World(delay=lambda: 0.001), Broken()
        with pytest.raises(FloatingPointError, match="not finite"):
            collect(world, engine)
        assert engine.joined == set() and world.open_sessions == 0

    def test_of_the_data_end_everything(self) -> None:
        class Torn(World):
            async def open(self, task: Task, members: int) -> Sequence[Desk]:
                if task.task_id == "t2":
                    raise RuntimeError("torn")
                return await super().open(task, members)

        world, engine = Torn(delay=lambda: 0.001), Parrot()
        with pytest.raises(RuntimeError, match="torn"):
            collect(world, engine)
        assert engine.joined == set() and world.open_sessions == 0


class TestPromptsThatDoNotFit:
    def longest(self, groups: Sequence[Group]) -> int:
        return max(len(t.prompt_ids) for g in groups for e in g.episodes for t in e.transitions)

    @pytest.mark.parametrize("style", ["compact", "paper"])
    def test_lose_their_oldest_history_and_are_counted(self, style: str) -> None:
        roomy = replace(SETTINGS, max_prompt_tokens=1000)
        groups, stats = collect(World(style=style), Parrot(), roomy)
        assert stats.truncated_prompts == 0
        limit = self.longest(groups) - 1
        groups, stats = collect(World(style=style), Parrot(), replace(roomy, max_prompt_tokens=limit))
        assert self.longest(groups) <= limit
        assert (
            0
            < stats.truncated_prompts
            == sum(e.truncated_prompts for g in groups for e in g.episodes)
            < stats.environment_steps
        )

    def test_end_their_episode_as_a_failure_once_no_history_is_left_and_the_others_go_on(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Talkative(World):
            """One desk of episode 6 has very much to say."""

            async def open(self, task: Task, members: int) -> Sequence[Desk]:
                desks = await super().open(task, members)
                return [
                    Long(self, task, d.member) if (task.task_id, d.member) == ("t1", 2) else d for d in desks
                ]

        class Long(Desk):
            async def step(self, action: str) -> EnvironmentState:
                state = await super().step(action)
                return replace(state, observation=" a mug" * 300) if self.steps == 2 else state

        settings = replace(SETTINGS, max_prompt_tokens=200)
        whole = facts(collect(World(), Parrot(), settings)[0])
        world, engine = Talkative(), Parrot()
        with caplog.at_level(logging.WARNING):
            groups, stats = collect(world, engine, settings)
        cut = groups[1].episodes[2]
        assert (len(cut.transitions), cut.success, cut.score, cut.failed_by_environment) == (
            2,
            False,
            0.0,
            False,
        )
        assert stats.overlong_prompts == stats.metrics()["rollout/overlong_prompts"] == 1
        assert (
            "t1 needs a prompt of" in caplog.text
            and "at step 3 even without history, and rollout.max_prompt_tokens is 200" in caplog.text
        )
        assert engine.joined == set() and world.open_sessions == 0
        assert [e for g in facts(groups) for e in g[3] if e[0] != 6] == [
            e for g in whole for e in g[3] if e[0] != 6
        ]
        assert cut in Pool.from_groups(groups).episodes, "what it did before is trained on, as a failure"

    def test_leave_nothing_to_train_on_where_no_first_one_fits(self) -> None:
        world, engine = World(delay=lambda: 0.001), Parrot()
        groups, stats = collect(world, engine, replace(SETTINGS, max_prompt_tokens=20))
        assert stats.overlong_prompts == 12 and len(Pool.from_groups(groups)) == 0
        assert engine.joined == set() and world.open_sessions == 0 and engine.requests == []


Played = tuple[list[Any], list[Any]]


def played(tasks: Sequence[Task], workers: int, batching: str = "deterministic") -> Played:
    """What was recorded in updates 1 and 2, with the shipped policy, the in-process engine and worker
    processes."""
    recipe = parse_recipe(
        {
            "seed": 3,
            "env": {"prompt": "compact", "max_steps": 6, "workers": workers},
            "model": {"path": "warm-start", "device": "cpu"},
            "rollout": {
                "max_prompt_tokens": 512,
                "max_response_tokens": 12,
                "batching": batching,
                "max_batch": 5,
            },
        }
    )
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        results = [machinery.collect(tasks, 3, update) for update in (1, 2)]
        machinery.engine.close()
    assert all(stats.failed_by_environment == 0 for _, stats in results)
    return facts(results[0][0]), facts(results[1][0])


def steps_of(recorded: list[Any]) -> list[Any]:
    return [step for group in recorded for episode in group[3] for step in episode[-1]]


class TestRealEnvironments:
    """ALFWorld's games in worker processes."""

    @pytest.fixture(scope="class")
    def tasks(self, tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
        made = [compose("train", "pick_and_place_simple", index, seed=0) for index in range(24)]
        small = sorted(made, key=lambda pair: len(pair[1]["pddl_problem"]))[:4]
        path = tmp_path_factory.mktemp("games") / "games.zip"
        write_store(path, small, {"verb": "move", "origin": "generated"})
        return games.tasks_of(open_store(path), "train")

    @pytest.fixture(scope="class")
    def one_worker(self, tasks: list[Task]) -> Played:
        return played(tasks, workers=1)

    def test_play_the_same_episodes_on_one_worker_and_on_four(
        self, tasks: list[Task], one_worker: Played
    ) -> None:
        assert played(tasks, workers=4) == one_worker
        assert one_worker[0] != one_worker[1], "another update plays otherwise"
        steps = steps_of(one_worker[0])
        assert len(steps) > 30 and len({str(step[1]) for step in steps}) > 10

    def test_sample_the_same_answers_when_batches_do_depend_on_time(
        self, tasks: list[Task], one_worker: Played
    ) -> None:
        """Seeds belong to turns, so only the last bits of log-probs may differ; ids do not, unless a draw
        falls between those bits."""
        eager = played(tasks, 2, "eager")
        for update in (0, 1):
            assert [step[1] for step in steps_of(eager[update])] == [
                step[1] for step in steps_of(one_worker[update])
            ]
