"""Changes to other packages while some of their code runs, each for the versions that it was written for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from paw_hpc.system.errors import UserError


@dataclass(frozen=True)
class WrittenFor:
    """A package, and the versions of it (`major.minor`) whose code was read."""

    package: str
    versions: tuple[str, ...]


MEGATRON = WrittenFor("megatron-core", ("0.16",))
TORCH = WrittenFor("torch", ("2.11", "2.12", "2.13", "2.14"))


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any, *, written_for: WrittenFor) -> Iterator[None]:
    """Inside, the attribute `name` of a module, class or object is `value`; for all threads.

    Raises:
        UserError: another version is installed, in which it may be another thing, or nothing; says which ones
            would do.
        AttributeError: there is no such attribute.
    """
    check_version(written_for)
    getattr(owner, name)
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:  # it was the class's
            delattr(owner, name)


@functools.cache
def check_version(written_for: WrittenFor) -> None:
    """Raises UserError where another version is installed."""
    installed = version(written_for.package)
    if ".".join(installed.split(".")[:2]) not in written_for.versions:
        known = ", ".join(f"{each}.*" for each in written_for.versions)
        raise UserError(
            f"{written_for.package} {installed}: policy.backend=megatron changes parts of it as they are "
            f"in {known}; install one of these"
        )
