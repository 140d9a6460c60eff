"""Generated games: valid, won by their plan, always the same, and like the official ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.alfworld import games, generate, official, rooms, scenes
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.store import open_store
from paw_hpc.recipe import TASK_TYPES, TaskType
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError

OFFICIAL_SENTENCES = {
    "pick_and_place_simple": [r"put a (?P<o>\w+) in (?P<r>\w+)", r"put some (?P<o>\w+) on (?P<r>\w+)"],
    "look_at_obj_in_light": [
        r"look at (?P<o>\w+) under the (?P<r>desklamp)",
        r"examine the (?P<o>\w+) with the (?P<r>desklamp)",
    ],
    "pick_clean_then_place_in_recep": [
        r"put a clean (?P<o>\w+) in (?P<r>\w+)",
        r"clean some (?P<o>\w+) and put it in (?P<r>\w+)",
    ],
    "pick_heat_then_place_in_recep": [
        r"put a hot (?P<o>\w+) in (?P<r>\w+)",
        r"heat some (?P<o>\w+) and put it in (?P<r>\w+)",
    ],
    "pick_cool_then_place_in_recep": [
        r"put a cool (?P<o>\w+) in (?P<r>\w+)",
        r"cool some (?P<o>\w+) and put it in (?P<r>\w+)",
    ],
    "pick_two_obj_and_place": [
        r"put two (?P<o>\w+) in (?P<r>\w+)",
        r"find two (?P<o>\w+) and put them in (?P<r>\w+)",
    ],
}
EXPECTED_DIGEST = "9129e29cfca6c81cc4fd45d6ffb38a22cc0e87b1e2ee9bada70182603d6d158f"
STOCK = """
import json, sys, textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl.pddl import PddlEnv

for game in json.load(open(sys.argv[1])):
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
    env.load(game)
    state, won = env.reset(), []
    for command in game["walkthrough"]:
        assert command in state["admissible_commands"], command
        state, _, _ = env.step(command)
        won.append(state["won"])
    assert won == [False] * (len(won) - 1) + [True], won
