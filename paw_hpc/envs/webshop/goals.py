"""Goals: who is to buy what, under which price cap, in one global order.

The original draws purchase prices and caps from Python's global generator, which it never seeds, so they
differ from worker to worker. Here they come from a generator of their own with a fixed start (`PRICE_SEED`),
and a store keeps them. The order is the original's: `random.seed(233)`, one shuffle.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paw_hpc.envs.webshop.records import RecordFile, RecordWriter
from paw_hpc.envs.webshop.source import Product
from paw_hpc.system.errors import DataError

GoalKind = Literal["synthetic", "human"]
PRICE_SEED = 42
ORDER_SEED = 233
MOST_GOALS = 100_000_000
"""Of a catalogue; their order alone takes 4 GB then."""
NO_CAP = 1000000
_CAPS = [10.0 * step for step in range(1, 100)]


@dataclass(frozen=True, slots=True)
class Goal:
    """What an episode is about. `options`: name -> value (synthetic), or values alone (human)."""

    asin: str
    category: str
    query: str
    title: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    price_cap: float
    options: dict[str, str] | tuple[str, ...]
    weight: float

    @property
    def identity(self) -> str:
        """Equal for two goals that ask for the same, whatever the cap: product, attributes and options.
        Stable across machines."""
        asked = self.options if isinstance(self.options, tuple) else sorted(self.options.items())
        return f"{self.asin}-{hashlib.sha256(repr((self.attributes, asked)).encode()).hexdigest()[:12]}"


def price_generator() -> random.Random:
    """The generator of purchase prices and, after them, caps. One word is skipped, as in the runs that the
    facts were recorded from."""
    generator = random.Random(PRICE_SEED)
    generator.getrandbits(32)
    return generator


def purchase_price(prices: Sequence[float], generator: random.Random) -> float:
    """What a product costs when bought: its price, or a draw from its range (one draw; none for a single
    price)."""
    return prices[0] if len(prices) == 1 else generator.uniform(prices[0], prices[1])


def draw_cap(price: float, generator: random.Random) -> tuple[float, str]:
    """(cap, text of it). No draw and no text where fewer than two steps of 10 dollars lie above the price."""
    candidates = [cap for cap in _CAPS if cap > price][:4]
    if len(candidates) < 2:
        return NO_CAP, ""
    cap = max(generator.sample(candidates, 2))
    return cap, f", and price lower than {cap:.2f} dollars"


def write_synthetic(
    folder: Path,
    products: Iterable[Product],
    costs: Sequence[float],
    attributes: Mapping[str, Any],
    generator: random.Random,
) -> None:
    """Goals from the instructions in items_ins_v2: one per element of the product of a product's option
    values.

    Args:
        products, costs: in catalogue order.
        generator: as it is after the prices.

    Raises:
        DataError: a product that items_ins_v2 does not know.
    """

    def sources() -> Iterator[tuple[dict[str, Any], int]]:
        for number, (product, cost) in enumerate(zip(products, costs, strict=True)):
            own = attributes.get(product.asin)
            if own is None:
                raise DataError(
                    f"product {product.asin} is not in items_ins_v2: catalogue and attributes belong to "
                    "different sets"
                )
            if own.get("instruction") is None:
                continue
            asked = own.get("instruction_attributes")
            if not asked:
                raise DataError(
                    f"product {product.asin} has an instruction without instruction_attributes in "
                    "items_ins_v2; restore that file"
                )
            cap, cap_text = draw_cap(cost, generator)
            yield (
                {
                    "product": number,
                    "text": own["instruction"],
                    "attributes": asked,
                    "cap": cap,
                    "cap_text": cap_text,
                },
                math.prod(len(values) for values in product.options.values()),
            )

    _write(folder, "synthetic", sources())


def write_human(
    folder: Path,
    products: Iterable[Product],
    costs: Sequence[float],
    instructions: Mapping[str, Any],
    generator: random.Random,
) -> None:
    """Goals as people wrote them (items_human_ins); instructions without attributes are left out. Arguments
    as in `write_synthetic`."""

    def sources() -> Iterator[tuple[dict[str, Any], int]]:
        for number, (product, cost) in enumerate(zip(products, costs, strict=True)):
            for said in instructions.get(product.asin, ()):
                if not said["instruction_attributes"]:
                    continue
                cap, cap_text = draw_cap(cost, generator)
                text, asked = said["instruction"].strip("."), said["instruction_attributes"]
                record = {
                    "product": number,
                    "text": text,
                    "attributes": asked,
                    "cap": cap,
                    "cap_text": cap_text,
                }
                yield record | {"options": said["instruction_options"]}, 1

    _write(folder, "human", sources())


def _write(folder: Path, kind: GoalKind, sources: Iterable[tuple[dict[str, Any], int]]) -> None:
    counts: list[int] = []
    carrying: Counter[str] = Counter()
    products: list[int] = []
    total = 0
    with RecordWriter(folder, f"goals_{kind}") as records:
        for record, combinations in sources:
            total += combinations
            if total > MOST_GOALS:
                raise DataError(
                    f"more than {MOST_GOALS:,} {kind} goals: one is made of every combination of a "
                    "product's option values, of which product number"
                    f" {record['product'] + 1} has {combinations:,}; restore the catalogue, or cut it with "
                    "env.webshop.num_products"
                )
            records.add(record)
            counts.append(combinations)
            products.append(record["product"])
            for attribute in record["attributes"]:
                carrying[attribute] += combinations
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    order = list(range(int(first[-1])))
    random.Random(ORDER_SEED).shuffle(order)
    np.save(folder / f"goals_{kind}_first.npy", first)
    np.save(folder / f"goals_{kind}_order.npy", np.array(order, dtype=np.int64))
    np.save(folder / f"goals_{kind}_product.npy", np.array(products, dtype=np.int32))
    with RecordWriter(folder, f"carrying_{kind}") as records:
        records.add(carrying)


class Goals(Sequence[Goal]):
    """All goals of a kind in the global order; made when asked for."""

    def __init__(self, folder: Path, kind: GoalKind, products: Sequence[Product]):
        self.kind, self._products = kind, products
        self._sources = RecordFile(folder, f"goals_{kind}")
        self._first = np.load(folder / f"goals_{kind}_first.npy", mmap_mode="r")
        self._order = np.load(folder / f"goals_{kind}_order.npy", mmap_mode="r")
        self._product = np.load(folder / f"goals_{kind}_product.npy", mmap_mode="r")
        self._carrying: dict[str, int] = RecordFile(folder, f"carrying_{kind}")[0]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        """The goal at a place of the global order. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"goal {index} of {len(self)}")
        number = int(self._order[index])
        source = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._goal(self._sources[source], number - int(self._first[source]))

    def same_products(self, indices: Sequence[int]) -> list[int]:
        """The places of all goals whose product is that of one of these goals, ascending."""
        source = np.searchsorted(self._first, self._order, side="right") - 1
        product = self._product[source]
        return [
            int(i) for i in np.flatnonzero(np.isin(product, product[np.asarray(indices, dtype=np.int64)]))
        ]

    def _goal(self, record: dict[str, Any], combination: int) -> Goal:
        product = self._products[record["product"]]
        attributes = tuple(record["attributes"])
        options: dict[str, str] | tuple[str, ...]
        if self.kind == "human":
            options, text, weight = tuple(record["options"]), record["text"], 1.0
        else:
            names = sorted(product.options)
            chosen = _combination([product.options[name] for name in names], combination)
            options = dict(zip(names, chosen, strict=True))
            text = record["text"] + (
                " with " + ", and ".join(f"{k}: {v}" for k, v in options.items()) if options else ""
            )
            weight = sum(1.0 / self._carrying[a] for a in attributes) / len(attributes)
        return Goal(
            product.asin,
            product.category,
            product.query,
            product.title,
            product.product_category,
            text + record["cap_text"],
            attributes,
            record["cap"],
            options,
            weight,
        )


def _combination(values: Sequence[Sequence[str]], index: int) -> list[str]:
    """Element `index` of the product of these lists, the last one running fastest (as in
    itertools.product)."""
    chosen = []
    for choices in reversed(values):
        index, place = divmod(index, len(choices))
        chosen.append(choices[place])
    return chosen[::-1]
