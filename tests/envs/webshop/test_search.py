"""Lucene's analysis and BM25, on cases with literal outcomes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from paw_hpc.envs.webshop import index as index_module
from paw_hpc.envs.webshop.analysis import terms
from paw_hpc.envs.webshop.index import IndexBuilder, SearchIndex, _decoded_length, _encoded_lengths

TEXTS = [
    "red lamp red shade",
    "blue lamp",
    "a red bag and a blue bag",
    "",
    "lamps lamp lamping",
    "red lamp red shade",
]
IDS = ["D", "A", "C", "E", "B", "A0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Running shoes for the runner's feet", ["run", "shoe", "runner", "feet"]),
        ("don't U.S.A. 3.5mm 1,000 x_y", ["don't", "u.s.a", "3.5mm", "1,000", "x_y"]),
        ("16.5 x 16.5 inch/lb", ["16.5", "x", "16.5", "inch", "lb"]),
        ("ponies relational sky", ["poni", "relat", "sky"]),
        ("★ café 漢字", ["★", "café", "漢", "字"]),
        ("the of and", []),
        ("", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_document_lengths_are_lossy_as_in_lucene() -> None:
    lengths = np.array([0, 1, 23, 39, 40, 41, 42, 43, 100, 1000])
    assert [_decoded_length(int(code)) for code in _encoded_lengths(lengths)] == [
        0,
        1,
        23,
        39,
        40,
        40,
        42,
        42,
        96,
        984,
    ]


def build(folder: Path, texts: list[str] = TEXTS, ids: list[str] = IDS) -> SearchIndex:
    builder = IndexBuilder(folder)
    for text in texts:
        builder.add(text)
    builder.finish(ids)
    return SearchIndex(folder)


def slow_score(query: str, document: int) -> float:
    counted = [terms(text) for text in TEXTS]
    average, total = sum(map(len, counted)) / len(counted), 0.0
    for term in terms(query):
        df = sum(term in words for words in counted)
        tf = counted[document].count(term)
        if df and tf:
            norm = 0.9 * (1 - 0.4 + 0.4 * len(counted[document]) / average)
            total += math.log(1 + (len(counted) - df + 0.5) / (df + 0.5)) * tf / (tf + norm)
    return total


@pytest.mark.parametrize("block", [1 << 22, 3])
def test_scores_follow_the_formula_and_ties_the_ids(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK_POSTINGS", block)
    index = build(tmp_path)
    for query in ("red lamp", "blue bag bag", "lamp", "nothing", "the"):
        found = dict(index.search(query, 10))
        wanted = {n: s for n in range(len(TEXTS)) if (s := slow_score(query, n)) > 0}
        assert found.keys() == wanted.keys()
        assert all(math.isclose(found[n], wanted[n], rel_tol=1e-12) for n in wanted)
    ranked = [IDS[number] for number, _ in index.search("red shade", 10)]
    assert ranked[:2] == ["A0", "D"]  # the same text: the smaller id first
    assert not (tmp_path / "forward.tmp").exists()


def test_the_k_best_with_ties_at_the_end(tmp_path: Path) -> None:
    ids = [f"{n:03}" for n in np.random.default_rng(0).permutation(200)]
    index = build(tmp_path, ["red lamp"] * 200, ids)
    assert [ids[number] for number, _ in index.search("lamp", 50)] == [f"{n:03}" for n in range(50)]


def test_an_index_of_nothing(tmp_path: Path) -> None:
    assert build(tmp_path, [""], ["x"]).search("lamp", 5) == ()
