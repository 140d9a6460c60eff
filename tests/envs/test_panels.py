"""Panels: whole, fixed, the same on every machine."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from paw_hpc.envs import panels
from paw_hpc.envs.alfworld import games, generate, official
from paw_hpc.envs.alfworld.panels import panel as alfworld_panel
from paw_hpc.envs.base import Task
from paw_hpc.envs.sampling import proportional_shares
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system.errors import DataError

EXPECTED_PART = [
    "valid_unseen/look_at_obj_in_light-Pencil-None-DeskLamp-308/trial_T20190908_220656_510400",
    "valid_unseen/pick_and_place_simple-PepperShaker-None-Drawer-10/trial_T20190906_184021_215264",
    "valid_unseen/pick_clean_then_place_in_recep-Egg-None-Microwave-10/trial_T20190909_120632_691361",
    "valid_unseen/pick_cool_then_place_in_recep-Bread-None-CounterTop-10/trial_T20190908_091835_825830",
    "valid_unseen/pick_heat_then_place_in_recep-Egg-None-GarbageCan-10/trial_T20190908_113610_425142",
    "valid_unseen/pick_two_obj_and_place-CD-None-Safe-308/trial_T20190907_051013_060265",
]
EXPECTED_PART_CHECKSUM = "9a022f634da55bd9df6d99138baff41d56086c73123f0dd71a67fb4faac1a6b1"
SOME = [
    Task(f"valid_seen/{t}-Mug-None-Desk-{i}/g{i}", t, "/here")
    for t, n in zip(TASK_TYPES, (35, 13, 27, 16, 25, 24), strict=True)
    for i in range(n)
]


@pytest.mark.usefixtures("official_games")
class TestOfficialPanels:
    @pytest.mark.parametrize(
        ("name", "size"), [("valid_seen", 140), ("valid_unseen", 134), ("valid_train", 200)]
    )
    def test_whole_splits(self, name: str, size: int) -> None:
        panel = alfworld_panel(name)
        assert panel.name == name
        assert len(panel.tasks) == len({task.task_id for task in panel.tasks}) == size
        assert panel.checksum == games.OFFICIAL_CHECKSUMS[name]

    def test_a_part_is_the_same_for_ever(self) -> None:
        """Literal ids: any machine, Python and release of this project must choose these."""
        panel = alfworld_panel("valid_unseen:6@7")
        assert [task.task_id for task in panel.tasks] == EXPECTED_PART
        assert panel.checksum == EXPECTED_PART_CHECKSUM

    def test_a_restricted_panel_says_so(self) -> None:
        panel = alfworld_panel("valid_seen:20@0", ("look_at_obj_in_light", "pick_and_place_simple"))
        assert panel.name == "valid_seen:20@0 [pick_and_place_simple, look_at_obj_in_light]"
        assert Counter(task.task_type for task in panel.tasks) == {
            "pick_and_place_simple": 15,
            "look_at_obj_in_light": 5,
        }
        assert panel.checksum != alfworld_panel("valid_seen:20@0").checksum

    @pytest.mark.parametrize("damage", ["a game missing", "a game changed"])
    def test_a_wrong_or_partial_download_is_refused(
        self, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = {task.task_id: games.load_game(task) for task in games.tasks("valid_unseen")}
        if damage == "a game missing":
            content.popitem()
        else:
            next(iter(content.values()))["pddl_problem"] += " "
        monkeypatch.setattr(official.Origin, "games", lambda self: iter(content.items()))
        monkeypatch.setattr(official.Origin, "fingerprint", lambda self: "damaged")
        monkeypatch.setenv("PAW_CACHE", str(tmp_path))
        with pytest.raises(
            DataError,
            match=r"panel valid_unseen: the 13[34] games at hand are not the 134 .*paw data alfworld verify",
        ):
            alfworld_panel("valid_unseen:10@0")


class TestSubPanels:
    def test_follow_the_task_types(self) -> None:
        for count in (1, 6, 40, 139):
            drawn = panels.sub_panel(SOME, count, seed=3)
            assert len(drawn) == len(set(drawn)) == count
            sizes = Counter(task.task_type for task in drawn)
            for task_type, whole in Counter(task.task_type for task in SOME).items():
                assert abs(sizes[task_type] - count * whole / len(SOME)) < 1

    def test_do_not_depend_on_the_order_of_files_or_where_they_lie(self) -> None:
        moved = [
            Task(task.task_id, task.task_type, "/elsewhere")
            for task in random.Random(1).sample(SOME, len(SOME))
        ]
        ids = [task.task_id for task in panels.sub_panel(SOME, 40, seed=0)]
        assert ids == [task.task_id for task in panels.sub_panel(moved, 40, seed=0)] == sorted(ids)

    def test_depend_on_the_seed(self) -> None:
        drawn = {frozenset(task.task_id for task in panels.sub_panel(SOME, 40, seed)) for seed in range(5)}
        assert len(drawn) == 5

    def test_the_whole_is_a_part(self) -> None:
        assert panels.sub_panel(SOME, len(SOME), seed=9) == sorted(SOME, key=lambda task: task.task_id)

    def test_more_than_there_is(self) -> None:
        with pytest.raises(DataError, match="141 games asked for, 140 there"):
            panels.sub_panel(SOME, 141, seed=0)

    def test_every_game_has_its_chance(self) -> None:
        drawn = Counter(task.task_id for seed in range(60) for task in panels.sub_panel(SOME, 70, seed))
        assert len(drawn) == len(SOME)
        assert max(drawn.values()) < 50

    def test_shares_add_up(self) -> None:
        assert proportional_shares({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
        assert proportional_shares({"a": 91, "b": 9}, 5) == {"a": 5, "b": 0}
        assert proportional_shares({"a": 89, "b": 11}, 5) == {"a": 4, "b": 1}
        assert sum(proportional_shares({"a": 7, "b": 11, "c": 13}, 17).values()) == 17


@pytest.mark.parametrize(
    "name",
    ["train", "valid_seen:0@1", "valid_seen:10", "valid_seen@3", "", "valid_seen:ten@0", "valid_seen:5@-1"],
)
def test_an_unknown_panel_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=r"no such panel; one of valid_seen, valid_unseen, valid_train, or PANEL:N@SEED"
    ):
        alfworld_panel(name)


def test_generated_games_make_panels_where_there_are_no_official_ones(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generate.DEFAULT_COUNTS, "valid_unseen", dict.fromkeys(TASK_TYPES, 2))
    monkeypatch.setattr(generate, "prove", lambda game: None)
    monkeypatch.setattr(generate, "_default_workers", lambda: 0)
    panel = alfworld_panel("valid_unseen:4@0", ("pick_and_place_simple", "look_at_obj_in_light"))
    assert panel.name == "generated valid_unseen:4@0 [pick_and_place_simple, look_at_obj_in_light]"
    assert Counter(task.task_type for task in panel.tasks) == {
        "pick_and_place_simple": 2,
        "look_at_obj_in_light": 2,
    }
    assert all(task.task_id.startswith("generated-valid_unseen/") for task in panel.tasks)
