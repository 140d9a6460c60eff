"""The player that copies: the right kind of span, from the right passage, never out of nothing."""

from __future__ import annotations

import pytest

from paw_hpc.envs.search.baseline import copy_answer
from paw_hpc.envs.search.corpus import Passage

PASSAGES = [
    Passage(
        "1",
        '"Edvard Grieg"\nEdvard Grieg was a composer who was born in Bergen in 1843. He wrote 66 short '
        "pieces called Lyric Pieces.",
    ),
    Passage("2", '"Peer Gynt"\nPeer Gynt is a play of 1867 by Henrik Ibsen.'),
]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("when was Edvard Grieg born?", "1843"),
        ("where was Edvard Grieg born", "Bergen"),
        ("how many short pieces did Edvard Grieg write?", "66"),
        ("who wrote the play Peer Gynt, Henrik Ibsen or Selma Bauer?", "Henrik Ibsen"),
        ("was Edvard Grieg born in Bergen?", "yes"),
    ],
)
def test_it_copies_what_is_asked_for(question: str, answer: str) -> None:
    assert copy_answer(question, PASSAGES) == answer


def test_what_the_question_says_is_no_answer_and_nothing_comes_of_nothing() -> None:
    assert "Edvard Grieg" not in copy_answer("who was Edvard Grieg?", PASSAGES)
    assert copy_answer("when was Edvard Grieg born?", []) == ""
    assert copy_answer("when did it happen?", [Passage("1", '"A"\nnothing here')]) == ""
