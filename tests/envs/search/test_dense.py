"""Dense retrieval finds what exact inner products say, whatever kind of index it is; a build goes on where it
was stopped.

No pretrained encoder comes with the tests: a tiny one, trained for a moment on this corpus, is saved and
loaded as any other.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paw_hpc.envs.search import dense
from paw_hpc.envs.search.corpus import Corpus
from paw_hpc.envs.search.dense import DenseRetriever, build_dense
from paw_hpc.envs.search.encoder import Encoder, EncoderSettings
from paw_hpc.envs.search.generate import make_world
from paw_hpc.system.errors import DataError
from tests.envs.search.conftest import PASSAGES, write_lines
from tests.envs.search.encoders import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{title} {text}" for title, text in PASSAGES]
    return save_encoder(
        tmp_path_factory.mktemp("encoder") / "tiny", [*texts, "query: passage: who where"], list(PASSAGES)
    )


@pytest.fixture(scope="module")
def settings(encoder: Path) -> EncoderSettings:
    return EncoderSettings.of(str(encoder), max_tokens=64)


@pytest.fixture(scope="module")
def flat(corpus: Path, settings: EncoderSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "flat"
    build_dense(corpus, folder, settings)
    return folder


def exact(corpus: Path, folder: Path, settings: EncoderSettings, query: str) -> list[tuple[str, float]]:
    """(title, inner product) of every passage, best first, without any index."""
    encoder, passages = Encoder(settings), list(Corpus(corpus, folder))
    products = encoder.passages([p.contents for p in passages]) @ encoder.queries([query])[0]
    return [(passages[i].title, float(products[i])) for i in np.argsort(-products)]


class TestAnEncoder:
    def test_gives_unit_vectors_that_do_not_depend_on_the_batch(self, settings: EncoderSettings) -> None:
        encoder, texts = Encoder(settings), [text for _, text in PASSAGES] + ["Oslo"]
        together = encoder.passages(texts)
        alone = np.concatenate([encoder.passages([text]) for text in texts])
        assert together.shape == (len(texts), encoder.width) and together.dtype == np.float32
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5) and np.allclose(
            together, alone, atol=1e-5
        )

    def test_reads_prefixes_and_pools_as_its_name_asks(self, encoder: Path) -> None:
        assert EncoderSettings.of("intfloat/e5-base-v2").query_prefix == "query: "
        assert EncoderSettings.of("intfloat/multilingual-e5-large").passage_prefix == "passage: "
        assert EncoderSettings.of("sentence-transformers/all-MiniLM-L6-v2") == EncoderSettings(
            "sentence-transformers/all-MiniLM-L6-v2"
        )
        assert EncoderSettings.of("BAAI/bge-small-en-v1.5").pooling == "cls"
        plain, prefixed = EncoderSettings(str(encoder)), EncoderSettings(str(encoder), query_prefix="query: ")
        first = EncoderSettings(str(encoder), pooling="cls")
        assert np.allclose(
            Encoder(prefixed).queries(["Oslo"]), Encoder(plain).queries(["query: Oslo"]), atol=1e-6
        )
        assert not np.allclose(Encoder(first).queries(["Oslo"]), Encoder(plain).queries(["Oslo"]), atol=1e-2)

    def test_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be loaded"):
            Encoder(EncoderSettings(str(tmp_path)))
        with pytest.raises(DataError, match="one of mean, cls"):
            EncoderSettings.of("x", "max")


class TestSearch:
    @pytest.mark.parametrize("kind", ["Flat", "SQfp16", "IVF2,Flat", "HNSW8"])
    def test_is_exact_up_to_the_kind_of_index(
        self, kind: str, corpus: Path, settings: EncoderSettings, tmp_path: Path
    ) -> None:
        build_dense(
            corpus,
            tmp_path / "index",
            settings,
            kind=kind,
            parameters="nprobe=2" if kind.startswith("IVF") else None,
        )
        found = DenseRetriever(tmp_path / "index").search(["Norway", "who wrote a play"], 3)
        for query, hits in zip(["Norway", "who wrote a play"], found, strict=True):
            best = exact(corpus, tmp_path / "index", settings, query)[:3]
            assert [h.passage.title for h in hits] == [title for title, _ in best]
            assert np.allclose([h.score for h in hits], [product for _, product in best], atol=2e-3)

    def test_finds_a_passage_by_its_title(self, flat: Path) -> None:
        found = DenseRetriever(flat).search([title for title, _ in PASSAGES], 1)
        right = [hits[0].passage.title == title for hits, (title, _) in zip(found, PASSAGES, strict=True)]
        assert np.mean(right) >= 0.85, "an encoder trained on these very pairs; an untrained one finds few"

    def test_bears_no_queries_and_more_passages_than_there_are(self, flat: Path) -> None:
        retriever = DenseRetriever(flat)
        assert retriever.search([], 3) == []
        assert len(retriever.search([""], 100)[0]) == len(PASSAGES)


class TestABuild:
    def test_goes_on_where_it_was_stopped(
        self,
        corpus: Path,
        settings: EncoderSettings,
        flat: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(dense, "CHUNK_PASSAGES", 2)
        encoded: list[int] = []
        real = Encoder.passages

        def counted(self: Encoder, texts: list[str]) -> np.ndarray:
            if len(encoded) == 2:
                encoded.append(0)
                raise KeyboardInterrupt
            encoded.append(len(texts))
            return real(self, texts)

        monkeypatch.setattr(Encoder, "passages", counted)
        with pytest.raises(KeyboardInterrupt):
            build_dense(corpus, tmp_path / "index", settings)
        with pytest.raises(DataError, match="no dense index here"):
            DenseRetriever(tmp_path / "index")
        build_dense(corpus, tmp_path / "index", settings)
        assert sum(encoded) == len(PASSAGES), "nothing was encoded twice"
        assert self.scores(tmp_path / "index") == pytest.approx(self.scores(flat), abs=1e-4)

    def test_of_another_encoder_starts_anew(
        self, corpus: Path, settings: EncoderSettings, tmp_path: Path
    ) -> None:
        folder = tmp_path / "index"
        folder.mkdir()
        np.save(folder / dense.VECTORS, np.zeros((len(PASSAGES), 48), dtype=np.float16))
        (folder / dense.PROGRESS).write_text(
            json.dumps({"encoder": {"path": "another"}, "sha256": "x", "done": len(PASSAGES)})
        )
        build_dense(corpus, folder, settings)
        assert max(self.scores(folder)) > 0.1

    def test_takes_ready_made_vectors_that_fit(
        self, corpus: Path, settings: EncoderSettings, flat: Path, tmp_path: Path
    ) -> None:
        vectors = Encoder(settings).passages([p.contents for p in Corpus(corpus, flat)])
        np.save(tmp_path / "v.npy", vectors.astype(np.float16))
        build_dense(corpus, tmp_path / "index", settings, vectors=tmp_path / "v.npy")
        assert self.scores(tmp_path / "index") == pytest.approx(self.scores(flat), abs=1e-3)
        np.save(tmp_path / "v.npy", vectors[:-1])
        with pytest.raises(DataError, match="is not one vector for each of the 7 passages"):
            build_dense(corpus, tmp_path / "other", settings, vectors=tmp_path / "v.npy")

    def test_of_an_unknown_kind_is_refused(
        self, corpus: Path, settings: EncoderSettings, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match="not a FAISS index"):
            build_dense(corpus, tmp_path / "index", settings, kind="Best")

    def test_that_is_torn_or_of_another_width_is_refused(
        self, corpus: Path, settings: EncoderSettings, tmp_path: Path
    ) -> None:
        folder = tmp_path / "index"
        np.save(tmp_path / "v.npy", np.eye(len(PASSAGES), 32, dtype=np.float32))
        build_dense(corpus, folder, settings, vectors=tmp_path / "v.npy")
        with pytest.raises(
            DataError, match="7 vectors of 32 numbers, but the corpus has 7 passages and the encoder gives 48"
        ):
            DenseRetriever(folder)
        (folder / dense.INDEX).write_bytes((folder / dense.INDEX).read_bytes()[:40])
        with pytest.raises(DataError, match="torn"):
            DenseRetriever(folder)

    def scores(self, folder: Path) -> list[float]:
        return [hit.score for hits in DenseRetriever(folder).search(["Norway", "Houston"], 4) for hit in hits]


def test_an_approximate_index_over_a_larger_corpus_finds_most_of_what_is_exact(
    settings: EncoderSettings, tmp_path: Path
) -> None:
    rows = make_world(people=600, companies=0)[0]
    corpus = write_lines(tmp_path / "corpus.jsonl", rows)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(rows), 48)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = {}
    for kind, parameters in (
        ("Flat", None),
        ("IVF16,Flat", "nprobe=16"),
        ("IVF16,Flat", "nprobe=1"),
        ("HNSW16", None),
    ):
        folder = tmp_path / f"{kind}-{parameters}"
        build_dense(corpus, folder, settings, kind=kind, parameters=parameters, vectors=tmp_path / "v.npy")
        found[kind, parameters] = [
            {h.passage.passage_id for h in hits}
            for hits in DenseRetriever(folder).search(["Oslo", "Bergen", "play", "city"], 10)
        ]
    truth = found["Flat", None]

    def recall(key: tuple[str, str | None]) -> float:
        return float(np.mean([len(a & b) / len(a) for a, b in zip(truth, found[key], strict=True)]))

    assert recall(("IVF16,Flat", "nprobe=16")) == 1.0 and recall(("HNSW16", None)) > 0.8
    assert recall(("IVF16,Flat", "nprobe=1")) < 1.0, (
        "one list of sixteen cannot hold all: the parameter is obeyed"
    )
