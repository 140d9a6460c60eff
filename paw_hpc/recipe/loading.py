"""Recipes read and written: a file, its chain of bases and overrides; what is refused is said in one line,
with what would be right.

`${key.path}` in a text stands for another key of the recipe (OmegaConf's interpolation, `\\${` for the
characters themselves), but not in the section `cluster`: its texts are for a shell, in which `${...}` is a
variable, and are taken as they are.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from paw_hpc.recipe.bounds import bounded_yaml, check_expansion, check_yaml, errors_of_yaml, read_bounded
from paw_hpc.recipe.experiment import Recipe
from paw_hpc.system.errors import RecipeError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, its chain of bases, and `key.path=value` overrides.

    Raises:
        RecipeError: unknown key, wrong type, impossible combination, unreadable file or circular base; one
            line, naming file and key.
    """
    (chain, cluster), (changes, cluster_changes) = _read_chain(Path(path), ()), _parse_overrides(overrides)
    try:
        with errors_of_yaml():
            merged: Any = _resolved(OmegaConf.merge(chain, changes))
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: {_said(error)}") from None
    return parse_recipe(merged | _merged(cluster, cluster_changes), where=str(path))


def parse_recipe(data: Any, where: str = "recipe") -> Recipe:
    """Validate a plain mapping. Raises RecipeError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(explain(e) for e in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    data = recipe.model_dump(mode="json")
    cluster = {_CLUSTER: data.pop(_CLUSTER)}
    mark = _mark(json.dumps(cluster, ensure_ascii=False))
    return OmegaConf.to_yaml(OmegaConf.create(_each_text(data, _escaped))) + OmegaConf.to_yaml(
        OmegaConf.create(_each_text(cluster, lambda text: text.replace("$", mark)))
    ).replace(mark, "$")


def read_yaml(path: Path) -> Any:
    """What a YAML file says, every `${...}` as it is written: mappings, lists, texts, numbers.

    Raises:
        OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException: it is no such file, or one that would
            take more than a recipe's share of memory.
    """
    text = read_bounded(path)
    mark = _mark(text)
    with bounded_yaml(text):
        loaded = OmegaConf.load(io.StringIO(text.replace("$", mark)))
        return _each_text(OmegaConf.to_container(loaded), lambda found: found.replace(mark, "$"))


_CLUSTER = "cluster"
LONGEST_CHAIN = 20
"""Files of a chain of `base:`."""
Layer = tuple[Any, dict[str, Any]]
"""(OmegaConf's tree of everything but `cluster`, {"cluster": ...} as it is or nothing)."""


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Layer:
    if len(seen) > LONGEST_CHAIN:
        raise RecipeError(
            f"{path}: its chain of `base:` has more than {LONGEST_CHAIN} files; put some of them together"
        )
    try:
        if path.resolve() in seen:
            raise RecipeError(f"{path}: its chain of `base:` leads back to itself")
        found = read_yaml(path)
        if not isinstance(found, dict):
            raise RecipeError(f"{path}: a recipe is a mapping of keys, found a {type(found).__name__}")
        base, cluster = found.pop("base", None), {key: found.pop(key) for key in (_CLUSTER,) if key in found}
        with errors_of_yaml():
            config = OmegaConf.create(found)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
        YAMLError,
        OmegaConfBaseException,
    ) as error:  # RuntimeError: a link to itself; ValueError: a path
        raise RecipeError(f"{path}: cannot be read as YAML: {_said(error)}") from None
    if base is None:
        return config, cluster
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: expected the path of another recipe, got {base!r}")
    below, cluster_below = _read_chain(path.parent / base, (*seen, path.resolve()))
    try:
        with errors_of_yaml():
            return OmegaConf.merge(below, config), _merged(cluster_below, cluster)
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: {_said(error)}") from None


def _resolved(config: Any) -> Any:
    """With the values of `${...}` in their places."""
    check_expansion(OmegaConf.to_container(config))
    return OmegaConf.to_container(config, resolve=True)


def _parse_overrides(overrides: Sequence[str]) -> Layer:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise RecipeError(f"override '{item}': expected key.path=value, for example optimizer.lr=2e-6")
    own = [item for item in overrides if re.split(r"[.=\[]", item)[0] == _CLUSTER]
    mark = _mark("".join(own))
    try:
        for item in overrides:
            check_yaml(item.partition("=")[2])
        with errors_of_yaml():
            cluster: Any = OmegaConf.to_container(
                OmegaConf.from_dotlist([item.replace("$", mark) for item in own])
            )
            return OmegaConf.from_dotlist([item for item in overrides if item not in own]), _each_text(
                cluster, lambda text: text.replace(mark, "$")
            )
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"overrides: {_said(error)}") from None


def _merged(below: Any, above: Any) -> Any:
    """As OmegaConf merges: mapping into mapping, anything else in the place of what was there."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _mark(text: str) -> str:
    """A character that the text does not hold, nor spells by its number: it stands for the dollar while
    OmegaConf reads what is not its own."""
    lowered = text.lower()
    mark = next(
        (
            mark
            for mark in map(chr, range(0xE000, 0xF900))
            if mark not in text and f"{ord(mark):x}" not in lowered
        ),
        None,
    )
    if mark is None:
        raise YAMLError("it holds every character of Unicode's private area")
    return mark


def _each_text(tree: Any, change: Callable[[str], str]) -> Any:
    """The same tree with every text in it changed, keys too."""
    if isinstance(tree, dict):
        return {
            change(key) if isinstance(key, str) else key: _each_text(value, change)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [_each_text(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def _escaped(text: str) -> str:
    """The text that OmegaConf resolves to this one."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (InterpolationResolutionError, GrammarParseError)):
        text += (
            "; ${...} stands for another key of the recipe: write \\${...} for the characters "
            "themselves (in `cluster` they need nothing)"
        )
    return text


def explain(error: Any, model: type[BaseModel] = Recipe) -> str:
    """One of pydantic's errors (`ValidationError.errors()`) on a section as a sentence: key, what is wrong,
    what would be right."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_section_at(error["loc"][:-1], model).model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = (
            f"did you mean '{'.'.join([*map(str, error['loc'][:-1]), close[0]])}'?"
            if close
            else f"known keys here: {', '.join(known)}"
        )
        return f"{path}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, got {error['input']!r}" if path else message


def _section_at(loc: tuple[int | str, ...], section: type[BaseModel]) -> type[BaseModel]:
    for part in loc:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return section
