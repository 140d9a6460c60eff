"""Every key of a recipe with values that it takes, found from the models themselves, so that a new key is
never forgotten."""

from __future__ import annotations

import functools
import random
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.recipe.doors import Choice
from paw_hpc.system.errors import RecipeError

NASTY = (
    "${VAR}", "${HOME:-/x} $USER $(date) ${#a[@]} ${a.b}", "\\${x}", "\\\\${x}\\", "${", "a\\", "???", "null", "yes", "1e5", "0x1f", "~", " x ", "",
    "#: -", "'\"", "é\u2028\ue000{", "\ue000 \u2028 ${x}", "\\uE000{", "a\nb\n", "2026-01-01", "[1, 2]", "{a: 1}", "%d {name}", "\t", "-", "=", "<<",
)  # fmt: skip
"""Texts that YAML, OmegaConf or a shell might take for something else."""
_NUMBERS = (0, 1, 2, 3, 4, 5, 8, 7, 64, 1000, 0.25, 0.9, 0.5, 1.5, 3.0, 1e-7)
PLUGGED: Mapping[str, Mapping[str, Any]] = {
    "algorithm": {"algorithm": {"name": "plugged"}},
    "wm": {"wm": {"loss": "plugged"}},
    "env": {"env": {"name": "plugged"}},
    "rollout": {"rollout": {"engine": "plugged"}},
}
"""Section -> what chooses the entry of tests/plugged.py there."""
START: Mapping[str, Any] = {"model": {"path": "some/model"}}
TOGETHER: dict[str, Mapping[str, Any]] = {
    "algorithm.token_gamma": {"algorithm": {"name": "ppo", "ppo_advantages": "tokens"}},
    "algorithm.token_lambda": {"algorithm": {"name": "ppo", "ppo_advantages": "tokens"}},
    **{
        f"{section}.options": {"plugins": [str(Path(__file__).with_name("plugged.py"))], **chosen}
        for section, chosen in PLUGGED.items()
    },
    "model.tiny": {"model": {"path": None, "tokenizer": "words"}},
    "rollout.staleness": {"rollout": {"engine": "sglang"}, "algorithm": {"truncated_importance": 2.0}},
    "rollout.fleet.key_file": {"rollout": {"engine": "sglang", "fleet": {"addresses": ["http://a:1"]}}},
    "megatron.sequence_parallel": {"megatron": {"tensor_parallel": 2}},
    "megatron.virtual_pipeline": {"megatron": {"pipeline_parallel": 2}},
    "megatron.overlap_param_gather": {"megatron": {"overlap_grad_reduce": True}},
    "cluster.trainer_gpus": {"cluster": {"gpus_per_node": 8}},
    "cluster.container": {"cluster": {"container": {"image": "image.sif"}}},
    "env.webshop": {"env": {"name": "webshop"}},
    "env.search": {"env": {"name": "search"}},
    "env.search.url": {"env": {"name": "search", "search": {"retriever": "http", "url": "http://a:1"}}},
    "env.search.key_file": {"env": {"name": "search", "search": {"retriever": "http", "url": "http://a:1"}}},
    "env.search.retriever": {"env": {"name": "search"}, "cluster": {"retriever_node": True}},
}
"""What else must be set for a key (or any below it) to have a value other than its default."""


def leaves(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, annotation) of every key that is no section itself."""
    for name, field in model.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        section = next(
            (part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None
        )
        if section is None:
            choice = next((item for item in field.metadata if isinstance(item, Choice)), None)
            yield prefix + name, field.annotation if choice is None else Literal[choice.registry.names()]
        else:
            yield from leaves(section, f"{prefix}{name}.")


KEYS = dict(leaves())


def candidates(annotation: Any, draw: random.Random) -> list[Any]:
    """Values of this type, in a random order; not all need be allowed."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        found: list[Any] = list(arguments)
    elif origin in (typing.Union, types.UnionType):
        found = [value for part in arguments for value in candidates(part, draw)]
    elif origin is typing.Annotated:
        return candidates(arguments[0], draw)
    elif origin is tuple:
        parts = [part for part in arguments if part is not Ellipsis]
        options = [candidates(part, draw) for part in parts]
        found = [[draw.choice(each) for each in options] for _ in range(40)]
        found += [
            [draw.choice(options[0]) for _ in range(length)] for length in (0, 1, 2) if Ellipsis in arguments
        ]
    elif origin is dict and arguments[1] is Any:  # options of an entry that a plugin brings
        found = [{"beta": number} for number in _NUMBERS]
    elif origin is dict:
        found = [
            {draw.choice(("A", "a-b", "${k}")): draw.choice(candidates(arguments[1], draw))} for _ in range(5)
        ]
    else:
        texts = [*NASTY, "a", "HOST:/x", "http://a:1", "valid_seen:3@1", "valid_unseen", "run-1"]
        whole = [n for n in _NUMBERS if isinstance(n, int)]
        found = list(
            {bool: [True, False], int: whole, float: _NUMBERS, str: texts, type(None): [None]}[annotation]
        )
    draw.shuffle(found)
    return found


def set_key(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one dotted key set."""
    head, _, rest = key.partition(".")
    return {**data, head: set_key(data.get(head) or {}, rest, value) if rest else value}


def get_key(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key in JSON's types; None below a section that is not there."""
    return functools.reduce(
        lambda tree, part: None if tree is None else tree[part],
        key.split("."),
        recipe.model_dump(mode="json"),
    )


def parsed(data: Mapping[str, Any]) -> Recipe | None:
    """The recipe, or None where it is refused."""
    try:
        return parse_recipe(data)
    except RecipeError:
        return None


def together(key: str) -> dict[str, Any]:
    """`START` and what else this key needs."""
    data = dict(START)
    for name, sections in TOGETHER.items():
        if key == name or key.startswith(f"{name}."):
            for section, values in sections.items():
                data[section] = {**data.get(section, {}), **values} if isinstance(values, Mapping) else values
    return data


GIVEN: Mapping[str, list[Any]] = {"plugins": [[], [str(Path(__file__).with_name("plugged.py"))]]}
"""Keys whose values no draw would hit."""


def changed(key: str) -> tuple[Recipe, Recipe]:
    """Two recipes that differ in this key alone."""
    draw, data = random.Random(key), together(key)
    values = GIVEN.get(key)
    for value in values or candidates(KEYS[key], draw):
        a = parsed(set_key(data, key, value))
        if a is None:
            continue
        for other in values or candidates(KEYS[key], draw):
            b = parsed(set_key(data, key, other))
            if b is not None and get_key(a, key) != get_key(b, key):
                return a, b
    raise AssertionError(
        f"{key}: no two values found that a recipe takes; say in TOGETHER what else it needs"
    )


def random_recipe(seed: int) -> tuple[Recipe, set[str]]:
    """A valid recipe, a third of whose keys were drawn anew (that of number `seed` first of all), and which
    ones."""
    draw, first = random.Random(seed), list(KEYS)[seed % len(KEYS)]
    data, chosen = together(first), set()
    for key in (first, *draw.sample(list(KEYS), len(KEYS) // 3)):
        for value in candidates(KEYS[key], draw):
            if parsed(attempt := set_key(data, key, value)) is not None:
                data, _ = attempt, chosen.add(key)
                break
    return parse_recipe(data), chosen
