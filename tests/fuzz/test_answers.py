"""Responses of a model, under both rules of validity, and the actions that come of them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import strategies as st

from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.envs.search import prompt as search_prompt
from paw_hpc.envs.search import protocol
from paw_hpc.envs.search.metrics import exact_match, f1
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.webshop import game
from paw_hpc.envs.webshop.benchmark import ShopSession
from paw_hpc.envs.webshop.prompt import WebshopView
from tests.fuzz.harness import Target, judged
from tests.fuzz.inputs import texts

ADMISSIBLE = (
    "go to desk 1",
    "look",
    "click[back to search]",
    "click[ red ]",
    "click[next >]",
    "search[<your query>]",
)
STATE = EnvironmentState(
    "-= Welcome =-\n\nYou are in a room.\n\nYour task is to: put a mug on a desk.", ADMISSIBLE
)
SHORT = 1.0
"""Seconds that an answer of 60,000 characters may take; what grows with its square takes many times as
long."""


def _view(benchmark: str, style: str, validity: str) -> Any:
    if benchmark == "alfworld":
        return AlfworldView(Task("t", "pick", "1"), style=style, history=2, seed=0, validity=validity)
    if benchmark == "webshop":
        return WebshopView(style=style, history=2, validity=validity)
    return SearchView("who?", style=style, history=2, max_steps=4, validity=validity)


def _response(found: tuple[str, str, str, bool, str]) -> None:
    benchmark, style, validity, opened, response = found
    view = _view(benchmark, style, validity)
    view.start(STATE)
    parsed = judged(view.parse, response, opened, seconds=SHORT)
    action, valid = parsed
    assert isinstance(action, str) and isinstance(valid, bool)
    view.observe(action, STATE)
    judged(view.messages, seconds=SHORT)
    if benchmark == "search":
        asked = judged(protocol.exact_action, action, seconds=SHORT)
        if asked is not None:
            judged(exact_match, asked.text, ["Oslo", "the"], seconds=SHORT)
            judged(f1, asked.text, ["Oslo", "the"], seconds=SHORT)


RESPONSES = st.tuples(
    st.sampled_from(("alfworld", "webshop", "search")), st.sampled_from(("paper", "paper", "compact")), st.sampled_from(("admissible", "format")),
    st.booleans(), texts(),
)  # fmt: skip


class _Shelf:
    """A catalogue of one product."""

    def __init__(self) -> None:
        from paw_hpc.envs.webshop.source import Product

        self.products = _Products(
            [
                Product(
                    "B000000001",
                    "Red Lamp",
                    "A lamp.",
                    ("Bright",),
                    (18.5,),
                    "$18.5",
                    "garden",
                    "lamps",
                    "Home",
                    {"size": ("small", " red ")},
                    ("easy",),
                )
            ]
        )
        self.cost = [18.5]

    def search(self, words: str) -> list[int]:
        return [0] if "lamp" in words else []

    def with_value(self, field: str, value: str) -> list[int]:
        return [0] if value == "garden" else []


class _Products(list[Any]):
    def find(self, asin: str) -> int:
        return {"B000000001": 0}[asin]


def _shopping(actions: list[str]) -> None:
    from paw_hpc.envs.webshop.goals import Goal

    goal = Goal(
        "B000000001",
        "garden",
        "lamps",
        "Red Lamp",
        "Home",
        "Find me a lamp",
        ("easy",),
        30.0,
        {"size": "small"},
        1.0,
    )
    session = ShopSession(game.Game(_Shelf(), goal, lambda title: tuple(title.lower().split())), 15, 10.0)  # type: ignore[arg-type]
    state = asyncio.run(session.reset())
    for action in actions:
        if action.startswith("@"):  # whatever can be done here
            offered = [one for one in state.admissible if one.startswith("click")]
            action = offered[int(action[1:]) % len(offered)] if offered else "search[lamp]"
        state = judged(session.act, action, seconds=SHORT)
        assert isinstance(state.observation, str) and 0.0 <= state.score <= 1.0


ANY = st.lists(st.integers(0, 12).map(lambda n: f"@{n}") | texts(), min_size=1, max_size=4)
SHOPPING = st.builds(
    lambda before, after: [*before, *after],
    st.sampled_from(([], ["@0"], ["@0", "@2"], ["@0", "@2", "@6"])),
    ANY,
)
"""From the start, from results, from the product's page, and with an option chosen."""


def _protocol(text: str) -> None:
    for function in (protocol.read_action, protocol.exact_action, protocol.thinks_first, protocol.harmless):
        judged(function, text, seconds=SHORT)
    shown = judged(protocol.harmless, text, seconds=SHORT).lower()
    assert not any(
        f"<{slash}{tag}>" in shown
        for tag in ("search", "answer", "information", "think")
        for slash in ("", "/")
    ), "a tag is left"


def _break_views(patch: pytest.MonkeyPatch) -> None:
    """The first tags are taken to be in order."""
    patch.setattr(
        search_prompt, "search_or_answer", lambda response: (response[response.index("<search>") :], True)
    )


TARGETS = [
    Target("response", RESPONSES, _response, _break_views),
    Target("shopping", SHOPPING, _shopping, lambda patch: patch.setattr(game.Game, "_buy", lambda self: {}[self._state.asin])),
    Target("search protocol", texts(), _protocol, lambda patch: patch.setattr(protocol, "_ANY_TAG", re.compile(r"<(/?think)>"))),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_answer_is_read(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)
