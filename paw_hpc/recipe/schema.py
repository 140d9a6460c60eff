"""JSON schemas (draft 2020-12) of recipes and sweeps, from the models that read them: editors complete keys
and check values by them."""

from __future__ import annotations

import re
from typing import Any

from paw_hpc.recipe.experiment import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {
    "type": "string",
    "pattern": r"\$\{[^}]+\}",
    "description": "The value of another key of the recipe.",
}


def recipe_schema() -> dict[str, Any]:
    """Of a recipe's file. It may also name a `base`, and any value may be `${another.key}`; what combinations
    are refused, only loading says."""
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        if "properties" in section:
            section["properties"] = {
                key: _or_reference(value) for key, value in section["properties"].items()
            }
    base = {
        "type": "string",
        "description": "Path of the recipe that this one builds on, from this file's folder.",
    }
    schema["properties"] = {"base": base, **schema["properties"]}
    return {"$schema": DIALECT, **schema, "title": "A recipe of paw_hpc"}


def sweep_schema() -> dict[str, Any]:
    """Of a sweep's file. Which axes and words there are stands in its file of choices."""
    words = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    properties = {
        "sweep": {"type": "string", "description": "Its own name; this key makes a file a sweep."},
        "choices": {
            "type": "string",
            "description": "The file that says what the words stand for, from this file's folder.",
        },
        "name": {"type": "string", "description": "Of each run, with axes in braces."},
        "seeds": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        "runs": {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": words}},
    }
    required, title = list(properties), "A sweep of paw_hpc"
    return {
        "$schema": DIALECT,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "title": title,
    }


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a key, which may also be a reference. Sections are left as they are: a reference stands
    for a value."""
    if "$ref" in schema or not _is_value(schema):
        return schema
    outer: dict[str, Any] = {key: schema[key] for key in ("description", "default", "title") if key in schema}
    if "description" in outer:
        outer["description"] = re.sub(r"\s+", " ", outer["description"])
    return {**outer, "anyOf": [{key: value for key, value in schema.items() if key not in outer}, _REFERENCE]}


def _is_value(schema: dict[str, Any]) -> bool:
    free = schema.get("type") in ("string", "object") and not schema.keys() & {"enum", "pattern"}
    return bool(schema.keys() & {"type", "enum", "const", "anyOf"}) and not free
