"""Translations that are kept from run to run: a game says the same with and without, and what is not whole
and one's own is made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.alfworld import state, translations
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.recipe import TASK_TYPES

PLAY = """
import json, sys
from paw_hpc.envs.alfworld import state
from tests.envs.test_alfworld_translations import transcript
if sys.argv[2] == "kept":
    state.translate = None  # must not be asked
print(json.dumps([transcript(game) for game in json.load(open(sys.argv[1]))]))
"""


def transcript(game: dict[str, Any], planner: bool = False) -> list[Any]:
    """Two plays of the walkthrough, with a command that nobody understands before each; the planner's way
    where it is asked."""
    played, said = GameEngine(game, planner=planner), []
    for _ in range(2):
        said.append(played.reset())
        for command in ["fly to the moon", *game["walkthrough"]]:
            if planner:
                said.append(played.plan())
            said.append(played.step(command))
    return json.loads(json.dumps(said))


def smallest(task_type: str) -> dict[str, Any]:
    return min(
        (compose("train", task_type, index, seed=3)[1] for index in range(5)),
        key=lambda game: len(game["pddl_problem"]),
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "cache"))
    return translations.folder()


@pytest.fixture(scope="module")
def game() -> dict[str, Any]:
    return smallest("look_at_obj_in_light")


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every translation."""
    calls, stock = list[str](), state.translate
    monkeypatch.setattr(state, "translate", lambda *a: (calls.append("made"), stock(*a))[1])
    return calls


def the_file(cache: Path) -> Path:
    [file] = [file for file in cache.rglob("*") if file.is_file()]
    return file


class TestAGameThatIsKept:
    def test_says_the_same_in_another_process_for_every_kind_of_game(
        self, cache: Path, tmp_path: Path
    ) -> None:
        listed = [smallest(task_type) for task_type in TASK_TYPES]
        (tmp_path / "games.json").write_text(json.dumps(listed))
        outputs = []
        # The order of sets is another in each: nothing that is kept may depend on it.
        for hash_seed, word in (("1", "new"), ("2", "kept"), ("3", "kept")):
            command = [sys.executable, "-c", PLAY, str(tmp_path / "games.json"), word]
            environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
            outputs.append(
                json.loads(
                    subprocess.run(
                        command, check=True, capture_output=True, text=True, env=environment
                    ).stdout
                )
            )
        assert outputs[0] == outputs[1] == outputs[2]
        assert [said[len(g["walkthrough"]) + 1][2] for g, said in zip(listed, outputs[0], strict=True)] == [
            True
        ] * 6, "each play wins"
        assert len([file for file in cache.rglob("*") if file.is_file()]) == 6

    def test_is_translated_once(self, cache: Path, game: dict[str, Any], translated: list[str]) -> None:
        first = transcript(game)
        assert transcript(game) == first and len(translated) == 1

    def test_has_its_planner_kept_apart(
        self, cache: Path, game: dict[str, Any], translated: list[str]
    ) -> None:
        plain, first = transcript(game), transcript(game, planner=True)
        assert len(translated) == 2 and first != plain
        assert transcript(game, planner=True) == first and len(translated) == 2
        assert first[1], "the planner finds a way"

    def test_says_the_same_to_members_that_share_it(self, cache: Path, game: dict[str, Any]) -> None:
        alone, shared = GameEngine(game), GameEngine(game)
        assert alone.reset() == shared.reset()
        shared.share()
        assert [alone.step(c) for c in game["walkthrough"]] == [shared.step(c) for c in game["walkthrough"]]

    def test_is_the_users_alone(self, cache: Path, game: dict[str, Any]) -> None:
        old = os.umask(0)
        try:
            GameEngine(game).reset()
        finally:
            os.umask(old)
        file = the_file(cache)
        assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("part", ["pddl_domain", "grammar", "pddl_problem"])
    def test_that_changes_has_another_key(self, game: dict[str, Any], part: str) -> None:
        assert translations.key_of({**game, part: game[part] + " "}, False) != translations.key_of(
            game, False
        )
        assert translations.key_of({**game, "walkthrough": []}, False) == translations.key_of(game, False)

    def test_of_another_format_or_release_has_another_key(
        self, game: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {translations.key_of(game, False), translations.key_of(game, True)}
        monkeypatch.setattr(translations, "FORMAT", translations.FORMAT + 1)
        keys.add(translations.key_of(game, False))
        monkeypatch.setattr(translations, "_makers", lambda: "textworld=9")
        keys.add(translations.key_of(game, False))
        assert len(keys) == 4


def flipped(place: float) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return flip


def bomb(file: Path) -> None:
    """A whole file by its digest, whose content has no end worth waiting for."""
    data = zlib.compress(b'{"a":1}\n' + bytes(translations.LARGEST_BYTES))
    file.write_bytes(translations._digest(file.name, data) + data)


def another_record(file: Path) -> None:
    data = zlib.compress(b'{"sas_bytes": 3, "price": 2}\nsas')
    file.write_bytes(translations._digest(file.name, data) + data)


def another_games(file: Path) -> None:
    other = smallest("pick_and_place_simple")
    GameEngine(other).reset()
    os.replace(translations._path(translations.key_of(other, False)), file)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the digest": flipped(0.0),
    "a bit in the middle": flipped(0.5),
    "the last bit": flipped(1.0),
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0") and None,
    "a bomb": bomb,
    "another record": another_record,
    "another game's": another_games,
    "writable by others": lambda file: file.chmod(0o622),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_not_ones_own_is_made_again(
    cache: Path, game: dict[str, Any], translated: list[str], damage: str
) -> None:
    first = transcript(game)
    key, file = translations.key_of(game, False), the_file(cache)
    assert translations.read(key) is not None, "the control: what is whole is read"
    DAMAGE[damage](file)
    assert translations.read(key) is None
    translated.clear()
    assert transcript(game) == first and len(translated) == 1
    assert translations.read(key) is not None and transcript(game) == first and len(translated) == 1


def test_damage_that_is_read_would_be_noticed(cache: Path, game: dict[str, Any]) -> None:
    """The control of all comparisons here: one other word in a file that is whole by its digest, and the
    transcript differs."""
    first, key = transcript(game), translations.key_of(game, False)
    planted = translations.read(key)
    assert planted is not None and planted.feedback is not None
    planted.feedback = planted.feedback.replace("Your task", "Your tasks")
    translations.keep(key, planted)
    assert transcript(game) != first


def test_many_processes_at_once_write_and_read_one_file(
    cache: Path, game: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "games.json").write_text(json.dumps([game] * 4))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PLAY, str(tmp_path / "games.json"), "new"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)
    ]
    said = [json.loads(process.communicate()[0]) for process in running]
    assert all(one == said[0][0] for process in said for one in process)
    assert the_file(cache).name == translations.key_of(game, False), "nothing else is left over"


def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, game: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "file"))
    assert transcript(game) == transcript(game)
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be kept" in line and "PAW_CACHE" in line


def test_engines_of_one_process_take_over_each_others_library(cache: Path, game: dict[str, Any]) -> None:
    state.idle_libraries.clear()
    one = GameEngine(game)
    two = GameEngine(game)
    assert one._env.downward_lib is not two._env.downward_lib
    one.reset()
    handle = two._env.downward_lib
    del two
    three = GameEngine(game)
    assert three._env.downward_lib is handle
