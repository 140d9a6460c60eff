"""The keys of a recipe as tables of a page, from the models that read them: key, values, default, and the sentence it is declared with."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from paw_hpc.recipe import Recipe


@functools.cache
def tables() -> dict[str, str]:
    """Section -> its table in Markdown; `recipe` are the keys that stand in no section, `rollout.fleet` is a section within another."""
    schema = Recipe.model_json_schema()
    return dict(_tables("", schema, schema["$defs"]))


def _tables(path: str, section: dict[str, Any], named: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows, inner = [], []
    for key, value in section["properties"].items():
        below = _section_of(value, named)
        if below is None:
            rows.append(f"| `{key}` | {_values(value)} | {_shown(value.get('default'))} | {_plain(value.get('description', ''))} |")
        else:
            inner.append((f"{path}.{key}".lstrip("."), below))
    if rows:
        yield path or "recipe", "\n".join(["| key | values | default | |", "|---|---|---|---|", *rows])
    for name, below in inner:
        yield from _tables(name, below, named)


def _section_of(value: dict[str, Any], named: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key holds, required or not; None for a key with a value of its own."""
    for one in (value, *value.get("anyOf", ())):
        if "$ref" in one:
            return named[one["$ref"].rpartition("/")[2]]
    return None


def _plain(text: str) -> str:
    """One line of a cell, in which tags such as <think> are words."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _values(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join("none" if one.get("type") == "null" else _values(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = {"array": "list", "boolean": "true, false", "object": "mapping", "string": "text"}.get(value["type"], value["type"])
    if value["type"] == "array":
        of = _values(value["items"]) if "items" in value else " and ".join(_values(one) for one in value["prefixItems"])
        return f"list of {of}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([kind, *(f"{sign} {value[bound]:g}" for bound, sign in bounds.items() if bound in value)])


def _shown(default: Any) -> str:
    return "" if default is None or default == [] or default == {} else f"`{json.dumps(default)}`".replace('"', "")
