"""Sweeps: many runs in one short file. A run of a sweep is a recipe with a few keys set, and nothing that a
command line could not say.

    sweep: ablation                                    # its own name; this key makes a file a sweep
    choices: choices.yaml                              # what the words below stand for
    name: "{benchmark}-{model}-{algorithm}-{arm}"      # of each run
    seeds: [0, 1, 2]
    runs:                            # an entry is a product: here 2 x 1 x 1 x 4 x 1 runs, three seeds each
      - benchmark: [alfworld, webshop]
        model: qwen2.5-1.5b
        algorithm: grpo
        arm: [vanilla, paw, lambda-1, ce-lambda]
        hardware: 2-gpus

The file of choices says for every word of every axis which keys of a recipe it sets; one of them names the
recipe (`base`), whose path may hold words of other axes: with `base: ../alfworld/{protocol}.yaml` a run of
`protocol: ours` is one of ../alfworld/ours.yaml. Words of two axes must not set the same key, so the order of
axes means nothing. An entry may have a `name` of its own, where its runs have axes that others lack.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeInt, ValidationError
from yaml import YAMLError

from paw_hpc.recipe import Section, read_yaml
from paw_hpc.system.errors import RecipeError

MOST_RUNS = 10_000
"""Of a sweep, seeds not counted."""
_KEY = "sweep"
_NAME = "name"
Fragment = Mapping[str, Any]
"""Keys of a recipe, nested as in one, and perhaps `base`."""


class _SweepFile(Section):
    sweep: str
    choices: str
    name: str
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    runs: Annotated[tuple[dict[str, str | tuple[str, ...]], ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of a sweep, with any seed."""

    name: str
    base: Path
    """The recipe file."""
    changes: tuple[str, ...]
    """`key.path=value` for each key that the sweep sets, its name among them."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep's file says."""

    name: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    """In the order of the file; names differ."""


def is_sweep(path: Path) -> bool:
    """Whether a file is a sweep and no recipe. False for what cannot be read: reading it as a recipe says
    why."""
    try:
        content = read_yaml(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return False
    return isinstance(content, dict) and _KEY in content


def load_sweep(path: Path, words: Sequence[str] = ()) -> Sweep:
    """Every run of a sweep's file.

    Args:
        words: `axis=word` or `axis=word,word`, in the place of what the file says of that axis, in every
            entry that has it.

    Raises:
        RecipeError: an unknown key, axis or word, two words that set one key, two runs of one name, a base
            that cannot be filled; one line that names the file.
    """
    try:
        said = _SweepFile.model_validate(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    source = path.parent / said.choices
    choices = _read(source)
    _check_size(path, said, words)
    variants = [
        _variant(path, name, chosen, choices, source)
        for name, entry in _entries(path, said, words)
        for chosen in _product(path, entry, choices, source)
    ]
    names = Counter(variant.name for variant in variants)
    if twice := [name for name, count in names.items() if count > 1]:
        raise RecipeError(
            f"{path}: name: two runs are called '{twice[0]}'; let `name` have every axis in which they "
            "differ, or drop one"
        )
    return Sweep(said.sweep, said.seeds, tuple(variants))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _check_size(path: Path, said: _SweepFile, words: Sequence[str]) -> None:
    """Before the runs are listed: nine axes of nine words are 387 million."""
    count = sum(
        math.prod(len(_words(listed)) for listed in entry.values())
        for _, entry in _entries(path, said, words)
    )
    if count > MOST_RUNS:
        raise RecipeError(
            f"{path}: runs: {count} runs; a sweep has at most {MOST_RUNS}: leave out words, or make "
            "several sweeps of it"
        )


def _entries(
    path: Path, said: _SweepFile, words: Sequence[str]
) -> list[tuple[str, dict[str, str | tuple[str, ...]]]]:
    """(template of names, axis -> its words) of every entry, with the words that replace the file's."""
    replaced = dict[str, tuple[str, ...]]()
    for item in words:
        axis, equals, listed = item.partition("=")
        chosen = tuple(word for word in listed.split(",") if word)
        if not (axis and equals and chosen):
            raise RecipeError(f"--words {item}: expected AXIS=WORD[,WORD], for example protocol=ours")
        replaced[axis] = chosen
    if unknown := replaced.keys() - {axis for entry in said.runs for axis in entry if axis != _NAME}:
        raise RecipeError(
            f"{path}: --words {min(unknown)}: no run has this axis; it can only replace what the file says"
        )
    found = []
    for entry in said.runs:
        name = entry.get(_NAME, said.name)
        if not isinstance(name, str):
            raise RecipeError(f"{path}: runs: name: a template of names, not a list of words")
        found.append(
            (name, {axis: replaced.get(axis, listed) for axis, listed in entry.items() if axis != _NAME})
        )
    return found


def _product(
    path: Path, entry: Mapping[str, str | tuple[str, ...]], choices: Mapping[str, Any], source: Path
) -> list[dict[str, str]]:
    """axis -> word, for every combination that an entry stands for."""
    for axis, said in entry.items():
        known = choices.get(axis)
        if not isinstance(known, dict):
            raise RecipeError(f"{path}: runs: no axis '{axis}' in {source}{_close(axis, choices)}")
        known = {str(word): keys for word, keys in known.items()}
        for word in _words(said):
            if not isinstance(known.get(word), dict):
                raise RecipeError(f"{path}: runs: no {axis} '{word}' in {source}{_close(word, known)}")
    return [
        dict(zip(entry, chosen, strict=True)) for chosen in itertools.product(*map(_words, entry.values()))
    ]


def _words(said: str | tuple[str, ...]) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else said


def _close(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known := list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(known)}"


def _variant(
    path: Path, template: str, words: dict[str, str], choices: Mapping[str, Any], source: Path
) -> Variant:
    name = _filled(template, words, f"{path}: name", "{benchmark}-{model}")
    base, changes, owner = None, [f"name={json.dumps(name)}"], {"name": "name"}
    for axis, word in words.items():
        for key, value in _leaves(choices[axis][word]):
            if key in owner:
                raise RecipeError(
                    f"{path}: {name}: {key} is set by {owner[key]} and by {axis} '{word}' in {source}; one "
                    "of them must leave it out"
                )
            owner[key] = f"{axis} '{word}'"
            if key == "base":
                base = source.parent / _filled(
                    str(value),
                    words,
                    f"{path}: {name}: base of {axis} '{word}' in {source}",
                    "../alfworld/{protocol}.yaml",
                )
            else:
                changes.append(f"{key}={json.dumps(value)}")  # JSON is YAML: values keep their types
    if base is None:
        raise RecipeError(
            f"{path}: {name}: none of its words names a recipe; one axis in {source} needs `base: FILE`"
        )
    return Variant(name, base, tuple(changes))


def _filled(template: str, words: Mapping[str, str], where: str, example: str) -> str:
    """A template with a run's words in the places of their axes."""
    try:
        fields = [
            (field, bool(form or conversion))
            for _, field, form, conversion in string.Formatter().parse(template)
            if field is not None
        ]
    except ValueError as error:
        raise RecipeError(f"{where}: {error}; write it like {example}") from None
    if unknown := [field for field, changed in fields if changed or field not in words]:
        raise RecipeError(
            f"{where}: '{unknown[0]}' is no axis of every run; those of one are {', '.join(words)}"
        )
    return template.format(**words)


def _leaves(fragment: Fragment, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is no mapping."""
    found: list[tuple[str, Any]] = []
    for key, value in fragment.items():
        found += (
            _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
        )
    return found
