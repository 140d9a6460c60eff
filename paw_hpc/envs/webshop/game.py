"""One shopping session: pages as text, actions, reward. The rules and quirks are those of the original's
`WebAgentTextEnv` in mode `text`.

Nothing here is random except the search for `<r>`, and nothing is shared but the catalogue: a session is a
handful of small objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.webshop.catalogue import SEARCH_RESULTS, Catalogue
from paw_hpc.envs.webshop.goals import Goal
from paw_hpc.envs.webshop.reward import Tagger, score
from paw_hpc.envs.webshop.source import Product

SEPARATOR = " [SEP] "
SEARCH_ENTRY = "search[<your query>]"
"""Stands in lists of available actions for a search with any words."""
PAGE_SIZE = 10
_SUB_PAGES = ("description", "features", "reviews")
_PAGE_NAMES = ("search_results", "item_page", "item_sub_page", "done")
_HTML_BLANKS = " \n\t\f\r"
_SCRIPT_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


@dataclass(frozen=True, slots=True)
class Available:
    """What can be done on the page shown. Search works everywhere, but only the start page shows the bar."""

    has_search_bar: bool
    clickables: tuple[str, ...]


@dataclass(slots=True)
class _State:
    page_name: str = ""
    """Empty on the start page, else one of _PAGE_NAMES."""
    sub_page: str = ""
    keywords: tuple[str, ...] = ()
    page: int = 0
    asin: str = ""
    options: dict[str, str] = field(default_factory=dict)
    found: Sequence[int] = ()


class Game:
    """A session with one goal.

    Args:
        tagger: finds nouns for the reward (see reward.py).
        seed: of what `search[<r>]` shows.
    """

    def __init__(self, catalogue: Catalogue, goal: Goal, tagger: Tagger, seed: int = 0):
        self.catalogue, self.goal, self._tagger, self._random = catalogue, goal, tagger, Random(seed)
        self._state = _State()
        self._show(["WebShop", "Instruction:", goal.instruction, "Search"], ["search"])

    @property
    def available(self) -> Available:
        return Available(not self._state.page_name, tuple(self._clickables))

    @property
    def shown(self) -> str:
        """What kind of page is shown: "" (start), search_results, item_page, item_sub_page or done."""
        return self._state.page_name

    @property
    def asin(self) -> str:
        """The product whose page, or sub page, is shown; empty elsewhere."""
        return self._state.asin

    @property
    def results(self) -> tuple[Sequence[int], int]:
        """(products of the last search, best first; number of the page shown, from 1)."""
        return self._state.found, self._state.page

    @property
    def chosen(self) -> dict[str, str]:
        """Option name -> chosen value; the page does not show it."""
        return dict(self._state.options)

    def worth(self, number: int, chosen: Sequence[str]) -> float:
        """The score of buying this product with these option values."""
        return score(
            self.catalogue.products[number],
            float(self.catalogue.cost[number]),
            chosen,
            self.goal,
            self._tagger,
        )

    def step(self, action: str) -> tuple[str, float, bool]:
        """(observation, reward, done). An action that means nothing here changes nothing and is worth 0.
        There is no limit of steps."""
        verb, argument = parse_action(action)
        if verb == "search":
            self._search(tuple(argument.split(" ")))
        elif verb == "click" and argument in self._clickables and argument != "search":
            return self._click(argument)
        return self.observation, 0.0, False

    def _search(self, keywords: tuple[str, ...]) -> None:
        if keywords[0] == "<a>" or keywords == ("<c>",):
            return  # the original crashes here
        self._state = _State(keywords=keywords)
        self._show_results(1)

    def _click(self, name: str) -> tuple[str, float, bool]:
        shown = self._shown_page()
        if name == "buy now":
            return self._buy()
        if name == "back to search":
            self._state = _State()
            self._show(["WebShop", "Instruction:", self.goal.instruction, "Search"], ["search"])
        elif name == "next >" and shown == "search_results":
            self._show_results(self._state.page + 1)
        elif name == "< prev" and shown == "search_results":
            self._show_results(self._state.page - 1)
        elif name == "< prev" and shown == "item_page":
            self._show_results(self._state.page)
        elif name in _SUB_PAGES:
            self._show_sub_page(name)
        else:
            self._show_item(name)
        return self.observation, 0.0, False

    def _shown_page(self) -> str:
        """The kind of page as the original finds it out: the first name that occurs anywhere in the URL, the
        user's keywords included."""
        state = self._state
        url = "/".join(
            [
                state.page_name,
                state.asin,
                "+".join(state.keywords),
                str(state.page),
                state.sub_page,
                json.dumps(state.options),
            ]
        )
        return next((name for name in _PAGE_NAMES if name in url), "")

    def _show_results(self, page: int) -> None:
        state = self._state
        state.page_name, state.page, state.asin, state.sub_page, state.options = (
            "search_results",
            page,
            "",
            "",
            {},
        )
        state.found = self._find(state.keywords)
        products = [
            self.catalogue.products[number]
            for number in state.found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        ]
        entries = [
            f"Page {page} (Total results: {len(state.found)})",
            *(["< Prev"] if page > 1 else []),
            "Next >",
        ]
        for product in products:
            entries += [product.asin, product.title, product.price_tag]
        buttons = [
            "back to search",
            *(["< prev"] if page > 1 else []),
            "next >",
            *(product.asin.lower() for product in products),
        ]
        self._show([*self._header(), *entries], buttons)

    def _find(self, keywords: tuple[str, ...]) -> Sequence[int]:
        first, rest = keywords[0], " ".join(keywords[1:]).strip()
        if first == "<r>":
            return self._random.sample(
                range(len(self.catalogue.products)), min(SEARCH_RESULTS, len(self.catalogue.products))
            )
        if first == "<c>":
            return self.catalogue.with_value("category", keywords[1].strip())
        if first == "<q>":
            return self.catalogue.with_value("query", rest)
        return self.catalogue.search(" ".join(keywords))

    def _show_item(self, clicked: str) -> None:
        """`clicked`: a product, one of its option values, or the way back from one of its sub pages."""
        state = self._state
        if state.page_name == "search_results":
            state.asin = clicked.upper()
        elif clicked in self._option_of:
            state.options[self._option_of[clicked]] = clicked
        state.page_name, state.sub_page = "item_page", ""
        product = self._product()
        entries = ["< Prev"]
        for name, values in product.options.items():
            entries += [name, *values]
        entries += [
            product.title,
            f"Price: {product.price_tag}",
            "Rating: N.A.",
            "Description",
            "Features",
            "Reviews",
            "Buy Now",
        ]
        # A value that two options share is one key, at its first place, and means its last occurrence.
        option_of = {value: name for name, values in product.options.items() for value in values}
        self._show(
            [*self._header(), *entries],
            ["back to search", "< prev", *_SUB_PAGES, "buy now", *option_of],
            option_of,
        )

    def _show_sub_page(self, name: str) -> None:
        self._state.page_name, self._state.sub_page = "item_sub_page", name
        product = self._product()
        # The template puts a blank before a bullet: an empty one is still an entry.
        entries = {
            "description": [product.description],
            "features": [f" {bullet}" for bullet in product.bullets],
            "reviews": [],
        }[name]
        self._show([*self._header(), "< Prev", *entries], ["back to search", "< prev"])

    def _buy(self) -> tuple[str, float, bool]:
        state = self._state
        value = self.worth(self.catalogue.products.find(state.asin), tuple(state.options.values()))
        state.page_name, state.sub_page = "done", ""
        chosen = json.dumps(state.options, sort_keys=True).translate(_SCRIPT_SAFE)
        entries = [
            "Thank you for shopping with us!",
            "Your code:",
            "None",
            "(Paste it in your MTurk interface.)",
        ]
        entries += ["Purchased", "asin", state.asin, "options", chosen]
        entries += ["attrs", "None", "category", "None", "query", "None", "product category", "None"]
        entries += [
            "Target",
            "asin",
            "options",
            "attrs",
            "price upper",
            "instuction text",
            "category",
            "product category",
            "query",
            "Goal",
            "None",
        ]
        entries += ["Reward", "Your score (min 0.0, max 1.0)", str(value), "Reward Details", "None"]
        self._show(entries, [])
        return self.observation, value, True

    def _product(self) -> Product:
        return self.catalogue.products[self.catalogue.products.find(self._state.asin)]

    def _header(self) -> list[str]:
        return ["Instruction:", self.goal.instruction, "Back to Search"]

    def _show(
        self, entries: Sequence[str], clickables: Sequence[str], option_of: dict[str, str] | None = None
    ) -> None:
        self.observation = SEPARATOR.join(entry.strip() for entry in entries if _visible(entry))
        self._clickables = dict.fromkeys(clickables)
        self._option_of = option_of or {}


def parse_action(action: str) -> tuple[str, str]:
    """(verb, argument in lower case) of `verb[argument]`, both empty where it is none.

    As the original's pattern `(.+)\\[(.+)\\]` reads it: of the first line, up to its last `]`, from the last
    `[` that leaves an argument. (The pattern itself reads the line anew from every `[` that is never closed.)
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    begin = line.rfind("[", 1, max(1, end - 1))
    return (line[:begin], line[begin + 1 : end].lower()) if begin > 0 else ("", "")


def admits(action: str, state: EnvironmentState) -> bool:
    """Whether an action is a search where the page offers one, or one of the page's own."""
    if re.fullmatch(r"search\[(.+)\]", action):
        return SEARCH_ENTRY in state.admissible and action != SEARCH_ENTRY
    return action in state.admissible


def _visible(entry: str) -> bool:
    """Whether a text of the page is an entry. HTML parsers turn a blank text with a newline into a newline
    alone, which the original leaves out."""
    return bool(entry) and not ("\n" in entry and not entry.strip(_HTML_BLANKS))
