"""What retrieval costs: BM25's queries per second and core, index build and size, and what 21 million
passages would take.

    python benchmarks/retrieval.py [--corpus FILE] [--synthetic 1000000]

One core and one thread. CPU seconds stand beside wall seconds: on a machine that is shared, the first are the
ones to compare. Lines that start with `~` are extrapolated from the measured corpus, in proportion to its
passages, and are not measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from paw_hpc.envs.search import data
from paw_hpc.envs.search.bm25 import Bm25Retriever, build_bm25

WIKI = data.OFFICIAL_PASSAGES
RESULTS: list[tuple[str, str]] = []


def main() -> None:
    parser = argparse.ArgumentParser(description="Retrieval: speed, memory, disk.")
    parser.add_argument(
        "--corpus", type=Path, help="passages in JSON lines; default: those of the data at hand"
    )
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument(
        "--synthetic",
        type=int,
        default=0,
        help="also a corpus of this many passages, drawn from the words of the first",
    )
    arguments = parser.parse_args()
    found = data.load("auto")
    corpus = arguments.corpus or found.corpus
    questions = [q.question for q in (*found.test, *found.train)]
    queries = [questions[i % len(questions)] for i in range(arguments.queries)]
    print(
        f"{found.description}; {corpus.name}; {os.cpu_count()} cores, 1 used; numba and one thread unless "
        "said otherwise"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(corpus, Path(folder) / "index", queries)
        if arguments.synthetic:
            larger = Path(folder) / "synthetic.jsonl"
            synthesize(corpus, larger, arguments.synthetic)
            measure(larger, Path(folder) / "larger", queries[:200])
    width = max(len(name) for name, _ in RESULTS)
    for name, value in RESULTS:
        print(f"{name:<{width}}  {value}")


def measure(corpus: Path, folder: Path, queries: list[str]) -> None:
    with clock() as taken:
        build_bm25(corpus, folder)
    index_bytes = sum(path.stat().st_size for path in folder.iterdir())
    passages = json.loads((folder / "corpus.json").read_text())["passages"]
    tell(
        f"{passages} passages: index built",
        f"{taken[0]:.1f} s ({taken[1]:.1f} CPU), {passages / taken[1]:.0f} passages per CPU second",
    )
    tell(
        f"{passages} passages: index on disk",
        f"{index_bytes / 2**20:.1f} MiB, {index_bytes / passages:.0f} bytes a passage",
    )
    for backend in ("numpy", "numba"):
        before = psutil.Process().memory_info().rss
        with clock() as taken:
            retriever = Bm25Retriever(folder, backend=backend)
        opened = taken[0]
        retriever.search(queries[:64], 3)
        with clock() as taken:
            for first in range(0, len(queries), 256):
                retriever.search(queries[first : first + 256], 3)
        resident = (psutil.Process().memory_info().rss - before) / 2**20
        tell(
            f"{passages} passages: {backend}",
            f"{len(queries) / taken[1]:.0f} queries per CPU second ({len(queries) / taken[0]:.0f} per "
            "second of wall), "
            f"opened in {opened:.1f} s, {resident:.0f} MiB more resident",
        )
    with clock() as taken:
        for query in queries[:500]:
            retriever.search([query], 3)
    tell(
        f"{passages} passages: numba, one query at a time",
        f"{min(500, len(queries)) / taken[1]:.0f} queries per CPU second",
    )
    if passages < WIKI:
        scale = WIKI / passages
        tell(
            "~ 21M passages, from these: index on disk",
            f"{index_bytes * scale / 2**30:.1f} GiB and as much again while it builds",
        )


def synthesize(source: Path, target: Path, count: int) -> None:
    """Passages of a hundred words, drawn from the source's words with their frequencies; the vocabulary grows
    with the corpus as in real text."""
    rng = np.random.default_rng(0)
    words = np.array(
        [w for line in source.open(encoding="utf-8") for w in json.loads(line)["contents"].split()]
    )
    with target.open("w", encoding="utf-8") as file:
        for number in range(count):
            drawn = words[rng.integers(len(words), size=100)].tolist()
            drawn[int(rng.integers(100))] = f"name{number // 4}"
            file.write(json.dumps({"id": str(number), "contents": f'"{drawn[0]}"\n{" ".join(drawn)}'}) + "\n")


@contextmanager
def clock() -> Iterator[list[float]]:
    """Inside, nothing; afterwards [wall seconds, CPU seconds of this process]."""
    wall, cpu, taken = time.perf_counter(), time.process_time(), list[float]()
    yield taken
    taken += [time.perf_counter() - wall, time.process_time() - cpu]


def tell(name: str, value: str) -> None:
    RESULTS.append((name, value))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
