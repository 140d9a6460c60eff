"""`--json`: what a command found as one JSON object, for scripts that should not have to read tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]


def print_json(value: Any) -> None:
    """One line on standard output: dataclasses as objects, paths as text, what is no number as null."""
    print(json.dumps(plain(value), allow_nan=False))


def plain(value: Any) -> Any:
    """The value in JSON's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(content) for content in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
