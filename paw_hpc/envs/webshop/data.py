"""Where WebShop's files are found, fetched from, checked and made."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paw_hpc.envs.webshop.catalogue import Catalogue, Files, open_catalogue
from paw_hpc.envs.webshop.generate import DEFAULT_PRODUCTS, VERSION, generate_files
from paw_hpc.envs.webshop.goals import Goals
from paw_hpc.system import data_paths, downloads
from paw_hpc.system.errors import DataError

CatalogueName = Literal["auto", "small", "full", "generated"]
HUMAN = "items_human_ins.json"
SETS = {
    "full": ("items_shuffle.json", "items_ins_v2.json"),
    "small": ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
}
"""Set -> (products, attributes), under the names that WebShop gives them; the larger first."""
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
DRIVE_IDS = {
    "items_shuffle_1000.json": "1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib",
    "items_ins_v2_1000.json": "1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu",
    "items_shuffle.json": "1A2whVgOO0euk5O13n2iYDM0bQRkkRduB",
    "items_ins_v2.json": "1s2j6NgHljiZzQNL3veZaAiyW_qDEgBNi",
    HUMAN: "14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O",
}
"""From princeton-nlp/WebShop's setup.sh."""
SMALL_GOALS = 6910
SMALL_INSTRUCTIONS = "8f174cce391dc962450d2e2caa80e62be1f0c546ee7d433bb6781b3942d5ef0b"
"""SHA-256 over the small set's (asin, instruction) pairs in the global order: it covers goals, prices, caps
and order."""
FULL_PRODUCTS = 1_180_000
"""The full set has at least as many (the release speaks of 1.18 million)."""


def find_files(name: CatalogueName = "auto", num_products: int | None = None) -> Files:
    """The files of a set; auto takes the largest at hand, and a generated one where there is none.

    Raises:
        DataError: the set is not here, or only a part of it.
    """
    for wanted in SETS if name == "auto" else [name]:
        found = None if wanted == "generated" else _find(wanted, num_products)
        if found is not None:
            return found
    if name in SETS:
        looked = ", ".join(str(folder) for folder in _folders())
        raise DataError(
            f"no {name} WebShop set ({' and '.join(SETS[name])}) in {looked}; run `paw data webshop fetch "
            f"--set {name}`, "
            "set PAW_DATA, or use env.webshop.catalogue=generated"
        )
    return generated_files(num_products=num_products)


def generated_files(
    products: int = DEFAULT_PRODUCTS, seed: int = 0, num_products: int | None = None
) -> Files:
    """The files of a generated catalogue in the cache, made on first use."""
    name = f"generated-v{VERSION}-{products}-{seed}"
    folder = data_paths.cache_dir("webshop", name)
    paths = [folder / name for name in (*SETS["full"], HUMAN)]
    if not all(path.exists() for path in paths):
        with data_paths.locked(folder):
            generate_files(folder, products, seed)
    return Files(name, paths[0], paths[1], paths[2], num_products)


def _find(name: str, num_products: int | None) -> Files | None:
    products, attributes = SETS[name]
    for folder in _folders():
        if (folder / products).is_file():
            if not (folder / attributes).is_file():
                raise DataError(
                    f"{folder / attributes}: missing; it belongs beside {products}: run `paw data webshop "
                    f"fetch --set {name}`"
                )
            human = folder / HUMAN
            return Files(
                name, folder / products, folder / attributes, human if human.is_file() else None, num_products
            )
    return None


def _folders() -> list[Path]:
    return [
        folder for root in data_paths.data_roots() for folder in (root, root / "webshop") if folder.is_dir()
    ]


def fetch(name: str) -> list[Path]:
    """Download a set ("small" or "full") from where WebShop's own set-up takes it, into the cache. Files that
    are there are kept.

    Raises:
        DataError: the place cannot be reached, or answers with something else than the file.
    """
    folder = data_paths.cache_dir("webshop")
    return [_download(file, folder / file) for file in (*SETS[name], HUMAN)]


def _download(name: str, target: Path) -> Path:
    if target.exists():
        return target
    with data_paths.atomic_file(target) as file:
        for number, block in enumerate(_blocks(name, target.parent)):
            if number == 0 and block.lstrip()[:1] not in (b"[", b"{"):
                raise DataError(
                    f"{_DRIVE}{DRIVE_IDS[name]} did not answer with {name} (a quota page?); download it "
                    f"elsewhere into {target.parent}"
                )
            file.write(block)
    return target


def _blocks(name: str, folder: Path) -> Iterator[bytes]:
    try:
        yield from downloads.blocks(_DRIVE + DRIVE_IDS[name])
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{_DRIVE}{DRIVE_IDS[name]} ({name}) cannot be reached ({getattr(error, 'reason', error)}); "
            f"download it elsewhere into {folder}, "
            "point PAW_DATA to a folder with it, or use a generated catalogue "
            "(env.webshop.catalogue=generated)"
        ) from None


@dataclass(frozen=True, slots=True)
class SetReport:
    """What `verify` found. `intact` is None where nothing is known to compare with."""

    name: str
    products: int
    synthetic_goals: int
    human_goals: int
    intact: bool | None
    detail: str


def verify(name: CatalogueName = "auto") -> SetReport:
    """Read a whole set, build what environments need of it, and compare it with what is known of the release.

    Raises:
        DataError: not here, truncated, or torn.
    """
    catalogue = open_catalogue(find_files(name))
    count = len(catalogue.products)
    for number in range(count):
        catalogue.products[number]
    goals, shop = catalogue.about["goals"], str(catalogue.about["set"])
    intact, detail = None, "a generated catalogue: nothing to compare with"
    if shop == "small":
        intact = (
            count == 1000
            and goals.get("synthetic") == SMALL_GOALS
            and instruction_digest(catalogue.goals("synthetic")) == SMALL_INSTRUCTIONS
        )
        detail = (
            "products, goals, caps and order are those of the release"
            if intact
            else "goals, caps or order are NOT those of the release"
        )
    elif shop == "full":
        intact = count >= FULL_PRODUCTS
        detail = (
            "as many products as the release has"
            if intact
            else f"fewer than the release's {FULL_PRODUCTS:,} products"
        )
    return SetReport(shop, count, goals.get("synthetic", 0), goals.get("human", 0), intact, detail)


def instruction_digest(goals: Goals) -> str:
    """SHA-256 of the JSON list of (asin, instruction) in the global order."""
    return hashlib.sha256(json.dumps([[goal.asin, goal.instruction] for goal in goals]).encode()).hexdigest()


def find_catalogue(name: CatalogueName = "auto", num_products: int | None = None) -> Catalogue:
    """The catalogue of a set, opened. Raises DataError."""
    return open_catalogue(find_files(name, num_products))
