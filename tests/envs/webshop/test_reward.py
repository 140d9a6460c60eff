"""The score of a purchase, case by case, with literal numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from paw_hpc.envs.webshop import reward
from paw_hpc.envs.webshop.goals import Goal
from paw_hpc.envs.webshop.reward import COLORS, attributes_met, kind_factor, make_tagger, options_met, score
from paw_hpc.envs.webshop.source import Product
from paw_hpc.system.errors import DataError, RecipeError

GOAL = Goal(
    "A",
    "c",
    "desk lamps",
    "steel desk lamp",
    "Home › Light › Lamps",
    "",
    ("easy clean", "bright light"),
    20.0,
    {"color": "red", "size": "x-large"},
    1.0,
)
SHIRT = Product("B", "Cotton Shirt", "", (), (5.0,), "$5.0", "c", "shirts", "Clothing › Men", {}, ())


def nouns(title: str) -> tuple[str, ...]:
    """A tagger that calls every word a noun."""
    return tuple(title.lower().split())


def product(**changes: Any) -> Product:
    plain = Product(
        "A",
        "Steel Desk Lamp",
        "",
        ("",),
        (15.0,),
        "$15.0",
        "c",
        "desk lamps",
        "Home › Light › Lamps",
        {},
        ("easy clean", "bright light"),
    )
    return dataclasses.replace(plain, **changes)


class TestScore:
    def test_everything(self) -> None:
        assert score(product(), 20.0, ("red", "x-large"), GOAL, nouns) == 1.0

    @pytest.mark.parametrize(
        ("cost", "chosen", "expected"),
        [
            (20.01, ("red", "x-large"), 0.8),
            (20.0, ("red",), 0.8),
            (20.0, (), 0.6),
            (99.0, (), 0.4),
            (20.0, ("blue", "small"), 0.6),
        ],
    )
    def test_parts_of_five(self, cost: float, chosen: tuple[str, ...], expected: float) -> None:
        assert score(product(), cost, chosen, GOAL, nouns) == expected

    def test_without_attributes_met(self) -> None:
        assert score(product(attributes=()), 20.0, ("red", "x-large"), GOAL, nouns) == 0.6

    def test_is_not_rounded(self) -> None:
        goal = dataclasses.replace(GOAL, attributes=("easy clean",), options={"color": "red"})
        assert score(product(), 99.0, ("red",), goal, nouns) == 2 / 3

    def test_of_another_kind_of_product(self) -> None:
        assert score(SHIRT, 5.0, ("red", "x-large"), GOAL, nouns) == 0.0


class TestKindFactor:
    def test_titles_alone(self) -> None:
        """1/3 of the goal's nouns is more than 0.2; 1/5 is not, without category or query it is half; 1/11 is
        a tenth; none is nothing."""
        other = {"query": "x", "product_category": "y"}
        assert kind_factor(product(title="lamp", **other), GOAL, nouns) == 1.0
        for words, expected in ((5, 0.5), (10, 0.5), (11, 0.1)):
            goal = dataclasses.replace(GOAL, title=" ".join(["lamp", *(f"w{n}" for n in range(words - 1))]))
            assert kind_factor(product(title="lamp", **other), goal, nouns) == expected
        assert kind_factor(product(title="shirt", **other), GOAL, nouns) == 0.0

    def test_query_or_two_departments_in_common_make_it_whole(self) -> None:
        goal = dataclasses.replace(GOAL, title="lamp a b c d")
        assert (
            kind_factor(product(title="lamp", query="desk lamps", product_category="y"), goal, nouns) == 1.0
        )
        assert (
            kind_factor(product(title="lamp", query="x", product_category="Lamps ›Home"), goal, nouns) == 1.0
        )
        assert (
            kind_factor(product(title="lamp", query="x", product_category="Home › Home › Bath"), goal, nouns)
            == 0.5
        )

    def test_but_not_without_a_noun_in_common(self) -> None:
        assert kind_factor(product(title="shirt"), GOAL, nouns) == 0.0

    def test_repeated_nouns_of_the_goal_count_in_the_denominator(self) -> None:
        goal = dataclasses.replace(GOAL, title="lamp " * 5)
        # 1 / 5
        assert kind_factor(product(title="lamp lamp", query="x", product_category="y"), goal, nouns) == 0.5

    def test_a_goal_without_nouns(self) -> None:
        assert (
            kind_factor(product(query="x", product_category="y"), dataclasses.replace(GOAL, title=""), nouns)
            == 0.5
        )
        assert kind_factor(product(), dataclasses.replace(GOAL, title=""), nouns) == 1.0


class TestAttributes:
    @pytest.mark.parametrize(
        ("changes", "met"),
        [
            ({}, 2),
            ({"attributes": ("DUMMY_ATTR",)}, 0),
            ({"attributes": ("clean easy",)}, 1),  # in any order
            ({"attributes": ("easy clean bright light up",)}, 2),  # a superset
            ({"attributes": ("easy to wipe",)}, 0),
            ({"attributes": (), "title": "An EASY CLEAN lamp"}, 1),
            ({"attributes": (), "bullets": ("easy", "clean")}, 1),  # joined by a space
            ({"attributes": (), "description": "Bright lights"}, 1),  # a part of a longer word is enough
        ],
    )
    def test_by_name_or_in_a_text(self, changes: dict[str, Any], met: int) -> None:
        assert attributes_met(product(**changes), GOAL) == met


class TestOptions:
    @pytest.mark.parametrize(
        ("bought", "wanted", "met"),
        [
            (("large",), {"size": "x-large"}, 1),  # the words of the goal hold those bought ...
            (("x-large",), {"size": "large"}, 0),  # ... not the reverse
            (("aqua stripe",), {"color": "bright aqua blue"}, 1),
            (("bright aqua blue",), {"color": "aqua stripe"}, 1),
            (("black2626",), {"color": "black2626"}, 0),  # not even itself
            (("rectangular",), {"item shape": "rectangular"}, 0),  # its first colour word is tan
            (("red",), {"color": "red"}, 1),
            (("dark red",), {"color": "red"}, 0),  # the first colour word of the list is dark
            (("red",), {"color": "dark red"}, 1),
            (("standard",), {"style": "tan"}, 1),
            (("size",), {"size": "9"}, 1),  # the name's words count too
            (("a b",), {"x": "a", "y": "b"}, 0),
            (("3 count",), {"size": "3 count", "pack size": "3 count"}, 2),  # one value may serve several
            ((), {"size": "9"}, 0),
            (("navy",), {"navy": "9"}, 1),
        ],
    )
    def test_synthetic(self, bought: tuple[str, ...], wanted: dict[str, str], met: int) -> None:
        assert options_met(bought, dataclasses.replace(GOAL, options=wanted)) == met

    @pytest.mark.parametrize(
        ("bought", "wanted", "met"),
        [
            (("black2626",), ("black2626",), 1),
            (("standard",), ("tan",), 1),
            (("large",), ("x-large",), 1),
            (("120ml",), ("120 ml",), 1),
            (("120ml",), ("60 ml",), 0),
            (("é5",), ("5",), 1),
        ],
    )
    def test_human(self, bought: tuple[str, ...], wanted: tuple[str, ...], met: int) -> None:
        assert options_met(bought, dataclasses.replace(GOAL, options=wanted)) == met

    def test_there_are_102_colours_in_order(self) -> None:
        assert len(COLORS) == len(set(COLORS)) == 102 and list(COLORS) == sorted(COLORS)


class TestTagger:
    def test_textblob_finds_nouns(self) -> None:
        name, tag = make_tagger("textblob")
        assert name == "TextBlob"
        assert tag("Running quickly, the Red Lamp is on a table") == ("red", "lamp", "table")

    def test_says_which_one_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            reward, "_installed", lambda package: package in ("spacy", "en_core_web_lg", "textblob")
        )
        monkeypatch.setattr(reward, "_spacy_tagger", lambda model: lambda title: (model,))
        make = make_tagger.__wrapped__
        assert make("auto")[0] == "spaCy en_core_web_lg" and make("auto")[1]("x") == ("en_core_web_lg",)
        assert make("textblob")[0] == "TextBlob"

    def test_missing_ones_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reward, "_installed", lambda package: package == "spacy")
        with pytest.raises(RecipeError, match=r"env.webshop.tagger: spacy needs .* en_core_web_sm"):
            make_tagger.__wrapped__("spacy")
        with pytest.raises(DataError, match=r"paw-hpc\[webshop\]"):
            make_tagger.__wrapped__("auto")
