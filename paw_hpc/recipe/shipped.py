"""The files that come with the package: recipes (the two protocols, the paper's sweeps, the quickstarts) and
Slurm's batch files, by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paw_hpc.recipe.loading import read_yaml
from paw_hpc.system.errors import DataError, RecipeError, UserError
from paw_hpc.system.storage import write_atomically

_KNOWN_BY = Path("paper") / "choices.yaml"
"""A file that tells this folder from any other of the name."""
Kind = Literal["recipe", "sweep", "choices", "batch"]


@dataclass(frozen=True, slots=True)
class ShippedFile:
    """A file that comes with the package."""

    name: str
    """What commands take in place of a path: `alfworld/reference`; of a batch file with its folder and
    ending, `slurm/train.sbatch`."""
    path: Path
    kind: Kind

    @property
    def about(self) -> str:
        """The sentence that it begins with; empty where it begins without one."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        said = []
        for line in lines[1:] if lines and lines[0].startswith("#!") else lines:
            text = line.lstrip("#").strip()
            if not line.startswith("#") or line.startswith("#SBATCH") or not text:
                break
            said.append(text)
            if text.endswith(":"):  # a command follows
                break
        return re.split(r"(?<=\.)(?<!App\.)\s", " ".join(said), maxsplit=1)[0].removesuffix(":")


def shipped_recipes() -> Path:
    """`paw_hpc/recipes` of an installed package, else `recipes` beside the package, as in a checkout.

    Raises:
        DataError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / _KNOWN_BY).is_file():
            return folder
    raise DataError(
        f"{package}: the recipes that belong to this package are missing; install paw-hpc again, or use "
        "its checkout"
    )


def shipped_files() -> list[ShippedFile]:
    """All of them, by name. Raises DataError."""
    folder = shipped_recipes()
    found = [
        ShippedFile(path.relative_to(folder).with_suffix("").as_posix(), path, _kind(path))
        for path in folder.rglob("*.yaml")
    ]
    batches = (folder.parent / "slurm").glob("*.sbatch")
    return sorted(
        [*found, *(ShippedFile(f"slurm/{path.name}", path, "batch") for path in batches)],
        key=lambda file: file.name,
    )


def find_shipped(name: str) -> ShippedFile:
    """The file of this name. Raises RecipeError, with the name that was probably meant."""
    files = {file.name: file for file in shipped_files()}
    if name.removesuffix(".yaml") in files:
        return files[name.removesuffix(".yaml")]
    close = difflib.get_close_matches(name.removesuffix(".yaml"), files, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "`paw recipes list` names them"
    raise RecipeError(f"{name}: no such recipe file, and none of this name comes with paw; {hint}")


def recipe_path(path: Path) -> Path:
    """A path that exists, as it is; else the recipe that comes with the package under this name (so
    `quickstart` needs no path).

    Raises:
        RecipeError: it is neither.
    """
    return path if path.exists() else find_shipped(path.as_posix()).path


def protocol_recipe(benchmark: str, protocol: str) -> Path:
    """The recipe file of a benchmark's set-up under `reference` or `ours`. Raises DataError."""
    path = shipped_recipes() / benchmark / f"{protocol}.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such protocol's recipe; install paw-hpc again, or use its checkout")
    return path


def needed_by(path: Path) -> list[Path]:
    """A recipe or sweep and every file that it names: bases, their bases, a sweep's choices and all recipes
    that these name; each once."""
    found: list[Path] = []
    waiting = [path.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        if path.suffix == ".yaml":
            content = read_yaml(path)
            waiting += [named for text in _named(content) for named in _filled(path.parent, text, content)]
    return found


def copy(file: ShippedFile, target: Path, *, replace: bool = False) -> list[Path]:
    """Write a shipped file, and all that it builds on, into a folder, in the same places to each other.
    Returns the copies, its own first.

    Raises:
        UserError: one is there already and differs (unless `replace`), or the folder cannot be written.
    """
    root = shipped_recipes()
    sources = [file.path.resolve()] if file.kind == "batch" else needed_by(file.path)
    copies = {
        source: target / (source.name if file.kind == "batch" else source.relative_to(root.resolve()))
        for source in sources
    }
    for source, place in copies.items():
        if place.exists() and not replace and place.read_bytes() != source.read_bytes():
            raise UserError(f"{place}: is there already, and differs; name another folder, or give --replace")
    for source, place in copies.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, source.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror})") from None
    return list(copies.values())


def _kind(path: Path) -> Kind:
    if path.name.endswith(_KNOWN_BY.name):
        return "choices"
    return "sweep" if "sweep" in read_yaml(path) else "recipe"


def _named(tree: Any) -> list[str]:
    """Values of `base` and `choices`, at any depth."""
    if not isinstance(tree, dict):
        return []
    own = [value for key, value in tree.items() if key in ("base", "choices") and isinstance(value, str)]
    return own + [text for value in tree.values() for text in _named(value)]


def _filled(folder: Path, text: str, choices: dict[str, Any]) -> list[Path]:
    """Files that a named path stands for: one, or with `{axis}` in it one for each word of the axis that has
    one."""
    texts = [text]
    for axis in re.findall(r"\{(\w+)\}", text):
        texts = [one.replace(f"{{{axis}}}", word) for one in texts for word in choices.get(axis, {})]
    return [(folder / one).resolve() for one in texts if (folder / one).is_file()]
