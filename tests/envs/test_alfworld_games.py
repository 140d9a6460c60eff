"""ALFWorld's games: the same list everywhere, read in any form, refused when torn or mixed."""

from __future__ import annotations

import json
import lzma
import multiprocessing
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.alfworld import games, official, store
from paw_hpc.envs.base import Task
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError
from tests.envs.conftest import all_splits, old_release

Games = dict[str, dict[str, Any]]


def write_folder(root: Path, some: Mapping[str, Any]) -> None:
    for task_id, game in some.items():
        path = root / "json_2.1.1" / task_id / "game.tw-pddl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(game))


def write_release(root: Path, some: Mapping[str, Any]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / official.RELEASE, "w") as archive:
        for task_id, game in some.items():
            archive.writestr(f"json_2.1.1/{task_id}/game.tw-pddl", json.dumps(game))
            archive.writestr(f"json_2.1.1/{task_id}/notes.txt", "not a game")


def write_archive(root: Path, some: Mapping[str, Any]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    logics, lines = [], []
    for task_id, game in some.items():
        logic, own = store.split_game(task_id, game)
        split, task, trial = task_id.split("/")
        record = {
            "split": split,
            "task": task,
            "trial": trial,
            "goal": own["task"],
            "problem": own["pddl_problem"],
        }
        lines.append(json.dumps({**record, "walkthrough": own["walkthrough"], "solvable": own["solvable"]}))
        logics.append({"pddl_domain": logic["pddl_domain"], "grammar_template": logic["grammar"]})
    (root / "logic.json").write_text(json.dumps(logics[0]))
    with lzma.open(root / official.ARCHIVE, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))


FORMS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "folder": write_folder,
    "release": write_release,
    "archive": write_archive,
}


@pytest.mark.usefixtures("official_games")
class TestTheOfficialGames:
    def test_are_all_there_and_are_those_of_the_release(self) -> None:
        reports = {report.split: report for report in games.verify()}
        assert {split: report.found for split, report in reports.items()} == {
            "train": 3553,
            "valid_seen": 140,
            "valid_unseen": 134,
            "valid_train": 200,
        }
        assert all(report.intact for report in reports.values())

    def test_are_listed_sorted_without_paths_of_this_machine(self) -> None:
        for split in all_splits():
            ids = [task.task_id for task in games.tasks(split)]
            assert ids == sorted(set(ids))
            assert all(len(task_id.split("/")) == 3 and task_id.startswith(f"{split}/") for task_id in ids)

    def test_are_cut_into_the_task_types(self) -> None:
        whole = games.tasks("valid_unseen")
        parts = [games.tasks("valid_unseen", task_types=[t]) for t in TASK_TYPES]
        assert sorted((task for part in parts for task in part), key=lambda task: task.task_id) == whole
        assert [len(part) for part in parts] == [24, 18, 31, 23, 21, 17]

    def test_are_read_in_about_a_millisecond(self) -> None:
        listed = random.Random(0).sample(games.tasks("train"), 200)
        started = time.perf_counter()
        read = [games.load_game(task) for task in listed]
        assert (time.perf_counter() - started) / len(read) < 0.01
        assert all(game["pddl_problem"].count("(:goal") == 1 for game in read)

    def test_are_read_by_forked_workers_at_the_same_time(self) -> None:
        listed = games.tasks("valid_seen")[:24]
        here = [games.load_game(task) for task in listed]
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert pool.map(games.load_game, listed * 4, chunksize=1) == here * 4

    def test_source_is_named(self, official_games: official.Origin) -> None:
        assert games.source_name() == f"official games ({official_games.kind})"
        assert games.source_name("generated") == "generated games"

    def test_a_changed_walkthrough_or_a_missing_game_changes_the_checksum(self, tmp_path: Path) -> None:
        listed = games.tasks("valid_unseen")[:6]
        content = {task.task_id: games.load_game(task) for task in listed}
        reference = games.checksum(listed)
        again = rewrite(tmp_path / "same.zip", content)
        assert games.checksum(again) == reference == games.checksum(again[::-1])
        assert games.checksum(again[1:]) != reference
        content[listed[0].task_id]["walkthrough"].pop()
        assert games.checksum(rewrite(tmp_path / "other.zip", content)) != reference


