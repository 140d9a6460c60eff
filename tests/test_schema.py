"""The JSON schemas say of recipes and sweeps what the models say: every key, no other, and the types of
values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from paw_hpc.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, read_yaml
from paw_hpc.recipe.schema import recipe_schema, sweep_schema
from tests.recipe_files import RECIPES, SWEEPS

RECIPE, SWEEP = (jsonschema.Draft202012Validator(schema) for schema in (recipe_schema(), sweep_schema()))


def errors(validator: Any, content: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator.iter_errors(content)
    ]


def test_they_are_schemas() -> None:
    for validator in (RECIPE, SWEEP):
        validator.check_schema(validator.schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_recipe_is_valid_as_written_and_resolved(path: Path, tmp_path: Path) -> None:
    assert not errors(RECIPE, read_yaml(path))
    (tmp_path / "resolved.yaml").write_text(dump_recipe(load_recipe(path)))
    assert not errors(RECIPE, read_yaml(tmp_path / "resolved.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    assert not errors(SWEEP, read_yaml(path))
    assert errors(RECIPE, read_yaml(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"wm": {"alfa": 0.5}}, "'alfa' was unexpected"),
        ({"updats": 3}, "'updats' was unexpected"),
        ({"updates": "many"}, "updates: 'many' is not valid"),
        ({"updates": 0}, "updates: 0 is not valid"),
        ({"wm": {"alpha": 1.5}}, "wm.alpha: 1.5 is not valid"),
        ({"algorithm": {"name": "gppo"}}, "algorithm.name: 'gppo' is not valid"),
        ({"env": {"task_types": ["clean"]}}, "env.task_types: ['clean'] is not valid"),
        ({"wm": 3}, "wm: 3 is not of type 'object'"),
    ],
)
def test_what_loading_refuses_is_refused(content: dict[str, Any], said: str) -> None:
    assert any(said in error for error in errors(RECIPE, content)), errors(RECIPE, content)
    with pytest.raises(Exception, match=r"."):
        parse_recipe({"model": {"path": "warm-start"}, **content})


@pytest.mark.parametrize(
    "content",
    [
        {"base": "../quickstart.yaml"},
        {"optimizer": {"lr": "${env.invalid_penalty}"}},
        {"optimizer": {"lr": 1e-6}},
        {},
    ],
)
def test_what_a_file_may_say_beyond_the_models(content: dict[str, Any]) -> None:
    assert not errors(RECIPE, content)


def test_it_has_the_models_keys_with_their_documentation() -> None:
    schema = recipe_schema()

    def walk(model: type[BaseModel], properties: dict[str, Any], where: str) -> None:
        assert properties.keys() - {"base"} == model.model_fields.keys(), where
        for name, field in model.model_fields.items():
            found = [
                a
                for a in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            for section in found:
                walk(section, schema["$defs"][section.__name__]["properties"], f"{where}{name}.")
            if field.description and not found:
                assert properties[name]["description"], f"{where}{name}"

    walk(Recipe, schema["properties"], "")
    assert "eq. 9" in schema["$defs"]["WorldModelSection"]["properties"]["rho"]["description"]
