"""What a YAML file may cost: a few bytes of it can stand for gigabytes, and a mistake in it can be an error
of any kind."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

MOST_BYTES = 1 << 20
"""Of a file."""
DEEPEST, MOST_VALUES = 40, 50_000
"""Levels of mappings and lists; keys and values, with everything that aliases repeat (a text counts once for
every 64 characters)."""
MOST_CHARACTERS = 1_000_000
"""Of all texts, once every `${...}` is replaced."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_NESTED = re.compile(r"\$\{[^{}]*\$\{")
_WORD = re.compile(r"\.*[^\s:,'\"\[\]{}.]+(?:\.[^\s:,'\"\[\]{}.]+)*")


def read_bounded(path: Path) -> str:
    """The text of a file. Raises OSError, UnicodeDecodeError, or YAMLError where it is no plain file, or a
    long one."""
    facts = path.stat()
    # reading a pipe or a device may never end
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise YAMLError("it is no plain file")
    if facts.st_size > MOST_BYTES:
        raise YAMLError(f"it has {facts.st_size} bytes, and a recipe has at most {MOST_BYTES}")
    return path.read_text(encoding="utf-8")


@contextmanager
def bounded_yaml(text: str) -> Iterator[None]:
    """Inside, a text that was looked at by `check_yaml` may be loaded, and whatever is wrong with it is a
    YAMLError."""
    check_yaml(text)
    with errors_of_yaml():
        yield


@contextmanager
def errors_of_yaml() -> Iterator[None]:
    """Inside, the errors of Python that a value in YAML can lead to (a number of 5,000 digits, `!!timestamp
    2001-99-99`) become YAMLErrors."""
    try:
        yield
    except (YAMLError, OmegaConfBaseException):
        raise  # some of these are ValueErrors, too
    except RecursionError:
        raise YAMLError("it refers to itself, or is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise YAMLError(f"{type(error).__name__}: {error}") from None


def check_yaml(text: str) -> None:
    """Raises YAMLError for no YAML, and for what is larger or deeper than any recipe once its aliases are
    written out."""
    open_: list[list[Any]] = [[None, 0]]  # [anchor, values in it] of everything that has begun
    sizes: dict[str, int] = {}
    with errors_of_yaml():
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append([event.anchor, 1])
                if len(open_) > DEEPEST:
                    raise YAMLError(f"it is nested more than {DEEPEST - 1} levels deep")
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_.pop()
            elif isinstance(event, yaml.ScalarEvent):
                anchor, size = event.anchor, 1 + len(event.value) // 64
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise YAMLError(f"*{event.anchor} stands inside of what it names, or names nothing")
                anchor, size = None, sizes[event.anchor]
            else:
                continue
            if anchor is not None:
                sizes[anchor] = size
            open_[-1][1] += size
            if open_[-1][1] > MOST_VALUES:
                raise YAMLError(f"it holds more than {MOST_VALUES} values, aliases written out")


def check_expansion(tree: Any) -> None:
    """Raises YAMLError where the texts of a tree would be longer than MOST_CHARACTERS with every `${key}`
    replaced, or one is inside another."""
    texts = dict(_texts(tree))
    if not any("${" in text for text in texts.values()):
        return
    for key, text in texts.items():
        if _NESTED.search(text):
            raise YAMLError(f"{key}: a ${{...}} inside of another; write the key out")
    lengths: dict[str, int] = {}

    def length(key: str) -> int:
        """Of everything at and below a key; what refers to itself is counted as it is written (resolving it
        is an error of its own)."""
        if key not in lengths:
            lengths[key] = 0
            below = f"{key}."
            lengths[key] = sum(
                of_text(name, text) for name, text in texts.items() if name == key or name.startswith(below)
            )
            if lengths[key] > MOST_CHARACTERS:
                raise YAMLError(
                    f"{key}: more than {MOST_CHARACTERS} characters once every ${{...}} is replaced"
                )
        return lengths[key]

    def of_text(key: str, text: str) -> int:
        named = (_absolute(key, word) for found in _REFERENCE.findall(text) for word in _WORD.findall(found))
        return len(text) + sum(length(name) for name in named)

    if sum(length(key) for key in texts) > MOST_CHARACTERS:
        raise YAMLError(f"more than {MOST_CHARACTERS} characters once every ${{...}} is replaced")


def _texts(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a tree."""
    if isinstance(tree, str):
        yield prefix, tree
    elif isinstance(tree, Mapping | list):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _texts(value, f"{prefix}.{key}" if prefix else str(key))


def _absolute(key: str, word: str) -> str:
    """The key that a reference means: `.name` stands beside it, `..name` beside the section around it."""
    name = word.lstrip(".")
    dots = len(word) - len(name)
    around = key.split(".")[:-dots] if dots else []
    return ".".join([*around, name])
