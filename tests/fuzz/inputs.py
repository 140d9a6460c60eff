"""Strategies that several targets share: valid documents with a few things wrong, and text that is meant to hurt."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

DEEP, ENDLESS, HUGE = "@@deep@@", "@@endless@@", "@@huge@@"
"""Stand for JSON that Python cannot hold as a value: nested beyond every limit, opened and never closed, a number of 5,000 digits."""
_RAW = {DEEP: "[" * 60_000 + "]" * 60_000, ENDLESS: '{"a":' * 60_000, HUGE: "9" * 5000}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "x", "\n", "a\nb", "\x1b[31m", "\ud83d", "a\0b", "\u2028", "é", "²", "../../x", "{x}", "${x}", "0", "1.5", "x" * 20_000,
    [], {}, [[]], [None], [0.5], ["x"], ["\ud83d"], {"a": 1}, {"": {}}, {"\ud83d": []}, [[1, 2], [3]], DEEP, ENDLESS, HUGE,
)  # fmt: skip
_BYTES = (b"", b"\xff", b"\xed\xa0\xbd", b"\0", b"\n", b"\r", b"{", b"]", b'"', b"\\ud83d", b"NaN", b"\xef\xbb\xbf", b"1e999", b",,", b"\\", b"-")
PIECES = (
    "<think>", "</think>", "<action>", "</action>", "<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>",
    "<THINK>", "<Search>", "</SEARCH>", "< / answer >", "<", ">", "[", "]", "search[", "click[", "search ", "answer ", "open 1", "buy", "look",
    "go to desk 1", "click[buy now]", "click[next >]", "click[< prev]", "click[back to search]", "search[<r>]", "search[<c> garden]", "search[<a>]",
    "search[red lamp]", " ", "\n", "\t", "\u3000", "\x1f", "'", '"', "\\", "{{", "}}", "{%", "%}", "${x}", "中", "é", "İ", "ß", "🙂", "\0", "\ufffd", "\ue000",
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "Doc 1 (Title: x) ", " [SEP] ", "Instruction:", "Page 1 (Total results: 3)", "a", "the", "0",
)  # fmt: skip
"""What answers, pages and passages are made of, and what might be taken for something else in them."""


@st.composite
def texts(draw: DrawFn, pieces: Sequence[str] = PIECES, longest: int = 60_000, halves: bool = False) -> str:
    """Pieces in any order, sometimes one of them very often; with `halves`, halves of characters among them."""
    pool = st.sampled_from((*pieces, "\ud83d", "\udc00", "x\ud83d y") if halves else tuple(pieces)) | st.text(max_size=5)
    parts = draw(st.lists(pool, max_size=12))
    if draw(st.integers(0, 7)) == 7:
        often = "".join(draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=3)))
        parts.insert(draw(st.integers(0, len(parts))), often * (longest // len(often)))
    return "".join(parts)


def paths(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value inside a document."""
    if isinstance(document, dict):
        inside = list(document.items())
    elif isinstance(document, list):
        inside = list(enumerate(document))
    else:
        return []
    return [found for key, value in inside for found in ((*above, key), *paths(value, (*above, key)))]


@st.composite
def documents(draw: DrawFn, valid: Any, values: Sequence[Any] = VALUES, changes: int = 3) -> Any:
    """A valid document in which up to a few values are replaced, removed, added or doubled."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, changes))):
        places = paths(document)
        if not places:
            break
        *above, key = places[draw(st.integers(0, len(places) - 1))]
        holder = document
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(("replace", "replace", "remove", "add", "double"))):
            case "replace":
                holder[key] = copy.deepcopy(draw(st.sampled_from(values)))
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(("unheard-of", "", "a b", "0", "\ud83d")))] = copy.deepcopy(draw(st.sampled_from(values)))
            case "double" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
    return document


def as_json(document: Any, **how: Any) -> bytes:
    """The document as JSON, as Python writes it (NaN and halves of characters included), the stand-ins filled."""
    text = json.dumps(document, **how)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


@st.composite
def damaged(draw: DrawFn, whole: SearchStrategy[bytes]) -> bytes:
    """Bytes as they were, or (one time in four) cut, or with a few bytes in the place of others."""
    data = draw(whole)
    if draw(st.integers(0, 3)) < 3:
        return data
    first = draw(st.integers(0, len(data)))
    if draw(st.booleans()):
        return data[:first]
    return data[:first] + draw(st.sampled_from(_BYTES)) + data[first + draw(st.integers(0, 3)) :]


def json_files(valid: Any, values: Sequence[Any] = VALUES) -> SearchStrategy[bytes]:
    """The bytes of a file that holds one JSON document."""
    return damaged(documents(valid, values).map(as_json))


def json_lines(valid: Sequence[Any], values: Sequence[Any] = VALUES) -> SearchStrategy[bytes]:
    """The bytes of a file with a JSON document a line."""
    return damaged(documents(list(valid), values).map(lambda lines: b"".join(as_json(line) + b"\n" for line in lines)))
