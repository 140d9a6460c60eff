"""A catalogue on disk, as environments read it: products, search index and goals in memory-mapped files that
all processes of a machine share.

Built once from WebShop's own files (streamed), under a name that changes with those files and with the
format. A folder is whole or absent: it is built beside its place and moved there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_hpc.envs.webshop import goals as goal_files
from paw_hpc.envs.webshop.goals import GoalKind, Goals
from paw_hpc.envs.webshop.index import IndexBuilder, SearchIndex
from paw_hpc.envs.webshop.records import RecordFile, RecordWriter
from paw_hpc.envs.webshop.source import Product, read_attributes, read_human_instructions, read_products
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError

FORMAT = 1
"""Raise it when the content of a store changes: stores of an older format are then built anew."""
SEARCH_RESULTS = 50
"""Products that a search finds at most."""
_KEPT_PRODUCTS = 4096


@dataclass(frozen=True, slots=True)
class Files:
    """WebShop's files of one set. `human` may be None: then there are no human goals."""

    name: str
    products: Path
    attributes: Path
    human: Path | None
    num_products: int | None = None

    def fingerprint(self) -> str:
        """Changes whenever a file is replaced or rewritten."""
        parts = [f"{FORMAT} {self.num_products}"]
        for path in (self.products, self.attributes, self.human):
            if path is not None:
                if not path.is_file():
                    raise DataError(f"{path}: no such file; restore it, or run `paw data webshop fetch`")
                parts.append(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class Products(Sequence[Product]):
    """The products of a store, in catalogue order; those read last are kept."""

    def __init__(self, folder: Path):
        self._records = RecordFile(folder, "products")
        self._sorted = np.load(folder / "asin.npy", mmap_mode="r")
        self._order = np.load(folder / "asin_order.npy", mmap_mode="r")
        self._read = functools.lru_cache(maxsize=_KEPT_PRODUCTS)(self._load)
        self.find = functools.lru_cache(maxsize=_KEPT_PRODUCTS)(self._find)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"product {index} of {len(self)}")
        return self._read(int(index))

    def _find(self, asin: str) -> int:
        """The index of a product. Raises KeyError."""
        place = int(np.searchsorted(self._sorted, asin.encode()))
        if place == len(self._sorted) or self._sorted[place] != asin.encode():
            raise KeyError(asin)
        return int(self._order[place])

    def _load(self, index: int) -> Product:
        record = self._records[index]
        for name in ("bullets", "prices", "attributes"):
            record[name] = tuple(record[name])
        record["options"] = {name: tuple(values) for name, values in record["options"].items()}
        return Product(**record)


