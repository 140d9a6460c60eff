"""Where the recipes are that come with the package: the two protocols, the paper's sweeps, the quickstarts."""

from __future__ import annotations

from pathlib import Path

from paw_hpc.errors import DataError

_KNOWN_BY = Path("paper") / "choices.yaml"
"""A file that tells this folder from any other of the name."""


def shipped_recipes() -> Path:
    """`paw_hpc/recipes` of an installed package, else `recipes` beside the package, as in a checkout.

    Raises:
        DataError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / _KNOWN_BY).is_file():
            return folder
    raise DataError(f"{package}: the recipes that belong to this package are missing; install paw-hpc again, or use its checkout")


def protocol_recipe(benchmark: str, protocol: str) -> Path:
    """The recipe file of a benchmark's set-up under `reference` or `ours`. Raises DataError."""
    path = shipped_recipes() / benchmark / f"{protocol}.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such protocol's recipe; install paw-hpc again, or use its checkout")
    return path