"""
SENTENCE = re.compile(r'"Your task is to: (.*?)\."')


def sentence_form(task_id: str, game: dict[str, Any]) -> tuple[str, int]:
    """(task type, which of its two sentences the goal is); fails when it is neither, or names other things
    than the id."""
    task_type, target, _, place, _ = task_id.split("/")[1].split("-")
    found = SENTENCE.search(game["grammar"])
    assert found, task_id
    for number, form in enumerate(OFFICIAL_SENTENCES[task_type]):
        match = re.fullmatch(form, found[1])
        if match and (match["o"], match["r"]) == (target.lower(), place.lower()):
            return task_type, number
    raise AssertionError(f"{task_id}: '{found[1]}' is not one of ALFWorld's sentences")


def composed(split: str, count: int, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    return [compose(split, task_type, index, seed) for task_type in TASK_TYPES for index in range(count)]


def digest(made: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Of what this project writes into a game (domain and grammar are ALFWorld's)."""
    text = json.dumps(
        [
            (task_id, SENTENCE.findall(game["grammar"]), game["pddl_problem"], game["walkthrough"])
            for task_id, game in made
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()


class TestAGame:
    @pytest.mark.parametrize("split", ["train", "valid_unseen"])
    @pytest.mark.parametrize("task_type", TASK_TYPES)
    def test_is_won_by_its_walkthrough_and_not_before_the_last_command(
        self, task_type: str, split: str
    ) -> None:
        [(task_id, game)] = generate.proven_games(split, task_type, seed=5, indices=[3])
        assert task_id.startswith(f"generated-{split}/{task_type}-") and task_id.endswith("/s5-g0003")
        assert game["solvable"] is True

    def test_is_won_in_stock_textworld_too(self, tmp_path: Path) -> None:
        """In a process of its own, where nobody has put caches into TextWorld."""
        made = [
            compose("train", task_type, index, seed=0)
            for task_type in list(TASK_TYPES)[:3]
            for index in range(20)
        ]
        quick = {
            task_id.split("/")[1].split("-")[0]: game
            for task_id, game in made
            if room_of(task_id) == "Bathroom" or "look_at" in task_id
        }
        assert len(quick) == 3
        (tmp_path / "games.json").write_text(json.dumps(list(quick.values())))
        subprocess.run([sys.executable, "-c", STOCK, str(tmp_path / "games.json")], check=True)

    def test_has_no_way_from_a_spot_to_itself(self) -> None:
        """In this game the object lies in one of two sink basins that stand at one spot: TextWorld offers no
        "go to" between them."""
        task_id, game = compose("valid_seen", "pick_clean_then_place_in_recep", 10, seed=0)
        spots = re.findall(r"\(receptacleAtLocation \S+_SinkBasin (\S+)\)", game["pddl_problem"])
        assert len(spots) == 2 and len(set(spots)) == 1, task_id
        assert game["walkthrough"][1].startswith("take soapbar 1 from sinkbasin")
        generate.prove(game)

    def test_is_refused_with_a_false_walkthrough(self) -> None:
        _, game = compose("train", "pick_and_place_simple", 0, seed=0)
        walk = game["walkthrough"]
        for false, text in (
            (walk[:-1], "not won by"),
            ([*walk, "look"], "won before 'look'"),
            ([walk[0], *walk[2:]], "is not admissible"),
            ([], "not won by"),
        ):
            with pytest.raises(RuntimeError, match=text):
                generate.prove({**game, "walkthrough": false})

    def test_speaks_alfworlds_sentences_and_all_of_them(self) -> None:
        forms = {sentence_form(task_id, game) for task_id, game in composed("train", 25)}
        assert forms == {(task_type, number) for task_type in TASK_TYPES for number in (0, 1)}

    def test_does_not_begin_with_what_it_asks_for(self) -> None:
        for task_id, game in composed("train", 40):
            task_type, target, _, place, _ = task_id.split("/")[1].split("-")
            if task_type in ("pick_and_place_simple", "pick_two_obj_and_place"):
                inside = re.findall(r"\(inReceptacle (\w+?)_bar_\S+ (\w+?)_bar_", game["pddl_problem"])
                assert (target, place) not in inside

    def test_lies_in_plausible_places_only(self) -> None:
        """Every object starts where ALFWorld's own table says it can be."""
        from alfworld.gen.constants import VAL_RECEPTACLE_OBJECTS

        fixtures = {"DeskLamp", *(kind for room in rooms.ROOMS.values() for kind in room.fixtures)}
        seen = 0
        for _, game in composed("train", 20):
            for kind, place, basin in re.findall(
                r"\(inReceptacle (\w+?)_bar_\S+ (\w+?)_bar_\S*?(Basin)?\)", game["pddl_problem"]
            ):
                seen += 1
                assert kind in fixtures or kind in VAL_RECEPTACLE_OBJECTS[place + basin]
        assert seen > 2000


class TestAlwaysTheSame:
    def test_for_ever(self) -> None:
        """A literal digest: these games must come out on any machine and Python. A deliberate change of the
        generator changes it."""
        assert digest(composed("valid_seen", 4)) == EXPECTED_DIGEST

    def test_whatever_the_hash_seed_of_the_process(self) -> None:
        program = (
            "from tests.envs.test_alfworld_generate import composed, digest; import sys; "
            "sys.stdout.write(digest(composed('train', 3)))"
        )
        root = Path(generate.__file__).parents[3]
        for hash_seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
            out = subprocess.run(
                [sys.executable, "-c", program],
                env=environment,
                cwd=root,
                capture_output=True,
                text=True,
                check=True,
            )
            assert out.stdout == digest(composed("train", 3))

    def test_but_not_for_another_seed_split_or_index(self) -> None:
        games_of = [composed("train", 2), composed("train", 2, seed=1), composed("valid_seen", 2)]
        problems = [game["pddl_problem"] for made in games_of for _, game in made]
        assert len(set(problems)) == len(problems) == 36

    def test_and_never_the_same_game_twice(self) -> None:
        made = composed("train", 120)
        assert len({task_id for task_id, _ in made}) == len(made)
        assert len({game["pddl_problem"] for _, game in made}) == len(made)


def test_the_unseen_split_has_scenes_of_its_own() -> None:
    def numbers(split: str) -> set[int]:
        return {int(task_id.split("/")[1].rsplit("-", 1)[1]) for task_id, _ in composed(split, 40)}

    known, unseen = numbers("train") | numbers("valid_seen") | numbers("valid_train"), numbers("valid_unseen")
    assert known & unseen == set()
    assert unseen == scenes.UNSEEN
    assert len(known) > 90


def test_a_scene_keeps_its_furniture() -> None:
    furniture: dict[str, tuple[str, ...]] = {}
    for task_id, game in composed("train", 60, seed=0) + composed("valid_seen", 60, seed=3):
        scene = task_id.split("/")[1].rsplit("-", 1)[1]
        placed = tuple(
            sorted(re.findall(r"\((?:receptacleAtLocation|openable) [^?]*?\)", game["pddl_problem"]))
        )
        assert furniture.setdefault(scene, placed) == placed
    assert len(set(furniture.values())) == len(furniture)


@pytest.mark.usefixtures("official_games")
class TestLikeTheOfficialGames:
    def test_sentences(self) -> None:
        """The list above is the official one: every official goal fits it, and every form of it occurs."""
        forms = {sentence_form(task.task_id, games.load_game(task)) for task in games.tasks("train")[::3]}
        assert forms == {(task_type, number) for task_type in TASK_TYPES for number in (0, 1)}

    @pytest.mark.parametrize("room", rooms.ROOMS)
    def test_size_of_rooms_and_number_of_objects(self, room: str) -> None:
        ours = [size(game) for task_id, game in composed("train", 80) if room_of(task_id) == room]
        theirs = [
            size(games.load_game(task)) for task in games.tasks("train")[::5] if room_of(task.task_id) == room
        ]
        for mine, official_ones in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
            assert statistics.mean(mine) == pytest.approx(statistics.mean(official_ones), rel=0.25)

    def test_length_of_walkthroughs(self) -> None:
        for task_type in TASK_TYPES:
            ours = [len(compose("train", task_type, index, seed=0)[1]["walkthrough"]) for index in range(60)]
            theirs = [
                len(games.load_game(task)["walkthrough"])
                for task in games.tasks("train", task_types=[task_type])[::9]
            ]
            assert statistics.mean(ours) == pytest.approx(statistics.mean(theirs), abs=1.0)


class TestTheGamesThatComeWithThePackage:
    TYPES: tuple[TaskType, ...] = ("pick_and_place_simple", "look_at_obj_in_light")

    @pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
    def test_are_those_that_the_generator_makes(
        self, split: str, nowhere: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A generator that was changed, or another release of ALFWorld, has other names: then they are made,
        and these would be no use."""
        listed = games.tasks(split, "generated", self.TYPES)
        assert "generating" not in capfd.readouterr().err
        assert len(listed) == sum(generate.DEFAULT_COUNTS[split][task_type] for task_type in self.TYPES)
        for task_type in self.TYPES:
            count = generate.DEFAULT_COUNTS[split][task_type]
            of_type = {task.task_id: task for task in listed if task.task_type == task_type}
            for task_id, game in (
                compose(split, task_type, index, seed=0) for index in (0, count // 2, count - 1)
            ):
                assert games.load_game(of_type[task_id]) == game

    def test_are_all_that_lies_there(self) -> None:
        named = {
            generate.Batch(split, t, generate.DEFAULT_COUNTS[split][t]).name()
            for split in ("train", "valid_seen", "valid_unseen")
            for t in self.TYPES
        }
        assert {path.name for path in generate.SHIPPED.iterdir()} == named

    def test_of_another_generator_would_not_be_taken(
        self, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = generate.Batch("train", "look_at_obj_in_light", 100)
        assert batch.path().parent == generate.SHIPPED
        monkeypatch.setattr(generate, "installed_logic", lambda: ("another domain", "another grammar"))
        assert batch.path().parent != generate.SHIPPED


def room_of(task_id: str) -> str:
    scene = int(task_id.split("/")[1].rsplit("-", 1)[1])
    return max(
        rooms.ROOMS, key=lambda room: (rooms.ROOMS[room].first_scene <= scene, rooms.ROOMS[room].first_scene)
    )


def size(game: dict[str, Any]) -> tuple[int, int]:
    """(receptacles, objects that can be picked up)"""
    return game["pddl_problem"].count("(receptacleType "), game["pddl_problem"].count("(pickupable ")


class TestAMachineWithoutOfficialGames:
    """The way from nothing to a list of tasks; two games a type, proven in worker processes."""

    @pytest.fixture(autouse=True)
    def few(self, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(generate.DEFAULT_COUNTS, "train", dict.fromkeys(TASK_TYPES, 2))
        monkeypatch.setattr(generate, "_default_workers", lambda: 2)

    def test_plays_generated_ones(self, capfd: pytest.CaptureFixture[str]) -> None:
        types = ("look_at_obj_in_light", "pick_and_place_simple")
        listed = games.tasks("train", "auto", types)
        assert [task.task_type for task in listed] == ["look_at_obj_in_light"] * 2 + [
            "pick_and_place_simple"
        ] * 2
        assert [task.task_id for task in listed] == sorted(task.task_id for task in listed)
        assert "generating 4 ALFWorld games (train" in capfd.readouterr().err
        assert games.source_name() == "generated games"
        assert {t.task_id: games.load_game(t) for t in listed} == dict(
            compose("train", t, i, seed=0) for t in types for i in (0, 1)
        )
        assert games.tasks("train", "generated", types) == listed
        assert "generating" not in capfd.readouterr().err, "the second time they are there"

    def test_goes_on_where_it_was_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generate, "CHUNK", 2)
        proven: list[int] = []

        def prove(game: dict[str, Any]) -> None:
            proven.append(len(proven))
            if len(proven) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(generate, "prove", prove)
        with pytest.raises(KeyboardInterrupt):
            generate.generate("train", count=6, workers=0, task_types=["look_at_obj_in_light"])
        [store] = generate.generate("train", count=6, workers=0, task_types=["look_at_obj_in_light"])
        assert len(proven) == 4 + 4, "two of six were kept"
        assert len(open_store(store).digests) == 6
        assert [path.suffix for path in store.parent.iterdir() if not path.name.startswith(".")] == [".zip"]

    def test_a_worker_that_fails_is_heard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "textworld.py").write_text("raise ImportError('no TextWorld here')")
        with pytest.raises(
            RuntimeError,
            match=r"generating train look_at_obj_in_light games failed .*(?s:.*)no TextWorld here",
        ):
            generate.generate("train", count=1, task_types=["look_at_obj_in_light"])

    def test_an_unknown_split_is_refused(self) -> None:
        with pytest.raises(DataError, match="no generated split 'test'; one of train"):
            generate.generate("test")

    def test_the_number_asked_for_is_divided_among_the_types(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generate, "prove", lambda game: None)
        stores = generate.generate("valid_seen", count=14, seed=2, workers=0)
        assert [len(open_store(path).digests) for path in stores] == [4, 1, 3, 2, 2, 2]
        assert all(
            f"/s2-g{i:04d}" in task_id
            for path in stores
            for i, task_id in enumerate(sorted(open_store(path).digests, key=trial))
        )


def trial(task_id: str) -> str:
    return task_id.rsplit("/", 1)[1]


def test_torn_official_games_are_no_reason_to_play_generated_ones(nowhere: Path) -> None:
    folder = data_paths.cache_dir("alfworld")
    (folder / official.ARCHIVE).write_bytes(b"not xz")
    (folder / "logic.json").write_text('{"pddl_domain": "", "grammar_template": ""}')
    with pytest.raises(DataError, match="torn"):
        games.tasks("train", "auto")
