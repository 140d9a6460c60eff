"""Goals: one global order, caps that no worker changes, train and test apart."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from paw_hpc.envs.webshop import benchmark
from paw_hpc.envs.webshop.benchmark import Webshop, split_goals
from paw_hpc.envs.webshop.catalogue import Catalogue, open_catalogue
from paw_hpc.envs.webshop.data import generated_files, instruction_digest
from paw_hpc.envs.webshop.goals import NO_CAP, draw_cap, price_generator, purchase_price
from paw_hpc.recipe import EnvSection, WebshopSection
from tests.envs.webshop.conftest import LAMP_ATTRIBUTES, LAMPS, WriteFiles, entry, options


class TestMaking:
    def test_one_goal_per_combination_of_option_values(self, lamps: Catalogue) -> None:
        goals = [goal for goal in lamps.goals("synthetic") if goal.asin == "B000000001"]
        values = {tuple(goal.options.values()) for goal in goals if isinstance(goal.options, dict)}
        assert values == set(itertools.product(("red | blue", "<sand> 'x'"), ("small", "large")))
        assert all(list(goal.options) == ["color", "size"] for goal in goals)
        (text,) = {
            goal.instruction for goal in goals if goal.options == {"color": "red | blue", "size": "large"}
        }
        assert text.startswith(
            "Find me easy clean lamp with color: red | blue, and size: large, and price lower than "
        )
        assert {goal.price_cap for goal in goals} == {float(text.split()[-2])} and goals[0].price_cap in (
            30.0,
            40.0,
            50.0,
        )

    def test_weights_count_who_carries_an_attribute(self, lamps: Catalogue) -> None:
        goals = lamps.goals("synthetic")
        assert len(goals) == 5
        assert {goal.asin: goal.weight for goal in goals} == {
            "B000000001": 1 / 5,
            "B000000100": (1 / 5 + 1) / 2,
        }

    def test_no_cap_where_nothing_is_above_the_price(self, lamps: Catalogue) -> None:
        (candle,) = [goal for goal in lamps.goals("synthetic") if goal.asin == "B000000100"]
        assert (candle.price_cap, candle.instruction, candle.options) == (NO_CAP, "Find me soft candle", {})

    def test_caps_are_drawn_from_the_four_steps_above_the_price(self) -> None:
        rng = price_generator()
        drawn = Counter(draw_cap(24.0, rng)[0] for _ in range(600))
        assert set(drawn) == {40.0, 50.0, 60.0}  # the larger of two of 30, 40, 50, 60
        assert draw_cap(20.0, rng)[0] > 20.0
        state = rng.getstate()
        assert draw_cap(985.0, rng) == (NO_CAP, "") and draw_cap(2000.0, rng) == (NO_CAP, "")
        assert rng.getstate() == state

    def test_a_single_price_costs_no_draw(self) -> None:
        rng = price_generator()
        state = rng.getstate()
        assert purchase_price((7.5,), rng) == 7.5 and rng.getstate() == state
        assert 5.0 <= purchase_price((9.0, 5.0), rng) <= 9.0

    def test_human_goals(self, write_files: WriteFiles) -> None:
        said = [
            {
                "instruction": ".i need a lamp.",
                "instruction_attributes": ["easy clean"],
                "instruction_options": ["small"],
            },
            {"instruction": "nothing asked", "instruction_attributes": [], "instruction_options": []},
        ]
        catalogue = open_catalogue(write_files(human={"B000000001": said}))
        (goal,) = catalogue.goals("human")
        assert goal.instruction.startswith("i need a lamp, and price lower than ")
        assert (goal.options, goal.weight, goal.attributes) == (("small",), 1.0, ("easy clean",))


class TestOrder:
    def test_is_the_same_in_every_process(self, made: Catalogue) -> None:
        code = (
            "import random; random.seed(7); from paw_hpc.envs.webshop import data; from "
            "paw_hpc.envs.webshop.catalogue import open_catalogue;"
            "print(data.instruction_digest(open_catalogue(data.generated_files(150, "
            "seed=1)).goals('synthetic')))"
        )
        assert subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip() == instruction_digest(made.goals("synthetic"))

    def test_generated_catalogues_are_reproducible(
        self, made: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PAW_CACHE", str(tmp_path))
        again = open_catalogue(generated_files(150, seed=1))
        assert again.folder != made.folder
        assert instruction_digest(again.goals("synthetic")) == instruction_digest(made.goals("synthetic"))


class TestSplit:
    def test_the_first_500_are_for_testing(self, small: Catalogue) -> None:
        goals = small.goals("synthetic")
        test, train = split_goals(goals, "test"), split_goals(goals, "train")
        assert test.tolist() == list(range(500)) and train.min() == 500
        asked = {goals[int(i)].identity for i in test}
        assert not any(goals[int(i)].identity in asked for i in train)
        assert len(test) + len(train) + sum(
            goals[i].identity in asked for i in range(500, len(goals))
        ) == len(goals)

    def test_twins_of_test_goals_are_left_out_of_training(
        self, write_files: WriteFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A value that stands twice in a file makes two goals that ask for the same."""
        monkeypatch.setattr(benchmark, "TEST_GOALS", 3)
        twice = [
            entry("B000000001", "Lamp", customization_options=options(Size=["a", "a", "b", "b", "c"])),
            *LAMPS[1:],
        ]
        goals = open_catalogue(write_files(twice, LAMP_ATTRIBUTES)).goals("synthetic")
        test, train = split_goals(goals, "test"), split_goals(goals, "train")
        asked = [goals[int(i)].identity for i in test]
        left = [goals[int(i)].identity for i in train]
        assert len(goals) == 6 and not set(asked) & set(left)
        assert len(left) == sum(goals[i].identity not in asked for i in range(3, 6)) < 3

    def test_task_ids_name_goals_and_nothing_of_the_machine(self, made: Catalogue) -> None:
        shop = Webshop(EnvSection(name="webshop", webshop=WebshopSection(catalogue="generated")))
        shop.__dict__["catalogue"] = made
        tasks = shop.tasks("train") if len(made.goals("synthetic")) > 500 else shop.tasks("test")
        assert len({task.task_id for task in tasks}) == len(tasks)
        assert all(
            task.task_id.startswith("generated-synthetic/")
            and task.task_type in ("beauty", "electronics", "fashion", "garden", "grocery")
            for task in tasks
        )
