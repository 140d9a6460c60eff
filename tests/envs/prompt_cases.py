"""Views in many states, for the frozen texts of the default prompts (`frozen_prompts.json`, written by the
code that had the words in it)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import AgentView, EnvironmentState, Task
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.webshop.prompt import WebshopView

ROOM = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
    "you see a desk 1, and a shelf 1.\n\n"
    "Your task is to: put some mug on shelf."
)
START = "WebShop [SEP] Instruction: [SEP] Find me a <b>lamp</b> & more, price < 20 [SEP] Search"
RESULTS = (
    "Back to Search [SEP] Page 1 (Total results: 3) [SEP] Next > [SEP] B000000001 [SEP] blue lamp [SEP] $30.0"
)
ITEM = (
    "Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] it's blue [SEP] red lamp [SEP] Price: "
    "$18.5 [SEP] Buy Now"
)
NASTY = ("{{ 7*7 }}{% for x in y %}", "  two\n lines\t", "", "<b>&amp;'\"</b> \u2028 \\n é 第")
OBSERVED = ("You arrive at desk 1.", *NASTY, "Nothing happens.")
PRESSED = (
    "click[back to search]",
    "click[< prev]",
    "click[description]",
    "click[buy now]",
    "click[red]",
    "click[it's blue]",
)


def cases() -> Iterator[tuple[str, str]]:
    """(name, text of the prompt)."""
    for history, steps in itertools.product((0, 2), (0, 1, 2, 4, 6)):
        for name, made in _views(history, steps).items():
            for dropped in itertools.count():
                yield (
                    f"{name} history={history} steps={steps} dropped={dropped}",
                    made.messages()[0]["content"],
                )
                if not made.shorten():
                    break


def _views(history: int, steps: int) -> dict[str, AgentView]:
    alfworld = AlfworldView(Task("t", "look_at_obj_in_light", ""), style="paper", history=history, seed=0)
    webshop = WebshopView(style="paper", history=history)
    search = SearchView("who {{ wrote }} it?", style="paper", history=history, max_steps=4)
    views: dict[str, AgentView] = {"alfworld": alfworld, "webshop": webshop, "search": search}
    starts: dict[str, Any] = {
        "alfworld": EnvironmentState(ROOM, ("go to desk 1", "help", "look")),
        "webshop": EnvironmentState(START, ("search[<your query>]",)),
        "search": EnvironmentState("who {{ wrote }} it?", ()),
    }
    for name, view in views.items():
        view.start(starts[name])
    for i, said in enumerate(OBSERVED[:steps]):
        alfworld.observe(
            f"go to desk {i}", EnvironmentState(f" {said}\n", ("look", "it's") if i % 2 else ("help",))
        )
        page = (
            EnvironmentState(RESULTS, ("click[back to search]", "click[b000000001]"))
            if i % 2
            else EnvironmentState(ITEM + said, PRESSED)
        )
        webshop.observe(f"click[{i}]" if i % 3 else said, page)
        search.observe(f"<search>{i}</search>" if i % 3 else "", EnvironmentState(said, ()))
    return views
