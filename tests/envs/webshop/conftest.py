"""Catalogues to test on: the real small set where it is at hand, a generated one, and a handful of products
written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.webshop import data
from paw_hpc.envs.webshop.catalogue import Catalogue, Files, open_catalogue
from paw_hpc.envs.webshop.reward import Tagger, make_tagger
from paw_hpc.system import data_paths


@pytest.fixture(scope="session")
def shop_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("webshop-cache")


@pytest.fixture(autouse=True)
def _own_cache(shop_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(shop_cache))


@pytest.fixture(scope="session")
def tagger() -> Tagger:
    return make_tagger("textblob")[1]


@pytest.fixture
def small() -> Catalogue:
    """The 1000-product set."""
    if not any((root / "webshop" / data.SETS["small"][0]).is_file() for root in data_paths.data_roots()):
        pytest.skip("no WebShop data on this machine ($PAW_DATA, ../shared/data beside the checkout)")
    return data.find_catalogue("small")


@pytest.fixture
def recorded(small: Catalogue) -> Path:
    """The folder of the small set, which also holds recordings of the original environment."""
    folder = Path(small.about["products"]).parent
    if not (folder / "transcripts.jsonl.gz").is_file():
        pytest.skip("no recorded transcripts beside the WebShop data")
    return folder


@pytest.fixture
def made() -> Catalogue:
    """150 generated products."""
    return open_catalogue(data.generated_files(150, seed=1))


def entry(asin: str, name: str, **more: Any) -> dict[str, Any]:
    """A product as items_shuffle.json has it."""
    plain = {
        "asin": asin,
        "name": name,
        "full_description": "",
        "small_description": [""],
        "customization_options": "",
        "pricing": "$10.00",
        "category": "garden",
        "query": "Lamps ",
        "product_category": "Home › Light › Lamps",
    }
    return {**plain, **more}


def options(**values: list[str] | None) -> dict[str, Any]:
    return {
        name: None if found is None else [{"value": v, "image": None} for v in found]
        for name, found in values.items()
    }


LAMPS = [
    entry(
        "B000000001",
        "Red Lamp",
        full_description="A lamp.",
        small_description=["Bright & warm ", " Steel\nfoot"],
        customization_options=options(
            Size=["Small", "Large"], Color=["Red/Blue", "<Sand> 'x'"], Nothing=None
        ),
        pricing="$18.50",
    ),
    entry("B000000002", "Blue Lamp", pricing="$30.00$20.00$5.00"),
    entry(
        "B000000003",
        " Old lamp \n",
        pricing=None,
        small_description="one bullet",
        customization_options=options(Kind=["a", "b", "a"], Sort=["b"]),
    ),
    *[
        entry(f"B0000001{n:02}", f"Candle {n}", query="candles", category="beauty", pricing="$1,200.00")
        for n in range(25)
    ],
]
LAMP_ATTRIBUTES: dict[str, Any] = {product["asin"]: {"attributes": ["easy clean"]} for product in LAMPS}
LAMP_ATTRIBUTES["B000000001"] |= {
    "instruction": "Find me easy clean lamp",
    "instruction_attributes": ["easy clean"],
}
LAMP_ATTRIBUTES["B000000100"] |= {
    "instruction": "Find me soft candle",
    "instruction_attributes": ["easy clean", "soft"],
}

WriteFiles = Callable[..., Files]


@pytest.fixture
def write_files(tmp_path: Path) -> WriteFiles:
    def write(products: Any = LAMPS, attributes: Any = LAMP_ATTRIBUTES, human: Any = None) -> Files:
        paths = [tmp_path / name for name in (*data.SETS["full"], data.HUMAN)]
        for path, content in zip(paths, (products, attributes, human), strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return Files("lamps", paths[0], paths[1], paths[2] if human is not None else None)

    return write


@pytest.fixture
def lamps(write_files: WriteFiles) -> Catalogue:
    return open_catalogue(write_files())