def rewrite(path: Path, content: Mapping[str, Any]) -> list[Task]:
    store.write_store(path, content.items(), {"verb": "move"})
    return [Task(task_id, task_id.split("/")[1].split("-")[0], str(path)) for task_id in sorted(content)]


class TestEveryForm:
    @pytest.mark.parametrize("form", FORMS)
    def test_gives_back_what_was_put_in(
        self, form: str, nowhere: Path, tmp_path: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        FORMS[form](tmp_path / "data" / "alfworld", some_games)
        monkeypatch.setenv("PAW_DATA", str(tmp_path / "data"))
        listed = games.tasks("train", "official")
        assert [task.task_id for task in listed] == sorted(some_games)
        assert {task.task_id: games.load_game(task) for task in listed} == some_games
        assert games.source_name() == f"official games ({form}, incomplete)"

    def test_leaves_out_what_alfworld_leaves_out(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (first, game), *rest = some_games.items()
        unmarked = {key: value for key, value in game.items() if key != "solvable"}
        odd = {
            first: {**game, "solvable": False},
            "train/pick_and_place_simple-Mug-None-Desk-301/unmarked": unmarked,
            "train/pick_and_place_with_movable_recep-Pen-Mug-Desk-301/movable": game,
            "train/pick_cool_then_place_in_recep-AppleSliced-None-Fridge-1/sliced": game,
        }
        write_folder(nowhere, {**odd, **dict(rest)})
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        assert [task.task_id for task in games.tasks("train", "official")] == sorted(
            task_id for task_id, _ in rest
        )

    def test_notices_a_game_added_later(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (first, game), *rest = some_games.items()
        write_folder(nowhere, dict(rest))
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        before = official.find()
        assert before is not None
        mark = before.fingerprint()
        assert before.fingerprint() == mark
        write_folder(nowhere, {first: game})
        assert before.fingerprint() != mark


class TestTheOrderOfPlaces:
    def test_paw_data_then_alfworld_data_then_the_caches(
        self, nowhere: Path, tmp_path: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def found() -> Path:
            origin = official.find()
            assert origin is not None
            return origin.path

        default, cache, named, chosen = (
            nowhere / ".cache" / "alfworld",
            data_paths.cache_root(),
            tmp_path / "named",
            tmp_path / "chosen",
        )
        assert official.find() is None
        write_folder(default, some_games)
        assert found() == default / "json_2.1.1"
        write_archive(cache / "alfworld", some_games)
        assert found() == cache / "alfworld" / official.ARCHIVE
        # What importing alfworld does by itself is no choice of the user's.
        monkeypatch.setenv("ALFWORLD_DATA", str(default))
        assert found() == cache / "alfworld" / official.ARCHIVE
        write_folder(named, some_games)
        monkeypatch.setenv("ALFWORLD_DATA", str(named))
        assert found() == named / "json_2.1.1"
        write_folder(chosen, some_games)
        monkeypatch.setenv("PAW_DATA", str(chosen))
        assert found() == chosen / "json_2.1.1"

    def test_a_paw_data_that_is_no_folder_is_refused(
        self, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PAW_DATA", "/no/such/folder")
        with pytest.raises(DataError, match=r"PAW_DATA=/no/such/folder: no such folder"):
            games.tasks("train")

    def test_no_official_games_though_asked_for(self, nowhere: Path) -> None:
        with pytest.raises(
            DataError,
            match=r"no official ALFWorld games found in .*paw data alfworld fetch.*env\.games=generated",
        ):
            games.tasks("train", "official")

    @pytest.mark.parametrize(
        ("split", "task_types", "text"),
        [("test", TASK_TYPES, "no split 'test'"), ("train", ["fly"], "no task type 'fly'")],
    )
    def test_unknown_names_are_refused(self, split: str, task_types: list[str], text: str) -> None:
        with pytest.raises(DataError, match=text):
            games.tasks(split, "official", task_types)


class TestAMixOfReleases:
    """ALFWorld 0.4 renamed "put X in/on Y" to "move X to Y"."""

    @pytest.mark.parametrize("form", FORMS)
    def test_old_games_with_the_new_package(
        self, form: str, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        FORMS[form](nowhere, {task_id: old_release(game) for task_id, game in some_games.items()})
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        with pytest.raises(
            DataError,
            match=r"another ALFWorld release .*'put \.\.\.'.*'move \.\.\.'.*paw data alfworld fetch",
        ):
            games.tasks("train")

    def test_new_games_with_an_old_package(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(nowhere, some_games)
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        listed = games.tasks("train")
        monkeypatch.setattr(official, "installed_verb", lambda: "put")
        # Also when they were packed while the right package was installed.
        with pytest.raises(
            DataError, match=r"say 'move \.\.\.' where the installed alfworld package says 'put \.\.\.'"
        ):
            games.tasks("train")
        with pytest.raises(DataError, match=r"say 'move \.\.\.'"):
            games.load_game(listed[0])
        with pytest.raises(DataError, match=r"upgrade: `pip install"):
            official.check_release(next(iter(some_games.values())), "a game")

    def test_a_walkthrough_of_one_release_with_a_grammar_of_the_other(self, some_games: Games) -> None:
        game = next(
            game for game in some_games.values() if any(c.startswith("move") for c in game["walkthrough"])
        )
        official.check_release(game, "a game")
        with pytest.raises(DataError, match="files of two releases are mixed"):
            official.check_release({**game, "walkthrough": old_release(game)["walkthrough"]}, "a game")


class TestTornFiles:
    @pytest.mark.parametrize("form", ["release", "archive"])
    def test_a_half_archive(
        self, form: str, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        FORMS[form](nowhere, some_games)
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        origin = official.find()
        assert origin is not None
        data = origin.path.read_bytes()
        origin.path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=rf"{origin.path.name}.*torn.*paw data alfworld fetch"):
            games.tasks("train")
        assert not list(data_paths.cache_root().glob("**/*.zip")), (
            "a torn source leaves no packed file behind"
        )

    def test_an_archive_without_its_logic(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_archive(nowhere, some_games)
        (nowhere / "logic.json").unlink()
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        with pytest.raises(DataError, match=r"logic\.json: missing"):
            games.tasks("train")

    def test_a_half_game_file_is_named(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(nowhere, some_games)
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        path = nowhere / "json_2.1.1" / list(some_games)[2] / "game.tw-pddl"
        path.write_text(path.read_text()[:5000])
        with pytest.raises(DataError, match=f"{list(some_games)[2]}/game.tw-pddl: torn"):
            games.tasks("train")

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            ({"grammar": ...}, "a game that lacks grammar"),
            ({"pddl_problem": ...}, "a game that lacks pddl_problem"),
            ({"grammar": None}, "not a game .grammar is null, expected text"),
            ({"pddl_domain": ["a"]}, "not a game .pddl_domain is "),
            ({"walkthrough": [None]}, r"not a game .walkthrough is \[null\]"),
            ({"walkthrough": "look"}, "not a game .walkthrough is "),
            ({"pddl_problem": "(define \ud83d"}, r"not a game .pddl_problem holds half a character, \\ud83d"),
        ],
    )
    @pytest.mark.parametrize("form", ["folder", "release"])
    def test_a_game_that_is_none_is_named(
        self, form: str, damage: Games, says: str, nowhere: Path, some_games: Games
    ) -> None:
        damaged = list(some_games)[2]
        changed = {key: value for key, value in (some_games[damaged] | damage).items() if value is not ...}
        FORMS[form](nowhere, some_games | {damaged: changed})
        origin = (
            official.Origin("folder", nowhere / official.FOLDER)
            if form == "folder"
            else official.Origin("release", nowhere / official.RELEASE)
        )
        with pytest.raises(
            DataError, match=rf"{damaged}/game.tw-pddl: {says}.*paw data alfworld fetch"
        ) as caught:
            list(origin.games())
        assert "\n" not in str(caught.value) and str(caught.value).encode()

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            ({"goal": ...}, "a game that lacks goal"),
            ({"split": ..., "task": ...}, "a game that lacks split, task"),
            ({"goal": None}, "not a game .goal is null"),
            ({"problem": None}, "not a game .pddl_problem is null"),
            ({"goal": "Your task is to: \udc00"}, "not a game .grammar holds half a character"),
            ({"trial": "a/b"}, "a game at .*expected <split>/<task>/<trial>"),
        ],
    )
    def test_a_line_of_an_archive_that_is_no_game_is_named(
        self, damage: Games, says: str, nowhere: Path, some_games: Games
    ) -> None:
        write_archive(nowhere, some_games)
        path = nowhere / official.ARCHIVE
        lines = lzma.decompress(path.read_bytes()).decode().splitlines()
        lines[2] = json.dumps(
            {key: value for key, value in (json.loads(lines[2]) | damage).items() if value is not ...}
        )
        path.write_bytes(lzma.compress("\n".join([*lines, "\n"]).encode()))
        with pytest.raises(DataError, match=rf"{official.ARCHIVE}:3: {says}"):
            list(official.Origin("archive", path).games())

    def test_a_torn_packed_file_is_made_anew(
        self, nowhere: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(nowhere, some_games)
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        packed = Path(games.tasks("train")[0].source)
        whole = packed.read_bytes()
        packed.write_bytes(whole[:-500])
        games._pack.cache_clear()
        assert [task.task_id for task in games.tasks("train")] == sorted(some_games)
        assert packed.read_bytes() == whole

    def test_a_flipped_bit_is_found_when_the_game_is_read(self, tmp_path: Path, some_games: Games) -> None:
        listed = rewrite(tmp_path / "games.zip", some_games)
        with zipfile.ZipFile(tmp_path / "games.zip") as archive:
            member = archive.getinfo(f"games/{listed[0].task_id}.json")
        data = bytearray((tmp_path / "games.zip").read_bytes())
        data[member.header_offset + member.compress_size // 2 + 100] ^= 1
        (tmp_path / "games.zip").write_bytes(data)
        with pytest.raises(DataError, match=r"games\.zip: torn .*delete it"):
            games.load_game(listed[0])
        assert games.load_game(listed[1]) == some_games[listed[1].task_id]

    def test_a_packed_file_that_is_gone(self, tmp_path: Path, some_games: Games) -> None:
        listed = rewrite(tmp_path / "games.zip", some_games)
        shutil.rmtree(tmp_path)
        with pytest.raises(DataError, match="no such set of games"):
            games.load_game(listed[0])

    def test_an_unwritable_cache(
        self, nowhere: Path, tmp_path: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(nowhere, some_games)
        (tmp_path / "file").touch()
        monkeypatch.setenv("ALFWORLD_DATA", str(nowhere))
        monkeypatch.setenv("PAW_CACHE", str(tmp_path / "file"))
        with pytest.raises(DataError, match="set PAW_CACHE to a writable folder"):
            games.tasks("train")


class TestFetch:
    def test_an_unreachable_release_says_what_else_can_be_done(
        self, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(games, "RELEASE_URL", "http://127.0.0.1:9/json_2.1.2_tw-pddl.zip")
        with pytest.raises(
            DataError, match=r"cannot be reached \(.*refused.*PAW_DATA or ALFWORLD_DATA.*env\.games=generated"
        ):
            games.fetch()
        assert not [p for p in data_paths.cache_root().glob("**/*") if p.is_file()]

    def test_a_reachable_one_is_kept_and_played(
        self, nowhere: Path, tmp_path: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_release(tmp_path / "web", some_games)
        monkeypatch.setattr(games, "RELEASE_URL", (tmp_path / "web" / official.RELEASE).as_uri())
        assert games.fetch() == data_paths.cache_root() / "alfworld" / official.RELEASE
        assert [task.task_id for task in games.tasks("train")] == sorted(some_games)
        assert games.source_name() == "official games (release, incomplete)"

    def test_a_torn_download_is_not_kept(
        self, nowhere: Path, tmp_path: Path, some_games: Games, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_release(tmp_path, some_games)
        (tmp_path / "half.zip").write_bytes((tmp_path / official.RELEASE).read_bytes()[:20000])
        monkeypatch.setattr(games, "RELEASE_URL", (tmp_path / "half.zip").as_uri())
        with pytest.raises(DataError, match="torn"):
            games.fetch()
        assert not (data_paths.cache_root() / "alfworld" / official.RELEASE).exists()
