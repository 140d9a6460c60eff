"""The scripted expert wins every kind of task, from wherever a noisy player has brought it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from alfworld.gen.goal_library import gdict

from paw_hpc.envs.alfworld import games
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.envs.alfworld.expert import Expert, Goal, parse_goal
from paw_hpc.envs.alfworld.prompt import NOTHING, split_intro
from paw_hpc.recipe import TASK_TYPES

KINDS = dict(zip(TASK_TYPES, ("put", "look", "clean", "heat", "cool", "two"), strict=True))


class TestGoals:
    @pytest.mark.parametrize("task_type", TASK_TYPES)
    def test_of_every_template_of_alfworld_are_understood(self, task_type: str) -> None:
        templates = gdict[task_type]["templates"]
        assert len(templates) == 2
        for template in templates:
            sentence = template.format(obj="alarmclock", recep="sidetable", toggle="sidetable") + "."
            assert parse_goal(sentence) == Goal(KINDS[task_type], "alarmclock", "sidetable")
            assert parse_goal(sentence.upper()) == parse_goal(sentence)

    @pytest.mark.parametrize("task_type", TASK_TYPES)
    def test_of_sliced_objects_which_no_text_game_has_are_refused(self, task_type: str) -> None:
        for template in gdict[f"{task_type}_slice"]["templates"]:
            with pytest.raises(ValueError, match="not an ALFWorld task"):
                parse_goal(template.format(obj="apple", recep="fridge", toggle="desklamp"))

    def test_of_all_official_games_are_understood(self, official_games: Any) -> None:
        sentences = set()
        for split in games.OFFICIAL_COUNTS:
            for task in games.tasks(split, "official"):
                found = re.search(r'Your task is to: (.*?)"', games.load_game(task)["grammar"])
                task_type, target, _, place, _ = task.task_id.split("/")[1].split("-")
                assert found and parse_goal(found[1]) == Goal(
                    KINDS[task_type], target.lower(), place.lower()
                ), task
                sentences.add(found[1])
        assert len(sentences) > 500


def episode(
    engine: GameEngine,
    walkthrough: list[str],
    hint: float,
    seed: int,
    *,
    noise: float = 0.0,
    noisy_steps: int = 0,
    limit: int = 150,
) -> int:
    """Let the expert play; returns the steps it took to win (fails when it does not win, or gives a command
    that is not admissible).

    Args:
        noise: probability of a random command in place of the expert's, over the whole episode.
        noisy_steps: random commands at the start; rare verbs (take, move, heat, close) are as likely as
            frequent ones.
    """
    rng = np.random.default_rng(seed)
    observation, admissible, won = engine.reset()
    expert = Expert(split_intro(observation)[1], walkthrough, hint, rng)
    for step in range(limit):
        command = expert.act(admissible)
        assert command in admissible
        if step < noisy_steps or rng.random() < noise:
            verbs = sorted({c.split(" ")[0] for c in admissible} - {"help", "look", "inventory"})
            verb = verbs[int(rng.integers(len(verbs)))]
            choices = [c for c in admissible if c.split(" ")[0] == verb]
            command = choices[int(rng.integers(len(choices)))]
        observation, admissible, won = engine.step(command)
        expert.observe(command, observation.strip() != NOTHING)
        if won:
            return step + 1
    raise AssertionError(f"{expert.task} not won in {limit} steps")


class TestPlay:
    @pytest.mark.parametrize("task_type", TASK_TYPES)
    def test_wins_hinted_unhinted_and_after_detours(self, task_type: str) -> None:
        _, game = compose("train", task_type, 2, seed=11)
        engine, walk = GameEngine(game), game["walkthrough"]
        assert episode(engine, walk, hint=1.0, seed=0) <= len(walk) + 4
        episode(engine, walk, hint=0.0, seed=1)
        for seed in range(4):
            episode(engine, walk, hint=0.3, seed=seed, noise=0.3)
            episode(engine, walk, hint=0.5, seed=seed, noisy_steps=25)

    def test_searches_where_it_has_not_been_when_it_has_no_hint(self) -> None:
        _, game = compose("train", "pick_and_place_simple", 3, seed=11)
        engine = GameEngine(game)
        steps = {
            hint: [episode(engine, game["walkthrough"], hint, seed) for seed in range(6)]
            for hint in (0.0, 1.0)
        }
        assert len(set(steps[1.0])) == 1 and np.mean(steps[0.0]) > np.mean(steps[1.0])

    def test_wins_official_games(self, official_games: Any) -> None:
        for task_type in TASK_TYPES:
            task = games.tasks("valid_unseen", "official", [task_type])[0]
            game = games.load_game(task)
            engine = GameEngine(game)
            episode(engine, game["walkthrough"], hint=1.0, seed=0, limit=50)
            episode(engine, game["walkthrough"], hint=0.3, seed=0, noise=0.2)


class TestRecovery:
    """Situations in which an expert that trusts its own memory would wait for ever."""

    def expert(self, task: str) -> Expert:
        return Expert(task, [], 0.0, np.random.default_rng(0))

    def test_an_object_that_another_appliance_changed_is_not_treated(self) -> None:
        expert = self.expert("put a hot mug in shelf.")
        expert.observe("take mug 1 from desk 1", True)
        expert.observe("clean mug 1 with sinkbasin 1", True)
        at_microwave = ["go to shelf 1", "heat mug 1 with microwave 1", "move mug 1 to microwave 1"]
        assert expert.act(at_microwave) == "heat mug 1 with microwave 1"
        expert.observe("heat mug 1 with microwave 1", True)
        assert expert.act(at_microwave) == "go to shelf 1"
        expert.observe("cool mug 1 with fridge 1", True)
        assert expert.act(at_microwave) == "heat mug 1 with microwave 1"

    def test_an_untreated_object_in_its_place_is_taken_out_again(self) -> None:
        expert = self.expert("put a clean mug in shelf.")
        expert.observe("go to shelf 1", True)
        expert.observe("move mug 1 to shelf 1", True)
        assert expert.act(["go to sinkbasin 1", "take mug 1 from shelf 1"]) == "take mug 1 from shelf 1"

    def test_a_pair_in_two_receptacles_is_brought_together(self) -> None:
        expert = self.expert("put two book in drawer.")
        expert.observe("move book 1 to drawer 1", True)
        expert.observe("move book 2 to drawer 2", True)
        assert expert.act(["go to drawer 1", "take book 2 from drawer 2"]) == "take book 2 from drawer 2"
        assert (
            expert.act(["go to drawer 1", "go to drawer 2", "take book 1 from drawer 1"])
            != "take book 1 from drawer 1"
        )
        expert.observe("take book 2 from drawer 2", True)
        assert expert.act(["go to drawer 1", "go to drawer 3", "move book 2 to drawer 2"]) == "go to drawer 1"

    def test_a_foreign_object_in_hand_is_put_down(self) -> None:
        expert = self.expert("put some mug on shelf.")
        assert expert.act(["go to shelf 1", "move fork 1 to desk 1"]) == "move fork 1 to desk 1"

    def test_a_command_without_effect_changes_nothing(self) -> None:
        expert = self.expert("put some mug on shelf.")
        expert.observe("take mug 1 from desk 1", False)
        assert expert.act(["examine mug 1", "go to desk 1"]) == "go to desk 1"
