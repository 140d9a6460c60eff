"""Recipes read and written: a file, its chain of bases and overrides; what is refused is said in one line, with what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from paw_hpc.errors import RecipeError
from paw_hpc.recipe.experiment import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, its chain of bases, and `key.path=value` overrides.

    Raises:
        RecipeError: unknown key, wrong type, impossible combination, unreadable file or circular base; one line, naming file and key.
    """
    chain, changes = _read_chain(Path(path), ()), _parse_overrides(overrides)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(chain, changes), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from None
    return parse_recipe(merged, where=str(path))


def parse_recipe(data: Any, where: str = "recipe") -> Recipe:
    """Validate a plain mapping. Raises RecipeError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Any:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: its chain of `base:` leads back to itself")
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, found {type(config).__name__}")
    base = config.pop("base", None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: expected the path of another recipe, got {base!r}")
    return OmegaConf.merge(_read_chain(path.parent / base, (*seen, path.resolve())), config)


def _parse_overrides(overrides: Sequence[str]) -> Any:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise RecipeError(f"override '{item}': expected key.path=value, for example optimizer.lr=2e-6")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"overrides: {' '.join(str(error).split())}") from None


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_section_at(error["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{'.'.join([*map(str, error['loc'][:-1]), close[0]])}'?" if close else f"known keys here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, got {error['input']!r}" if path else message


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in loc:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return section
