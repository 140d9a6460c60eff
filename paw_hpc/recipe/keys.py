"""The keys of a recipe as rows, from the models that read them: key, values, default, and the sentence it is
declared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paw_hpc.recipe.experiment import Recipe


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key of a recipe."""

    section: str
    """Dotted path of its section; empty for the keys that stand in none."""
    key: str
    values: str
    """What it takes, names in backticks."""
    default: str
    about: str

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}".lstrip(".")


def key_rows() -> Iterator[KeyRow]:
    """Every key, section by section in the order of the models; a section's own keys before those of the
    sections within it."""
    schema = Recipe.model_json_schema()
    return _rows("", schema, schema["$defs"])


def _rows(path: str, section: dict[str, Any], named: dict[str, Any]) -> Iterator[KeyRow]:
    inner = []
    for key, value in section["properties"].items():
        below = _section_of(value, named)
        if below is None:
            yield KeyRow(
                path,
                key,
                _values(value),
                _shown(value.get("default")),
                " ".join(value.get("description", "").split()),
            )
        else:
            inner.append((f"{path}.{key}".lstrip("."), below))
    for name, below in inner:
        yield from _rows(name, below, named)


def _section_of(value: dict[str, Any], named: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key holds, required or not; None for a key with a value of its own."""
    for one in (value, *value.get("anyOf", ())):
        if "$ref" in one:
            return named[one["$ref"].rpartition("/")[2]]
    return None


def _values(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join("none" if one.get("type") == "null" else _values(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = {"array": "list", "boolean": "true, false", "object": "mapping", "string": "text"}.get(
        value["type"], value["type"]
    )
    if value["type"] == "array":
        of = (
            _values(value["items"])
            if "items" in value
            else " and ".join(_values(one) for one in value["prefixItems"])
        )
        return f"list of {of}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(
        [kind, *(f"{sign} {value[bound]:g}" for bound, sign in bounds.items() if bound in value)]
    )


def _shown(default: Any) -> str:
    return (
        ""
        if default is None or default == [] or default == {}
        else f"`{json.dumps(default)}`".replace('"', "")
    )
