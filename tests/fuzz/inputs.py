"""Strategies that several targets share: valid documents with a few things wrong, and text that is meant to
hurt."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

DEEP, ENDLESS, HUGE = "@@deep@@", "@@endless@@", "@@huge@@"
"""Stand for JSON that Python cannot hold as a value: nested beyond every limit, opened and never closed, a
number of 5,000 digits."""
_RAW = {DEEP: "[" * 60_000 + "]" * 60_000, ENDLESS: '{"a":' * 60_000, HUGE: "9" * 5000}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "x", "\n", "a\nb", "\x1b[31m", "\ud83d", "a\0b", "\u2028", "é", "²", "../../x", "{x}", "${x}", "0", "1.5", "x" * 20_000,
    [], {}, [[]], [None], [0.5], ["x"], ["\ud83d"], {"a": 1}, {"": {}}, {"\ud83d": []}, [[1, 2], [3]], DEEP, ENDLESS, HUGE,
)  # fmt: skip
_BYTES = (
    b"",
    b"\xff",
    b"\xed\xa0\xbd",
    b"\0",
    b"\n",
    b"\r",
    b"{",
    b"]",
    b'"',
    b"\\ud83d",
    b"NaN",
    b"\xef\xbb\xbf",
    b"1e999",
    b",,",
    b"\\",
    b"-",
)
PIECES = (
    "<think>", "</think>", "<action>", "</action>", "<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>",
    "<THINK>", "<Search>", "</SEARCH>", "< / answer >", "<", ">", "[", "]", "search[", "click[", "search ", "answer ", "open 1", "buy", "look",
    "go to desk 1", "click[buy now]", "click[next >]", "click[< prev]", "click[back to search]", "search[<r>]", "search[<c> garden]", "search[<a>]",
    "search[red lamp]", " ", "\n", "\t", "\u3000", "\x1f", "'", '"', "\\", "{{", "}}", "{%", "%}", "${x}", "中", "é", "İ", "ß", "🙂", "\0", "\ufffd",
    "\ue000",
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "Doc 1 (Title: x) ", " [SEP] ", "Instruction:", "Page 1 (Total results: 3)", "a", "the", "0",
)  # fmt: skip
"""What answers, pages and passages are made of, and what might be taken for something else in them."""


def texts(pieces: Sequence[str] = PIECES, longest: int = 60_000, halves: bool = False) -> SearchStrategy[str]:
    """Pieces in any order, sometimes a few of them very often; with `halves`, halves of characters among
    them."""
    pool = (*pieces, "\ud83d", "\udc00", "x\ud83d y") if halves else tuple(pieces)

    def written(drawn: bytes) -> str:
        parts = [pool[number % len(pool)] for number in drawn[1:]]
        if drawn and drawn[0] >= 224 and parts:
            often = "".join(parts[: 1 + drawn[0] % 3]) or " "
            parts.append(often * (longest // len(often)))
            parts.append(pool[drawn[-1] % len(pool)])
        return "".join(parts)

    return st.binary(max_size=14).map(written)


def paths(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value inside a document."""
    if isinstance(document, dict):
        inside = list(document.items())
    elif isinstance(document, list):
        inside = list(enumerate(document))
    else:
        return []
    return [found for key, value in inside for found in ((*above, key), *paths(value, (*above, key)))]


def documents(valid: Any, values: Sequence[Any] = VALUES, changes: int = 3) -> SearchStrategy[Any]:
    """A valid document in which up to a few values are replaced, removed, added or doubled."""
    return st.lists(st.integers(0, 2**40 - 1), max_size=changes).map(
        lambda numbers: functools.reduce(_changed(values), numbers, copy.deepcopy(valid))
    )


def _spread(number: int) -> int:
    """Small numbers, which hypothesis likes best, mean as many different things as others."""
    return (number * 0x9E3779B97F4A7C15 % 2**64) >> 16


def _changed(values: Sequence[Any]) -> Callable[[Any, int], Any]:
    """(document, a number that says where and how) -> the document, changed."""

    def change(document: Any, number: int) -> Any:
        number, how = divmod(_spread(number), 5)
        number, which = divmod(number, len(values))
        places = paths(document)
        if not places:
            return copy.deepcopy(values[which])
        *above, key = places[number % len(places)]
        holder = functools.reduce(lambda inside, step: inside[step], above, document)
        match how:
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 1:
                holder[("unheard-of", "", "a b", "0", "\ud83d")[number % 5]] = copy.deepcopy(values[which])
            case _:
                holder[key] = copy.deepcopy(values[which])
        return document

    return change


def as_json(document: Any, **how: Any) -> bytes:
    """The document as JSON, as Python writes it (NaN and halves of characters included), the stand-ins
    filled."""
    text = json.dumps(document, **how)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


def damaged(whole: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Bytes as they were, or (one time in four) cut, or with a few bytes in the place of others."""

    def harm(data: bytes, number: int) -> bytes:
        number, how = divmod(_spread(number), 8)
        number, which = divmod(number, len(_BYTES))
        first = number % (len(data) + 1)
        match how:
            case 6:
                return data[:first]
            case 7:
                return data[:first] + _BYTES[which] + data[first + number % 4 :]
        return data

    return st.builds(harm, whole, st.integers(0, 2**40 - 1))


def json_files(valid: Any, values: Sequence[Any] = VALUES) -> SearchStrategy[bytes]:
    """The bytes of a file that holds one JSON document."""
    return damaged(documents(valid, values).map(as_json))


def json_lines(valid: Sequence[Any], values: Sequence[Any] = VALUES) -> SearchStrategy[bytes]:
    """The bytes of a file with a JSON document a line."""

    def written(lines: Any) -> bytes:
        return b"".join(as_json(line) + b"\n" for line in (lines if isinstance(lines, list) else [lines]))

    return damaged(documents(list(valid), values).map(written))
