"""WebShop's own files, read as a stream: items_shuffle*.json (products), items_ins_v2*.json (attributes),
items_human_ins.json.

The rules that turn an entry into a product are those of the original's `load_products`: which entries are
skipped, how prices and options are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import read_json
from paw_hpc.system.text import require_text

DEAREST = 1e9
"""Dollars that a product may cost."""
DEFAULT_PRICE = 100.0
"""Of a product without one."""
BUTTONS = frozenset(
    {"search", "back to search", "next >", "< prev", "description", "features", "reviews", "buy now"}
)
"""What can be clicked on pages beside products and options."""
ABSENT_ATTRIBUTES = ("DUMMY_ATTR",)
_FIELDS = (
    "asin",
    "name",
    "full_description",
    "small_description",
    "pricing",
    "category",
    "query",
    "product_category",
    "customization_options",
)
"""What is read of an entry."""
_BLOCK = 1 << 22
_GAP = re.compile(r"[\s,]*")
_AGAIN = "restore it, or run `paw data webshop fetch`"


@dataclass(frozen=True, slots=True)
class Product:
    """One product as the shop shows and scores it."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    """One price, or the two ends of a range in the order of the file."""
    price_tag: str
    category: str
    query: str
    product_category: str
    options: dict[str, tuple[str, ...]]
    """Option name -> values, in the order and with the repetitions of the file."""
    attributes: tuple[str, ...]

    @property
    def document(self) -> str:
        """What the search engine indexes."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        return " ".join(
            [self.title, self.description, self.bullets[0] if self.bullets else "", options]
        ).lower()


def read_products(
    path: Path, attributes: Mapping[str, Mapping[str, Any]], num_products: int | None = None
) -> Iterator[Product]:
    """The products of a catalogue, in the order of the file, without holding the file in memory.

    Args:
        attributes: the content of items_ins_v2, by asin.
        num_products: cut the file after this many entries.

    Raises:
        DataError: missing, truncated or foreign file; no product in it; not one price in it.
    """
    seen: set[str] = set()
    priced = False
    for number, entry in enumerate(_array(path), 1):
        if num_products is not None and number > num_products:
            break
        try:
            asin = entry["asin"]
            if asin == "nan" or len(asin) > 10 or asin in seen:
                continue
            seen.add(asin)
            _check_id(asin)
            product = _product(entry, attributes.get(asin, {}))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
            raise DataError(
                f"{path}: entry {number} is not a WebShop product ({type(error).__name__}: {error}); {_AGAIN}"
            ) from None
        priced |= bool(entry.get("pricing"))
        yield product
    if not seen:
        raise DataError(f"{path}: no product in it; {_AGAIN}")
    if not priced:
        raise DataError(
            f"{path}: none of its {len(seen)} products has a price ('pricing'), so no price cap would mean "
            f"anything; {_AGAIN}"
        )


def read_attributes(path: Path) -> dict[str, dict[str, Any]]:
    """items_ins_v2: asin -> {attributes, and for some: instruction, instruction_attributes}. Raises
    DataError."""
    return _mapping(path, dict, _check_attributes)


def read_human_instructions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """items_human_ins: asin -> [{instruction, instruction_attributes, instruction_options}]. Raises
    DataError."""
    return _mapping(path, list, _check_instructions)


def _check_attributes(own: Mapping[str, Any]) -> None:
    _texts(own, "attributes", absent=ABSENT_ATTRIBUTES)
    if own.get("instruction") is not None:
        _text(own, "instruction")
        if own.get("instruction_attributes") is not None:
            _texts(own, "instruction_attributes")


def _check_instructions(said: Sequence[Mapping[str, Any]]) -> None:
    for one in said:
        if one["instruction_attributes"]:  # without any it is left out
            _text(one, "instruction")
            _texts(one, "instruction_attributes")
            _texts(one, "instruction_options")


