"""Exact match and F1 are SQuAD's."""

from __future__ import annotations

import pytest

from paw_hpc.envs.search.metrics import contains_answer, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Who!", "who"),
        ("a man, a plan", "man plan"),
        ("U.S.", "us"),
        ("an apple-pie", "applepie"),
        ("Theatre", "theatre"),
        ("  New\nYork ", "new york"),
        ("the", ""),
        ("Beyoncé", "beyoncé"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("answer", "golden", "right"),
    [
        ("bergen", ["Bergen"], True),
        ("The Bergen.", ["Oslo", "Bergen"], True),
        ("Bergen, Norway", ["Bergen"], False),
        ("Bergenn", ["Bergen"], False),
        ("", ["Bergen"], False),
        ("the", ["a"], False),
        ("!", [")"], False),
        ("Bergen", [], False),
    ],
)
def test_exact_match(answer: str, golden: list[str], right: bool) -> None:
    assert exact_match(answer, golden) is right


@pytest.mark.parametrize(
    ("answer", "golden", "value"),
    [
        ("Henrik Ibsen", ["Henrik Ibsen"], 1.0),
        ("Ibsen", ["Henrik Ibsen"], 2 / 3),
        ("Henrik Johan Ibsen", ["Ibsen", "Henrik Ibsen"], 0.8),
        ("the the", ["the"], 0.0),
        ("new new york", ["new york"], 0.8),
        ("yes it is", ["yes"], 0.0),
        ("yes", ["yes"], 1.0),
        ("Oslo", ["Bergen"], 0.0),
        ("Oslo", [], 0.0),
    ],
)
def test_f1(answer: str, golden: list[str], value: float) -> None:
    assert f1(answer, golden) == pytest.approx(value)


def test_an_answer_is_found_in_a_text_as_whole_words_only() -> None:
    assert contains_answer("He was born in Bergen, Norway.", ["bergen"])
    assert not contains_answer("He was a Bergenser.", ["Bergen"])
    assert not contains_answer("anything", ["the"])
