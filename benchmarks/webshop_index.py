"""Build time, size and speed of a large WebShop catalogue.

    python benchmarks/webshop_index.py [--products 100000] [--folder DIR]

The full set has 1.18 million products. Where it is not at hand, one of any size is made in the same format:
each product takes the texts, options and price of a product of the small set (or of a generated one), a third
of the words of its title and description exchanged for words drawn from a long-tailed vocabulary that grows
with the catalogue, so that texts are as long and words as rare as in the real one. Times are CPU seconds of
one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from paw_hpc.envs.webshop import agents, data
from paw_hpc.envs.webshop.catalogue import Files, open_catalogue

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def write_catalogue(folder: Path, products: int) -> Files:
    """items_shuffle.json and items_ins_v2.json of that many products; every second one has an instruction."""
    source = data.find_files("auto")
    entries: list[dict[str, Any]] = json.loads(source.products.read_text(encoding="utf-8"))
    known = json.loads(source.attributes.read_text(encoding="utf-8"))
    rng = random.Random(0)
    paths = folder / "items_shuffle.json", folder / "items_ins_v2.json"
    with paths[0].open("w", encoding="utf-8") as items, paths[1].open("w", encoding="utf-8") as attributes:
        items.write("[")
        attributes.write("{")
        for number in range(products):
            entry = dict(entries[rng.randrange(len(entries))])
            own = known[entry["asin"]]
            entry["asin"] = "B" + _base36(number, 9)
            for name in ("name", "full_description"):
                entry[name] = " ".join(
                    _rare(rng, products) if rng.random() < 0.33 else word for word in entry[name].split(" ")
                )
            items.write((", " if number else "") + json.dumps(entry))
            attributes.write((", " if number else "") + f"{json.dumps(entry['asin'])}: {json.dumps(own)}")
        items.write("]")
        attributes.write("}")
    return Files(f"mixed-{products}", paths[0], paths[1], None)


def _rare(rng: random.Random, products: int) -> str:
    """A word of a vocabulary of two words per product, Zipf-like."""
    return f"w{int((2 * products) ** rng.random())}"


def _base36(number: int, length: int) -> str:
    digits = ""
    while number:
        number, place = divmod(number, 36)
        digits = _LETTERS[place] + digits
    return digits.rjust(length, "0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["PAW_CACHE"] = str(Path(folder) / "cache")
        files = write_catalogue(Path(folder), options.products)
        start = time.process_time()
        catalogue = open_catalogue(files)
        build_s, peak = (
            time.process_time() - start,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        )
        size = sum(path.stat().st_size for path in catalogue.folder.iterdir()) / 2**20
        index = (
            sum(
                (catalogue.folder / name).stat().st_size
                for name in ("documents.npy", "counts.npy", "terms.bin")
            )
            / 2**20
        )
        goals = catalogue.goals("synthetic")
        queries = [agents.search_words(goals[i]) for i in range(min(200, len(goals)))]
        start = time.process_time()
        for query in queries:
            catalogue.search(query)
        rate = len(queries) / (time.process_time() - start)
        Console().print(
            f"{len(catalogue.products):,} products ({files.products.stat().st_size / 2**20:,.0f} MiB of "
            f"JSON), {len(goals):,} goals: built in "
            f"{build_s:,.0f} CPU s with a peak of {peak:,.0f} MiB resident; {size:,.0f} MiB on disk, of "
            f"which postings {index:,.0f}; "
            f"{rate:,.0f} searches of a whole instruction per second and core",
            soft_wrap=True,
            highlight=False,
        )


if __name__ == "__main__":
    main()
