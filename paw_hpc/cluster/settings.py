"""A recipe with the user's own cluster settings: recipe < sweep < ~/.config/paw/cluster.yaml < command
line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from paw_hpc.recipe import ClusterSection, Recipe, load_recipe, read_yaml
from paw_hpc.system.errors import RecipeError


def user_file() -> Path:
    """$PAW_CLUSTER_CONFIG, else cluster.yaml in the user's configuration folder."""
    chosen = os.environ.get("PAW_CLUSTER_CONFIG")
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(chosen if chosen else f"{base}/paw/cluster.yaml").expanduser()


def load_for_cluster(path: Path, overrides: Sequence[str] = (), *, variant: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with what a sweep sets in it (`variant`), then the keys of `cluster:` in the
    user's file, then the overrides.

    Raises:
        RecipeError: see `load_recipe`; keys of the user's file are checked alike, and the file is named.
    """
    return load_recipe(path, [*variant, *_from_user_file(), *overrides])


def _from_user_file() -> list[str]:
    file = user_file()
    if not file.is_file():
        return []
    try:
        content = read_yaml(file)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"{file}: expected the keys of a recipe's cluster section, such as `partition: gpu`"
        )
    _check(file, content)
    # JSON is YAML: lists and mappings keep their types
    return [f"cluster.{key}={json.dumps(value)}" for key, value in content.items()]


def _check(file: Path, content: object) -> None:
    try:
        ClusterSection.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(ClusterSection.model_fields)
        why = (
            f"unknown key; known: {known}"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        raise RecipeError(": ".join(part for part in (str(file), key, why) if part)) from None
