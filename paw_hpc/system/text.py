"""Strings that are no text: halves of a character ("lone surrogates"), which JSON can spell and no UTF-8
file, tokenizer or terminal can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_mended: list[None] = []
"""One for each; adding to a list is safe in any thread."""


def require_text(value: Any, field: str = "") -> None:
    """Raises ValueError where a string anywhere in a JSON value is no text; the message says in which field
    of it, at which character. (And where the value is nested more deeply than can be looked through.)

    Args:
        field: how the message calls the value itself.
    """
    try:
        for where, string in _strings(value, field):
            try:
                string.encode()
            except UnicodeEncodeError as error:
                half = ascii(string[error.start]).strip("'")
                raise ValueError(
                    f"{ascii(where or 'it')[1:-1]} holds half a character, {half}, at character "
                    f"{error.start + 1}: it is no text"
                ) from None
    except RecursionError:
        raise ValueError(f"{field or 'it'} is nested too deeply") from None


def well_formed(text: str) -> str:
    """The text with a replacement character (U+FFFD) for every half of one. What had to be mended is counted
    (`mended`)."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        _mended.append(None)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def mended() -> int:
    """Texts that `well_formed` had to mend in this process so far."""
    return len(_mended)


def _strings(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """(where, string) of all strings that are not plain ASCII, keys included."""
    if isinstance(value, str):
        if not value.isascii():
            yield field, value
    elif isinstance(value, Mapping):
        for key, content in value.items():
            inside = f"{field}.{key}" if field else str(key)
            yield from _strings(key, inside)
            yield from _strings(content, inside)
    elif isinstance(value, list | tuple):
        for number, content in enumerate(value):
            yield from _strings(content, f"{field}[{number}]")
