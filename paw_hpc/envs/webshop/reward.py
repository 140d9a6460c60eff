"""The score of a purchase: how much of the goal it fulfils, times how much it is the kind of product that was
asked for.

    (attributes met + options met + [price <= cap]) / (attributes + options + 1) * kind

Not rounded. The kind of product is judged by category, query and the nouns of the two titles; which tagger
finds nouns is the recipe's choice (`env.webshop.tagger`), because the original's (spaCy) comes with a model
that not every machine can get.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Literal

from rapidfuzz import fuzz, utils

from paw_hpc.envs.webshop.goals import Goal
from paw_hpc.envs.webshop.source import Product
from paw_hpc.system.errors import DataError, RecipeError

TaggerName = Literal["auto", "spacy", "textblob"]
Tagger = Callable[[str], tuple[str, ...]]
"""Title -> its nouns in lower case, repetitions kept."""

SIMILAR = 85
"""token_set_ratio above which two texts say the same."""
SPACY_MODELS = ("en_core_web_sm", "en_core_web_lg")
_COLOR_WORDS = """
alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel
camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry
cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey
heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight
mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow
red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal
tiger turquoise violet walnut wheat white wine yellow
"""
COLORS = tuple(_COLOR_WORDS.split())
"""In the order in which they are looked for."""
_UPPER_LATIN = dict.fromkeys(range(128, 256))
"""thefuzz drops these code points before it compares."""


def score(product: Product, cost: float, chosen: Sequence[str], goal: Goal, tagger: Tagger) -> float:
    """The score in [0, 1] of buying `product` at `cost` with these option values."""
    met = attributes_met(product, goal) + options_met(chosen, goal) + (cost <= goal.price_cap)
    return met / (len(goal.attributes) + len(goal.options) + 1) * kind_factor(product, goal, tagger)


def kind_factor(product: Product, goal: Goal, tagger: Tagger) -> float:
    """1, 0.5, 0.1 or 0: whether the product is of the kind asked for. Titles without a common noun give 0
    even where category and query agree."""
    bought, wanted = tagger(product.title), tagger(goal.title)
    overlap = len(set(bought) & set(wanted)) / len(wanted) if wanted else 0.2
    categories = [
        {part.strip() for part in path.split("›")}
        for path in (product.product_category, goal.product_category)
    ]
    if overlap == 0:
        return 0.0
    if overlap < 0.1:
        return 0.1
    return (
        1.0
        if product.query == goal.query or len(categories[0] & categories[1]) >= 2 or overlap > 0.2
        else 0.5
    )


def attributes_met(product: Product, goal: Goal) -> int:
    """How many of the goal's attributes the product has, by name or somewhere in its texts."""
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return sum(
        any(_similar(own, wanted) for own in product.attributes) or any(wanted in text for text in texts)
        for wanted in goal.attributes
    )


def options_met(chosen: Sequence[str], goal: Goal) -> int:
    """How many of the goal's options are among the chosen values (one value may serve several).

    A synthetic goal's option is compared as the text of its (name, value) pair, as in the original: `large`
    meets `('size', 'x-large')`.
    """
    bought = [_color_in(value) for value in chosen]
    if isinstance(goal.options, tuple):
        wanted = [_color_in(value) for value in goal.options]
    else:
        wanted = [
            next((color for color in COLORS if color in pair), str(pair)) for pair in goal.options.items()
        ]
    return sum(any(_similar(value, want) for value in bought) for want in wanted)


def _color_in(value: str) -> str:
    """The first colour word of the list that the value contains, else the value: `standard` becomes `tan`."""
    return next((color for color in COLORS if color in value), value)


def _similar(a: str, b: str) -> bool:
    return round(fuzz.token_set_ratio(_plain(a), _plain(b))) > SIMILAR


@functools.lru_cache(maxsize=1 << 16)
def _plain(text: str) -> str:
    return utils.default_process(text.translate(_UPPER_LATIN))


@functools.cache
def make_tagger(name: TaggerName = "auto") -> tuple[str, Tagger]:
    """(what it is, the tagger). auto: spaCy where it and an English model are installed, else TextBlob.

    Raises:
        RecipeError: spaCy was asked for and is not there.
        DataError: neither is installed.
    """
    if name != "textblob":
        for model in SPACY_MODELS:
            if _installed("spacy") and _installed(model):
                return f"spaCy {model}", functools.lru_cache(maxsize=1 << 16)(_spacy_tagger(model))
        if name == "spacy":
            raise RecipeError(
                "env.webshop.tagger: spacy needs the spacy package and one of the models "
                f"{', '.join(SPACY_MODELS)}; or use textblob"
            )
    if not _installed("textblob"):
        raise DataError(
            "WebShop's reward needs a tagger: pip install 'paw-hpc[webshop]', or spacy with its model "
            "en_core_web_sm"
        )
    return "TextBlob", functools.lru_cache(maxsize=1 << 16)(_textblob_nouns)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _textblob_nouns(title: str) -> tuple[str, ...]:
    from textblob.en import tag

    return tuple(
        word.lower() for word, kind in tag(title) if kind.split("-")[0] in ("NN", "NNS", "NNP", "NNPS")
    )


def _spacy_tagger(model: str) -> Tagger:
    import spacy

    try:
        pipeline = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
    except (OSError, ValueError) as error:
        raise DataError(
            f"spaCy's model {model} cannot be loaded ({' '.join(str(error).split())[:120]}); use "
            "env.webshop.tagger=textblob"
        ) from None
    return lambda title: tuple(
        token.text.lower() for token in pipeline(title) if token.pos_ in ("NOUN", "PROPN")
    )
