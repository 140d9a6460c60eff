"""Synthetic catalogues in the schema of WebShop's files, for machines that cannot get the real ones, and of
any size, to measure with.

Products are made of kinds (with their department, category path and sizes), brands, attributes and colours.
The words are few, so that a tiny model from scratch can learn them; the quirks that the rules must handle are
there: price ranges, missing prices, products without options or description, slashes and capitals in option
values, brands in capitals, one product in two without an instruction.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from paw_hpc.system import data_paths

DEFAULT_PRODUCTS = 1000
VERSION = 1
"""Part of the name of a generated set: raise it when the same seed gives other products."""
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BRANDS = (
    "ACMEWEAR",
    "BRIGHTON",
    "CASALUX",
    "Dovetail",
    "ELMHURST",
    "Fernway",
    "GLOWMORE",
    "Hartline",
    "INKWELL",
    "Juniper",
    "KEYSTONE",
    "Lumina",
)
_CLOTHES, _SHOES = (
    ("x-small", "small", "medium", "large", "x-large", "xx-large"),
    ("6", "7", "8", "9", "10", "11"),
)
_PACKS, _PILLOWS, _PHONES = (
    ("1 count", "3 count", "6 count"),
    ("16 x 16", "18 x 18", "20 x 20"),
    ("iphone 11", "iphone 12", "galaxy s20"),
)
_KINDS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "dress shirts": (
        "fashion",
        "Clothing › Men › Shirts",
        _CLOTHES,
        "long sleeve, short sleeve, slim fit, machine wash, cotton",
    ),
    "yoga leggings": (
        "fashion",
        "Clothing › Women › Active",
        _CLOTHES,
        "high waist, tummy control, quick drying, machine wash, stretch",
    ),
    "hiking boots": (
        "fashion",
        "Shoes › Outdoor",
        _SHOES,
        "rubber sole, lace up, water resistant, memory foam, non slip",
    ),
    "running sneakers": (
        "fashion",
        "Shoes › Athletic",
        _SHOES,
        "rubber sole, light weight, non slip, memory foam, breathable",
    ),
    "throw pillows": (
        "garden",
        "Home › Bedding › Pillows",
        _PILLOWS,
        "double sided, machine washable, super soft, cotton",
    ),
    "table lamps": (
        "garden",
        "Home › Lighting › Lamps",
        (),
        "easy assemble, glass shade, bronze finish, long lasting, energy saving",
    ),
    "coffee tables": (
        "garden",
        "Home › Furniture › Tables",
        (),
        "easy assemble, solid wood, storage space, easy clean",
    ),
    "phone cases": (
        "electronics",
        "Electronics › Phones",
        _PHONES,
        "wireless charging, glass screen, non slip",
    ),
    "bluetooth speakers": (
        "electronics",
        "Electronics › Audio",
        (),
        "stereo sound, water resistant, long lasting, easy carry, hands free",
    ),
    "hair masks": (
        "beauty",
        "Beauty › Hair Care",
        _PACKS,
        "sulfate free, tea tree, dry hair, natural ingredients, cruelty free",
    ),
    "lip balms": (
        "beauty",
        "Beauty › Makeup › Lips",
        _PACKS,
        "long lasting, cruelty free, natural ingredients, seed oil",
    ),
    "protein bars": (
        "grocery",
        "Grocery › Snacks",
        _PACKS,
        "gluten free, plant based, low sugar, non gmo, high protein",
    ),
    "green teas": (
        "grocery",
        "Grocery › Beverages › Tea",
        _PACKS,
        "caffeine free, non gmo, low calorie, natural flavors",
    ),
}
"""Kind (what a query says) -> category, path of departments, sizes, attributes."""
_COMMON = ("easy use", "high quality", "eco friendly", "gift ready", "long warranty")
_FLAVORED = ("beauty", "grocery")
_FLAVORS = ("vanilla", "Mint", "lemon/ginger", "peach", "coconut")
_COLOR_VALUES = (
    "Black",
    "white",
    "navy blue",
    "red",
    "Forest Green",
    "grey",
    "pink",
    "black/white",
    "purple",
)


def generate_files(folder: Path, products: int = DEFAULT_PRODUCTS, seed: int = 0) -> None:
    """Write items_shuffle.json, items_ins_v2.json and items_human_ins.json, each whole or not at all. The
    same arguments give the same bytes.

    Raises:
        DataError: the folder cannot be written.
    """
    names = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")
    with ExitStack() as stack:
        items, attributes, human = (
            stack.enter_context(data_paths.atomic_file(folder / name)) for name in names
        )
        items.write(b"[")
        attributes.write(b"{")
        human.write(b"{")
        people = 0
        for number, (entry, own, said) in enumerate(_entries(products, random.Random(seed))):
            comma = b", " if number else b""
            items.write(comma + json.dumps(entry).encode())
            attributes.write(comma + _member(entry["asin"], own))
            if said:
                human.write((b", " if people else b"") + _member(entry["asin"], said))
                people += 1
        items.write(b"]")
        attributes.write(b"}")
        human.write(b"}")


def _member(key: str, value: Any) -> bytes:
    return f"{json.dumps(key)}: {json.dumps(value)}".encode()


def _entries(
    products: int, rng: random.Random
) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    taken: set[str] = set()
    while len(taken) < products:
        asin = "B0" + "".join(rng.choices(_LETTERS, k=8))
        if asin not in taken:
            taken.add(asin)
            yield _entry(asin, rng)


def _entry(asin: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """(product, its attributes and instruction, what people said)."""
    kind = rng.choice(list(_KINDS))
    category, path, sizes, words = _KINDS[kind]
    attributes = rng.sample([*words.split(", "), *_COMMON], k=rng.randint(2, 4))
    brand = rng.choice(_BRANDS)
    title = f"{brand} {' '.join(attributes).title()} {kind.title()}"
    options = _options(category, sizes, rng)
    entry = {
        "asin": asin,
        "name": title,
        "full_description": ""
        if rng.random() < 0.2
        else f"{kind.capitalize()} by {brand}. {', '.join(attributes)}.",
        "small_description": [f"{attribute.capitalize()} " for attribute in attributes]
        if rng.random() < 0.9
        else [""],
        "customization_options": options or "",
        "pricing": _pricing(rng),
        "category": category,
        "query": kind,
        "product_category": f"{path} › {kind.title()}",
        "images": [f"https://example.com/{asin}.jpg"],
        "average_rating": "",
        "page": rng.randint(1, 400),
    }
    own: dict[str, Any] = {"attributes": attributes}
    said: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        first, last = attributes[:2], attributes[2:]
        own["instruction"] = f"Find me {', '.join(first)} {kind}" + (
            f" with {', '.join(last)}" if last else ""
        )
        own["instruction_attributes"] = attributes
    if rng.random() < 0.02:
        asked = [rng.choice(values)["value"].lower() for values in options.values()]
        text = (
            f"i am looking for {attributes[0]} {kind}" + (f" in {' and '.join(asked)}" if asked else "") + "."
        )
        said = [
            {
                "asin": asin,
                "instruction": text,
                "attributes": attributes,
                "instruction_attributes": attributes[:1],
                "instruction_options": asked,
            }
        ]
    return entry, own, said


def _options(category: str, sizes: tuple[str, ...], rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    options: dict[str, list[dict[str, Any]]] = {}
    flavors = category in _FLAVORED
    if rng.random() < 0.7:
        options["Flavor" if flavors else "Color"] = _values(
            rng.sample(_FLAVORS if flavors else _COLOR_VALUES, k=rng.randint(1, 4))
        )
    if sizes and rng.random() < 0.8:
        first = rng.randrange(len(sizes))
        options["Size"] = _values(sizes[first : first + rng.randint(1, 4)])
    return options


def _values(values: Any) -> list[dict[str, Any]]:
    return [{"value": value, "image": None} for value in values]


def _pricing(rng: random.Random) -> str:
    low = rng.randint(300, 12000) / 100
    draw = rng.random()
    if draw < 0.05:
        return ""
    return f"${low:.2f}${low + rng.randint(100, 3000) / 100:.2f}" if draw < 0.2 else f"${low:.2f}"
