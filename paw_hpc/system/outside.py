"""Data that another program wrote: read so that whatever is wrong with it is a ValueError, and of the types
that it should have."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_json(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, no UTF-8, has a number of thousands of digits, or is nested more deeply than
            Python can hold.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(kind: type[T], value: Any) -> T:
    """A JSON value as a dataclass, a TypedDict, or a list or mapping of these: lists become tuples where
    tuples are declared, and keys that are not declared are left out.

    Raises:
        ValueError: something is missing or of another type; the message names the first such field.
    """
    try:
        return cast(T, _adapter(cast(Hashable, kind)).validate_python(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
    except (RecursionError, OverflowError):
        raise ValueError("nested too deeply, or a number beyond all bounds") from None


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
