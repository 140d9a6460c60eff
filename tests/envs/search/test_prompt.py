"""The prompt shows question, all searches and their results; its own example and history are never read as
the agent's answer."""

from __future__ import annotations

import pytest

from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.search.protocol import INVALID, passages_text

FOUND = passages_text(
    [Passage("1", '"Oslo"\nOslo is the capital of Norway.'), Passage("2", '"Bergen"\nBergen is a city.')]
)


def view(style: str = "paper", history: int = 4) -> SearchView:
    made = SearchView("what is the capital of Norway?", style=style, history=history, max_steps=4)
    made.start(EnvironmentState("what is the capital of Norway?", ()))
    return made


def text(made: SearchView) -> str:
    (message,) = made.messages()
    return message["content"]


class TestPaperStyle:
    def test_asks_for_a_thought_and_then_one_of_two_actions(self) -> None:
        shown = text(view())
        assert "Question: what is the capital of Norway?" in shown and "step 1 of at most 4" in shown
        assert (
            all(tag in shown for tag in ("<think>", "<search>", "<answer>")) and "<information>" not in shown
        )

    def test_shows_every_search_with_its_results_in_order(self) -> None:
        made = view()
        for query in ("first", "second", "third"):
            made.observe(f"<search>{query}</search>", EnvironmentState(f"about {query}", ()))
        shown = text(made)
        places = [
            shown.index(f"<search>{q}</search>\n<information>about {q}</information>")
            for q in ("first", "second", "third")
        ]
        assert places == sorted(places) and "step 4 of at most 4" in shown and "3 step(s)" in shown

    def test_drops_the_oldest_search_when_it_does_not_fit(self) -> None:
        made = view()
        for query in ("first", "second"):
            made.observe(f"<search>{query}</search>", EnvironmentState(f"about {query}", ()))
        assert made.shorten() and "first" not in text(made) and "about second" in text(made)
        assert made.shorten() and "second" not in text(made)
        assert not made.shorten() and "Question: what is the capital" in text(made)
        made.observe("<search>third</search>", EnvironmentState("about third", ()))
        assert "about first" in text(made), "what was dropped from one prompt is tried again in the next"

    @pytest.mark.parametrize(
        ("response", "action", "valid"),
        [
            ("<think>hm</think><search>Oslo</search>", "<search>Oslo</search>", True),
            ("<search>Oslo</search>", "<search>Oslo</search>", False),
            ("<think>hm</think>Oslo", "", False),
            ("<think>hm</think><search>a</search><answer>b</answer>", "", False),
        ],
    )
    def test_an_action_is_valid_after_a_thought_and_carried_out_without(
        self, response: str, action: str, valid: bool
    ) -> None:
        assert view().parse(response) == (action, valid)


class TestCompactStyle:
    def test_shows_the_same_in_few_words(self) -> None:
        made = view("compact")
        made.observe("<search>norway capital</search>", EnvironmentState(FOUND, ()))
        made.observe("", EnvironmentState(INVALID, ()))
        assert text(made) == (
            "question: what is the capital of Norway?\nsearch: norway capital\nfound: Oslo is the capital "
            "of Norway.\n"
            "Bergen is a city.\ninvalid\nstep 3"
        )

    @pytest.mark.parametrize(
        ("response", "action", "valid"),
        [
            ("search capital of norway", "<search>capital of norway</search>", True),
            (" answer  oslo \n", "<answer>oslo</answer>", True),
            ("answer", "", False),
            ("oslo", "", False),
            ("searching for oslo", "", False),
            ("", "", False),
        ],
    )
    def test_reads_a_bare_line(self, response: str, action: str, valid: bool) -> None:
        assert view("compact").parse(response) == (action, valid)


def test_states_are_the_same_where_the_agent_has_just_read_the_same() -> None:
    a, b, c = view(), view(), view()
    assert a.anchor() == b.anchor()
    a.observe("<search>x</search>", EnvironmentState(FOUND, ()))
    b.observe("<search>y</search>", EnvironmentState(FOUND, ()))
    c.observe("<search>y</search>", EnvironmentState("something else", ()))
    assert a.anchor() == b.anchor() != c.anchor()
