"""What may be chosen by name, and where it comes from: this package, installed packages (entry points), or a
file that is named (`load_plugin`).

An entry of this package is imported when it is first asked for, so that a choice which nobody makes costs
nothing and needs no optional package.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from paw_hpc.system.errors import RecipeError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name.

    Args:
        kind: the class of its entries.
        group: of entry points, by which other packages bring entries: `paw_hpc.algorithms`.
        own: name -> "module:attribute" of this package's entries, in the order in which they are listed.
    """

    def __init__(self, kind: type[Entry], group: str, own: Mapping[str, str]):
        self.kind, self.group = kind, group
        self._own, self._added = dict(own), dict[str, Entry]()
        self._loaded: dict[str, Entry] = {}

    def names(self) -> tuple[str, ...]:
        """Every name that can be chosen now, this package's first."""
        return tuple(dict.fromkeys([*self._own, *self._added, *self._installed]))

    def add(self, name: str, entry: Entry) -> Entry:
        """Bring an entry, from a module that is being loaded. It takes the place of one that was brought
        under this name before.

        Raises:
            ValueError: the name is one of this package's.
            TypeError: it is no entry of this kind.
        """
        if name in self._own:
            raise ValueError(f"{self.group}: '{name}' is an entry of paw_hpc itself; choose another name")
        self._added[name] = self._checked(name, entry)
        return entry

    def find(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            ValueError: there is none; says which there are.
            TypeError: what an installed package names is no entry of this kind.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            self._loaded[name] = self._checked(name, self._import(name))
        return self._loaded[name]

    def is_own(self, name: str) -> bool:
        return name in self._own

    def expected(self) -> str:
        """The names as a sentence has them: 'a', 'b' or 'c'."""
        *first, last = (f"'{name}'" for name in self.names())
        return f"{', '.join(first)} or {last}" if first else last

    def _import(self, name: str) -> Any:
        if name in self._own:
            return resolve(self._own[name])
        if name in self._installed:
            return self._installed[name].load()
        close = difflib.get_close_matches(name, self.names(), n=1)
        raise ValueError(
            f"no such name; did you mean '{close[0]}'?" if close else f"expected {self.expected()}"
        )

    def _checked(self, name: str, entry: Any) -> Entry:
        if not isinstance(entry, self.kind):
            raise TypeError(
                f"{self.group}: '{name}' is a {type(entry).__name__}, and must be a "
                f"{self.kind.__module__}.{self.kind.__qualname__}"
            )
        return entry

    @functools.cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self._own}


def resolve(target: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazily(target: str) -> Callable[..., Any]:
    """A function that is imported ("module:attribute") when it is first called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return resolve(target)(*arguments, **options)

    return call


def plugin_path(named: str) -> str:
    """A plugin's name as a run keeps it: a file's whole path, a module's name as it is."""
    return str(Path(named).expanduser().absolute()) if named.endswith(".py") else named


def load_plugin(named: str) -> ModuleType:
    """Import a module, or a file (once per process), whose import brings entries.

    Raises:
        RecipeError: there is no such module or file, or it cannot be imported; names it and the error.
    """
    try:
        return (
            _load_file(Path(plugin_path(named))) if named.endswith(".py") else importlib.import_module(named)
        )
    except RecipeError:
        raise
    except Exception as error:  # a module may do anything while it is imported
        where = "" if named.endswith(".py") else "; a file is named with its ending, .py"
        raise RecipeError(
            f"plugins: {named}: {type(error).__name__}: {' '.join(str(error).split())}{where}"
        ) from error


def _load_file(path: Path) -> ModuleType:
    name = f"paw_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise RecipeError(f"plugins: {path}: no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    # before it runs: its dataclasses and pickles look it up
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
