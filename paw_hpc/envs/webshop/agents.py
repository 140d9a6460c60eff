"""Scripted players: an oracle that knows the goal, and one that plays at random. Yardsticks, and teachers of
the warm start."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from paw_hpc.envs.webshop.game import PAGE_SIZE, Game
from paw_hpc.envs.webshop.goals import Goal
from paw_hpc.envs.webshop.reward import options_met
from paw_hpc.envs.webshop.source import Product

_PRICE = re.compile(r", and price lower than [\d.]+ dollars$")
MAX_CHOICES = 20_000
"""Combinations of option values that the oracle compares at most, beyond the goal's own."""


@dataclass(frozen=True, slots=True)
class Route:
    """What the oracle does for a goal: search, turn pages, open, choose, buy."""

    actions: tuple[str, ...]


def search_words(goal: Goal, *, brief: bool = False) -> str:
    """The instruction in lower case. `brief`: without `find me`, price and options, about what a shopper
    would type."""
    text = goal.instruction.lower()
    if not brief:
        return text
    text = _PRICE.sub("", text).removeprefix("find me ")
    said = (
        " with " + ", and ".join(f"{k}: {v}" for k, v in goal.options.items())
        if isinstance(goal.options, dict) and goal.options
        else ""
    )
    return text.removesuffix(said) if said else text


def plan_route(game: Game, *, brief: bool = False) -> Route | None:
    """The shortest way to the goal's product from the start page; None where the search does not list it.

    The options are those of the goal, unless others are worth more: the score's colour words make a few goals
    impossible to meet literally.
    """
    goal, catalogue = game.goal, game.catalogue
    words = search_words(goal, brief=brief)
    target = catalogue.products.find(goal.asin)
    found = list(catalogue.search(words))
    if target not in found:
        return None
    pages = found.index(target) // PAGE_SIZE
    product: Product = catalogue.products[target]
    chosen = best_choice(product, goal)
    clicks = ["next >"] * pages + [goal.asin.lower(), *chosen, "buy now"]
    return Route((f"search[{words}]", *(f"click[{name}]" for name in clicks)))


def best_choice(product: Product, goal: Goal) -> tuple[str, ...]:
    """The option values of the product that meet most of the goal's options: literally those of the goal
    where nothing beats them."""
    literal = tuple(
        value
        for value in (goal.options.values() if isinstance(goal.options, dict) else goal.options)
        if _offers(product, value)
    )
    best, most = literal, options_met(literal, goal)
    if most == len(goal.options):
        return best
    for choice in itertools.islice(itertools.product(*product.options.values()), MAX_CHOICES):
        met = options_met(choice, goal)
        if met > most:
            best, most = choice, met
    return best


def fulfils(game: Game, number: int) -> bool:
    """Whether a full score can be had with this product."""
    product = game.catalogue.products[number]
    return game.worth(number, best_choice(product, game.goal)) == 1.0


def _offers(product: Product, value: str) -> bool:
    return any(value in values for values in product.options.values())


def play(game: Game, actions: Iterator[str] | tuple[str, ...]) -> float:
    """Play the actions to the first purchase; its score, 0 where there is none."""
    for action in actions:
        _, reward, done = game.step(action)
        if done:
            return reward
    return 0.0


def random_actions(game: Game, rng: Random, steps: int) -> Iterator[str]:
    """Any available action with equal chance; a search takes one to three words of the instruction."""
    words = game.goal.instruction.lower().split()
    for _ in range(steps):
        available = game.available
        click = rng.choice([name for name in available.clickables if name != "search"] or ["search"])
        if available.has_search_bar:
            yield f"search[{' '.join(rng.sample(words, min(len(words), rng.randint(1, 3))))}]"
        else:
            yield f"click[{click}]"