def _product(entry: Mapping[str, Any], own: Mapping[str, Any]) -> Product:
    require_text({key: entry.get(key) for key in _FIELDS})
    prices, tag = _price(entry.get("pricing"))
    return Product(
        asin=entry["asin"],
        title=_text(entry, "name"),
        description=_text(entry, "full_description"),
        bullets=_texts(entry, "small_description")
        if isinstance(entry["small_description"], list)
        else (_text(entry, "small_description"),),
        prices=prices,
        price_tag=tag,
        category=_text(entry, "category"),
        query=_text(entry, "query").lower().strip(),
        product_category=_text(entry, "product_category"),
        options=_options(entry["customization_options"]),
        attributes=_texts(own, "attributes", absent=ABSENT_ATTRIBUTES),
    )


def _check_id(asin: str) -> None:
    """Raises ValueError for an id under which a product could not be found again: pages show it in small
    letters, among their buttons."""
    if (
        not asin.isascii()
        or not asin.isprintable()
        or asin != asin.upper()
        or asin != asin.strip()
        or asin.lower() in BUTTONS
    ):
        raise ValueError(f"asin is {asin!a}, expected capital letters and digits")


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {json.dumps(value)[:40]}, expected text")
    return value


def _texts(record: Mapping[str, Any], key: str, absent: tuple[str, ...] | None = None) -> tuple[str, ...]:
    value = record[key] if absent is None else record.get(key, absent)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{key} is {json.dumps(value)[:40]}, expected a list of texts")
    return tuple(value)


def _price(text: str | None) -> tuple[tuple[float, ...], str]:
    """(prices, tag) of `$18.50`, `$3.78$11.38` or nothing. A range keeps the order of the file, which is not
    always ascending."""
    if not text:
        return (DEFAULT_PRICE,), f"${DEFAULT_PRICE}"
    found = [float(re.sub(r"[^\d.]", "", part)) for part in text.split("$")[1:]]
    if not found or max(found) > DEAREST:
        raise ValueError(f"price {text[:40]!r} is not in dollars")
    return (
        (tuple(found[:2]), f"${found[0]} to ${found[1]}") if len(found) > 1 else ((found[0],), f"${found[0]}")
    )


def _options(found: Any) -> dict[str, tuple[str, ...]]:
    values = {}
    for name, contents in (found or {}).items():
        if contents is not None:
            values[name.lower()] = tuple(
                content["value"].strip().replace("/", " | ").lower() for content in contents
            )
    return values


def _array(path: Path) -> Iterator[Any]:
    """The objects of a JSON array, decoded one by one from blocks of the file. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _objects(file, path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_AGAIN}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_AGAIN}") from None


def _objects(file: TextIO, path: Path) -> Iterator[Any]:
    decoder, text = json.JSONDecoder(), file.read(_BLOCK)
    opening = _GAP.match(text).end()  # type: ignore[union-attr]
    if text[opening : opening + 1] != "[":
        raise DataError(f"{path}: not a list of products; {_AGAIN}")
    at = opening + 1
    while True:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            _end(file, text[at + 1 :], path)
            return
        try:
            if text[at : at + 1] != "{":
                raise ValueError("no object")
            element, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise DataError(f"{path}: an entry is nested too deeply to be a product; {_AGAIN}") from None
        except ValueError as error:
            block = file.read(max(_BLOCK, len(text) - at))
            if not block:
                raise DataError(f"{path}: truncated, or not JSON ({error}); {_AGAIN}") from None
            text, at = text[at:] + block, 0
            continue
        yield element


def _end(file: TextIO, text: str, path: Path) -> None:
    """Entries behind the end of the list would be lost unsaid."""
    while not text.strip():
        text = file.read(_BLOCK)
        if not text:
            return
    raise DataError(f"{path}: {text.strip()[:20]!a} stands behind the end of its list of products; {_AGAIN}")


def _mapping(path: Path, of: type, check: Callable[[Any], None]) -> dict[str, Any]:
    try:
        content = read_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: truncated or not JSON ({error}); {_AGAIN}") from None
    if not isinstance(content, dict) or not all(isinstance(value, of) for value in content.values()):
        raise DataError(f"{path}: not what WebShop's {path.name} holds, an object by product id; {_AGAIN}")
    for asin, own in content.items():
        try:
            require_text(asin, "its id")
            require_text(own)
            check(own)
        except KeyError as error:
            raise DataError(f"{path}: product {asin!a} lacks {error.args[0]}; {_AGAIN}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: product {asin!a}: {error}; {_AGAIN}") from None
    return content
