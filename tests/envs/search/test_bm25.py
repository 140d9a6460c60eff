"""The index that is built in chunks is the library's own index of the same corpus, and it is whole or
absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bm25s
import numpy as np
import pytest

from paw_hpc.envs.search.bm25 import K1, B, Bm25Retriever, build_bm25
from paw_hpc.envs.search.corpus import Corpus
from paw_hpc.envs.search.data import SearchData
from paw_hpc.envs.search.generate import make_world
from paw_hpc.envs.search.retriever import Hit
from paw_hpc.envs.search.words import terms
from paw_hpc.system.errors import DataError
from tests.envs.search.conftest import write_corpus, write_lines

WORLD_QUERIES = [
    "Ada Abel",
    "where was Max Wolf born?",
    "painter violin Oslo",
    "a company that was founded by Greta Roth",
    "Norway",
]


@pytest.fixture(scope="module")
def world_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(
        tmp_path_factory.mktemp("world") / "corpus.jsonl", make_world(people=300, companies=80)[0]
    )


def library_scores(corpus: Path, queries: list[str], k: int) -> np.ndarray:
    """float[queries, k]: what bm25s itself, with the whole corpus in memory, gives as the best scores."""
    index = bm25s.BM25(k1=K1, b=B)
    index.index(
        [terms(json.loads(line)["contents"]) for line in corpus.open(encoding="utf-8")], show_progress=False
    )
    return np.sort(index.retrieve([terms(q) for q in queries], k=k, show_progress=False).scores, axis=1)[
        :, ::-1
    ]


def scores(found: list[list[Hit]], k: int) -> np.ndarray:
    """float[queries, k], best first; passages that do not match score 0."""
    return np.array([[hit.score for hit in hits] + [0.0] * (k - len(hits)) for hits in found])


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
def test_chunks_of_any_size_give_the_librarys_own_scores(
    chunk: int, world_corpus: Path, tmp_path: Path
) -> None:
    build_bm25(world_corpus, tmp_path / "index", chunk_passages=chunk)
    found = Bm25Retriever(tmp_path / "index").search(WORLD_QUERIES, 5)
    assert np.allclose(scores(found, 5), library_scores(world_corpus, WORLD_QUERIES, 5), atol=1e-5)
    assert not list((tmp_path / "index").glob("spool*"))


def test_other_parameters_give_other_scores(world_corpus: Path, tmp_path: Path) -> None:
    build_bm25(world_corpus, tmp_path / "index", k1=1.5, b=0.75)
    found = Bm25Retriever(tmp_path / "index").search(WORLD_QUERIES, 5)
    assert not np.allclose(scores(found, 5), library_scores(world_corpus, WORLD_QUERIES, 5), atol=1e-2)


def test_the_compiled_backend_agrees_with_numpy(world_corpus: Path, tmp_path: Path) -> None:
    build_bm25(world_corpus, tmp_path / "index")
    compiled, plain = (
        Bm25Retriever(tmp_path / "index", backend=name).search(WORLD_QUERIES, 4)
        for name in ("numba", "numpy")
    )
    assert np.allclose(scores(compiled, 4), scores(plain, 4))


def test_the_best_passages_come_first(bm25_index: Bm25Retriever) -> None:
    (hits,) = bm25_index.search(["which composer was born in Bergen?"], 3)
    assert hits[0].passage.title == "Edvard Grieg"
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_accents_case_and_endings_do_not_matter(bm25_index: Bm25Retriever) -> None:
    for query in ("BEYONCE", "beyoncé", "singers"):
        (hits,) = bm25_index.search([query], 1)
        assert hits[0].passage.title == "Beyoncé", query


def test_queries_that_match_nothing_have_no_hits_and_disturb_no_other(bm25_index: Bm25Retriever) -> None:
    assert bm25_index.search([], 3) == []
    assert bm25_index.search(["", "the of", "zzzz"], 3) == [[], [], []]
    mixed = bm25_index.search(["zzzz", "Oslo", ""], 3)
    assert [bool(hits) for hits in mixed] == [False, True, False]
    assert mixed[1] == bm25_index.search(["Oslo"], 3)[0]
    assert all(hit.score > 0 for hit in mixed[1])


def test_more_passages_asked_for_than_there_are(bm25_index: Bm25Retriever) -> None:
    (hits,) = bm25_index.search(["Norway"], 100)
    assert {hit.passage.title for hit in hits} == {"Oslo", "Bergen"}


class TestAnIndex:
    @pytest.fixture
    def built(self, tmp_path: Path) -> Path:
        build_bm25(write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index")
        return tmp_path / "index"

    def test_goes_with_its_corpus_wherever_that_lies(self, built: Path) -> None:
        moved = (built.parent / "corpus.jsonl").rename(built.parent / "moved.jsonl")
        with pytest.raises(DataError, match=r"corpus.jsonl: no such corpus"):
            Bm25Retriever(built)
        assert Bm25Retriever(built, moved).search(["Oslo"], 1)[0]

    @pytest.mark.parametrize(
        "name",
        [
            "data.csc.index.npy",
            "indptr.csc.index.npy",
            "vocab.index.json",
            "params.index.json",
            "offsets.npy",
        ],
    )
    def test_that_is_torn_is_refused(self, built: Path, name: str) -> None:
        whole = (built / name).read_bytes()
        (built / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"build it anew|build the index anew"):
            Bm25Retriever(built)

    def test_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no BM25 index here; build one"):
            Bm25Retriever(tmp_path)

    def test_keeps_its_old_content_when_a_new_build_fails(self, built: Path) -> None:
        torn = write_corpus(built.parent / "other.jsonl")
        torn.write_bytes(torn.read_bytes()[:-10])
        with pytest.raises(DataError, match="cut short"):
            build_bm25(torn, built)
        assert Bm25Retriever(built).search(["Oslo"], 1)[0] and not list(built.parent.glob("*.building"))


def test_the_mini_corpus(mini: SearchData, tmp_path: Path) -> None:
    """The answer of most real questions stands in the three best of 20,201 real passages."""
    from paw_hpc.envs.search.benchmark import default_index
    from paw_hpc.envs.search.metrics import contains_answer

    index = Bm25Retriever(default_index("mini"))
    assert len(Corpus(mini.corpus, default_index("mini"))) == 20201
    questions = [q for q in mini.test if q.dataset == "nq"]
    found = index.search([q.question for q in questions], 3)
    hit = [
        any(contains_answer(h.passage.contents, q.answers) for h in hits)
        for q, hits in zip(questions, found, strict=True)
    ]
    assert np.mean(hit) > 0.5
    shuffled = [
        any(contains_answer(h.passage.contents, q.answers) for h in hits)
        for q, hits in zip(questions, found[1:] + found[:1], strict=True)
    ]
    assert np.mean(shuffled) < 0.1, "another question's passages hold the answer of few"


def test_jax_is_not_started_for_it(tmp_path: Path) -> None:
    """Where JAX is installed it takes most of a GPU's memory when it starts; bm25s alone starts it, which
    shows that this test could fail."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('JAX starts')")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(scores, k): print('JAX takes the GPU')")

    def said(code: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said("import paw_hpc.envs.search.bm25, sys; print('jax' in sys.modules)") == "False\n"
    assert (
        said("import jax, paw_hpc.envs.search.bm25, sys; print(sys.modules['jax'] is jax)")
        == "JAX starts\nTrue\n"
    )
    assert "JAX takes the GPU" in said("import bm25s")