class Catalogue:
    """Everything that environments of one catalogue share. Read-only, so forks and threads may share one,
    too."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.products = Products(folder)
        self.cost = np.load(folder / "cost.npy", mmap_mode="r")
        """float64[products]: what each costs when bought."""
        self._index = SearchIndex(folder)
        self._codes = {
            name: (np.load(folder / f"{name}.npy", mmap_mode="r"), RecordFile(folder, f"{name}_names")[0])
            for name in ("category", "query")
        }

    def search(self, words: str) -> Sequence[int]:
        """The best products for these words, best first, at most SEARCH_RESULTS."""
        return [number for number, _ in self._index.search(words, SEARCH_RESULTS)]

    def scored(self, words: str) -> Sequence[tuple[int, float]]:
        """As `search`, with BM25 scores."""
        return self._index.search(words, SEARCH_RESULTS)

    def with_value(self, field: str, value: str) -> Sequence[int]:
        """All products with this category or query, in catalogue order."""
        codes, names = self._codes[field]
        return np.flatnonzero(codes == names[value]).tolist() if value in names else ()

    def goals(self, kind: GoalKind) -> Goals:
        """Raises DataError where the set has none of this kind."""
        if kind not in self.about["goals"]:
            raise DataError(
                f"{self.about['products']}: no {kind} goals (items_human_ins.json is missing beside it); "
                "use env.webshop.goals=synthetic"
            )
        return _goals(self, kind)


@functools.lru_cache(maxsize=4)
def _goals(catalogue: Catalogue, kind: GoalKind) -> Goals:
    return Goals(catalogue.folder, kind, catalogue.products)


def open_catalogue(files: Files) -> Catalogue:
    """The catalogue of these files, built on first use. Once per process. Raises DataError."""
    return _open(_build(files, data_paths.cache_dir("webshop", "stores")))


@functools.lru_cache(maxsize=4)
def _open(folder: Path) -> Catalogue:
    try:
        return Catalogue(folder)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder}: torn ({error}); delete it and try again") from None


def _build(files: Files, root: Path) -> Path:
    folder = root / f"{files.name}-{files.fingerprint()}"
    if (folder / "about.json").is_file():
        return folder
    with data_paths.locked(folder):
        if not (folder / "about.json").is_file():
            print(
                f"building WebShop's catalogue and index from {files.products} in {folder} (once) ...",
                file=sys.stderr,
            )
            building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=root))
            try:
                _write(files, building)
                shutil.rmtree(folder, ignore_errors=True)
                building.rename(folder)
            except OSError as error:
                raise DataError(
                    f"{folder}: cannot be written ({error.strerror or error}); free some space or set "
                    "PAW_CACHE elsewhere"
                ) from None
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return folder


def _write(files: Files, folder: Path) -> None:
    start, attributes, asins, costs = (
        time.perf_counter(),
        read_attributes(files.attributes),
        list[str](),
        list[float](),
    )
    codes: dict[str, dict[str, int]] = {"category": {}, "query": {}}
    coded: dict[str, list[int]] = {name: [] for name in codes}
    index, generator = IndexBuilder(folder), goal_files.price_generator()
    with RecordWriter(folder, "products") as records:
        for product in read_products(files.products, attributes, files.num_products):
            records.add(asdict(product))
            index.add(product.document)
            asins.append(product.asin)
            costs.append(goal_files.purchase_price(product.prices, generator))
            for name, known in codes.items():
                coded[name].append(known.setdefault(getattr(product, name), len(known)))
    index.finish(asins)
    _write_lookups(folder, asins, costs, codes, coded)
    kinds = _write_goals(files, folder, costs, attributes, generator)
    about = {
        "format": FORMAT,
        "set": files.name,
        "products": str(files.products),
        "count": len(asins),
        "goals": kinds,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _write_lookups(
    folder: Path,
    asins: list[str],
    costs: list[float],
    codes: dict[str, dict[str, int]],
    coded: dict[str, list[int]],
) -> None:
    encoded = np.array([asin.encode() for asin in asins])
    order = np.argsort(encoded, kind="stable").astype(np.int32)
    np.save(folder / "asin.npy", encoded[order])
    np.save(folder / "asin_order.npy", order)
    np.save(folder / "cost.npy", np.array(costs, dtype=np.float64))
    for name, known in codes.items():
        np.save(folder / f"{name}.npy", np.array(coded[name], dtype=np.int32))
        with RecordWriter(folder, f"{name}_names") as records:
            records.add(known)


def _write_goals(
    files: Files, folder: Path, costs: list[float], attributes: dict[str, Any], generator: Any
) -> dict[str, int]:
    """Both kinds start from the generator as the prices left it, as two environments of the original would.
    Returns kind -> number of goals."""
    products, after_prices, kinds = Products(folder), generator.getstate(), {}
    if any(own.get("instruction") is not None for own in attributes.values()):
        goal_files.write_synthetic(folder, products, costs, attributes, generator)
        kinds["synthetic"] = len(Goals(folder, "synthetic", products))
    if files.human is not None:
        generator.setstate(after_prices)
        goal_files.write_human(folder, products, costs, read_human_instructions(files.human), generator)
        kinds["human"] = len(Goals(folder, "human", products))
    return kinds
