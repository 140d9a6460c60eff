"""BM25 over a corpus of any size: an index that is built in bounded memory, in the files of `bm25s`, which
scores queries from mapped memory.

`bm25s` builds from a whole tokenised corpus in memory. Here passages are read in chunks: a first pass counts
(term, passage, frequency) and spools them to disk, a second one computes the scores (Lucene's BM25, Kamphuis
et al. 2020) and places each chunk's postings behind those of the chunks before it. The result is the
library's own index of the same corpus (tested), up to rounding.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paw_hpc.envs.search import corpus as corpora
from paw_hpc.envs.search.corpus import Corpus
from paw_hpc.envs.search.retriever import BM25_META, Hit
from paw_hpc.envs.search.words import terms
from paw_hpc.system.errors import DataError
from paw_hpc.system.extras import hidden
from paw_hpc.system.outside import checked, read_json

# Where JAX is installed, bm25s starts it when it is imported, and JAX takes three quarters of a GPU's memory
# for itself: the policy then finds none (seen on an H200). It would also choose otherwise among equal scores.
with hidden("jax"):
    import bm25s

K1, B = 0.9, 0.4
"""As the widely used Lucene baselines over Wikipedia passages (Anserini's defaults)."""
CHUNK_PASSAGES = 200_000
COMPILED_FROM_PASSAGES = 10_000
_DATA, _INDICES, _INDPTR, _VOCAB, _PARAMS = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    "params.index.json",
)

Say = Callable[[str], None]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class Bm25Retriever:
    """Implements `paw_hpc.envs.search.retriever.Retriever` with an index that `build_bm25` made.

    Args:
        corpus: path of the corpus; none: where it lay when the index was built.
        backend: of bm25s. auto: compiled by numba (some seconds at the start, then many times as fast), but
            numpy for a corpus of few passages.

    Raises:
        DataError: the index is missing, torn, or of another corpus.
    """

    def __init__(self, folder: Path, corpus: Path | None = None, *, backend: str = "auto"):
        self._corpus = Corpus(corpus or Path(_read_meta(folder)["corpus"]), folder)
        if backend == "auto":
            backend = "numba" if len(self._corpus) >= COMPILED_FROM_PASSAGES else "numpy"
        try:
            self._index = bm25s.BM25.load(folder, mmap=True, load_vocab=False, backend=backend)
            self._vocabulary: dict[str, int] = json.loads((folder / _VOCAB).read_text(encoding="utf-8"))
            whole = len(self._index.scores["indptr"]) == len(self._vocabulary) + 1 and self._index.scores[
                "num_docs"
            ] == len(self._corpus)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: the index is torn ({type(error).__name__}: {error}); build it anew with `paw "
                "data search build`"
            ) from None
        if not whole:
            raise DataError(
                f"{folder}: the parts of the index do not fit each other; build it anew with `paw data "
                "search build`"
            )
        # what the library looks ids up in: a set of millions would cost a gigabyte
        self._index.unique_token_ids_set = range(len(self._vocabulary))
        self._threads = 1 if self._index.backend == "numba" else 0
        if self._index.backend == "numba":
            self.search([next(iter(self._vocabulary))], 1)  # compiles

    @property
    def name(self) -> str:
        return f"BM25 over {len(self._corpus)} passages"

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        known = [[i for i in map(self._vocabulary.get, terms(query)) if i is not None] for query in queries]
        asked = [ids for ids in known if ids]
        if not asked:
            return [[] for _ in queries]
        found = self._index.retrieve(
            asked, k=min(topk, len(self._corpus)), show_progress=False, n_threads=self._threads
        )
        answers = iter(zip(found.documents, found.scores, strict=True))
        return [self._hits(*next(answers)) if ids else [] for ids in known]

    def _hits(self, numbers: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> list[Hit]:
        return [
            Hit(self._corpus[int(numbers[i])], float(scores[i]))
            for i in np.lexsort((numbers, -scores))
            if scores[i] > 0
        ]

    def close(self) -> None:
        pass


def build_bm25(
    corpus: Path,
    folder: Path,
    *,
    k1: float = K1,
    b: float = B,
    chunk_passages: int = CHUNK_PASSAGES,
    say: Say = lambda _: None,
) -> None:
    """Build the index of a corpus in `folder`, which appears when it is whole (an earlier one is replaced).

    Memory: the vocabulary, and one chunk. Disk: the index (8 bytes a posting) and, while it builds, a spool
    of the same size.

    Raises:
        DataError: a corpus that is missing or torn, or a disk that is full.
    """
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        identity = corpora.index_corpus(corpus, building)
        say(f"{identity.passages} passages checked")
        spool = _spool(Corpus(corpus, building), building, chunk_passages, say)
        _place(spool, building, k1, b, say)
        (building / _VOCAB).write_text(json.dumps(spool.vocabulary, ensure_ascii=False), encoding="utf-8")
        params = {
            "k1": k1,
            "b": b,
            "delta": 0.5,
            "method": "lucene",
            "idf_method": "lucene",
            "dtype": "float32",
            "int_dtype": "int32",
        }
        (building / _PARAMS).write_text(
            json.dumps({**params, "num_docs": identity.passages, "version": bm25s.__version__}),
            encoding="utf-8",
        )
        (building / BM25_META).write_text(
            json.dumps({"corpus": str(corpus.resolve()), "k1": k1, "b": b}), encoding="utf-8"
        )
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as error:
        raise DataError(
            f"{building}: the index cannot be written ({error.strerror or error}); make room, or give "
            "another --out"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


@dataclass(slots=True)
class _Spool:
    """What the first pass knows: postings of each chunk on disk as (term, passage, frequency) in passage
    order, lengths, passages per term."""

    chunks: list[Path]
    vocabulary: dict[str, int]
    lengths: Int32s
    """Terms of each passage, repeats included."""
    passages_of: Int64s
    """Passages in which each term stands."""


def _spool(corpus: Corpus, folder: Path, chunk_passages: int, say: Say) -> _Spool:
    vocabulary: dict[str, int] = {}
    chunks, lengths, passages_of, done = [], [], np.zeros(0, dtype=np.int64), 0
    for number, texts in enumerate(_chunks(corpus, chunk_passages)):
        ids, length = array("i"), array("i")
        for text in texts:
            found = terms(text)
            ids.extend(vocabulary.setdefault(term, len(vocabulary)) for term in found)
            length.append(len(found))
        of_chunk = np.asarray(length, dtype=np.int32)
        passage = np.repeat(np.arange(done, done + len(length), dtype=np.int64), of_chunk)
        # One number per (term, passage), sorted by term, then passage: the order in which the second pass
        # places them.
        keys, frequency = np.unique((np.asarray(ids, dtype=np.int64) << 32) | passage, return_counts=True)
        term = (keys >> 32).astype(np.int32)
        path = folder / f"spool-{number:05d}.npy"
        np.save(path, np.stack([term, (keys & 0xFFFFFFFF).astype(np.int32), frequency.astype(np.int32)]))
        chunks.append(path)
        lengths.append(of_chunk)
        counts = np.bincount(term, minlength=len(vocabulary))
        counts[: len(passages_of)] += passages_of
        passages_of = counts
        done += len(length)
        say(f"{done} passages read, {len(vocabulary)} terms")
    return _Spool(chunks, vocabulary, np.concatenate(lengths), passages_of)


def _place(spool: _Spool, folder: Path, k1: float, b: float, say: Say) -> None:
    count = len(spool.lengths)
    idf = np.log(1 + (count - spool.passages_of + 0.5) / (spool.passages_of + 0.5))
    norm = k1 * (1 - b + b * spool.lengths / max(spool.lengths.mean(), 1e-9))
    indptr = np.concatenate([[0], np.cumsum(spool.passages_of)]).astype(np.int64)
    np.save(folder / _INDPTR, indptr)
    shape = (int(indptr[-1]),)
    data = np.lib.format.open_memmap(folder / _DATA, mode="w+", dtype=np.float32, shape=shape)
    indices = np.lib.format.open_memmap(folder / _INDICES, mode="w+", dtype=np.int32, shape=shape)
    cursor = indptr[:-1].copy()
    for number, path in enumerate(spool.chunks, 1):
        term, passage, frequency = np.load(path, mmap_mode="r")
        # Postings of one term stand together in a chunk; each goes behind those that earlier chunks have
        # placed.
        starts = np.flatnonzero(np.diff(term, prepend=-1))
        here = np.diff(starts, append=len(term))
        place = np.repeat(cursor[term[starts]] - starts, here) + np.arange(len(term))
        data[place] = idf[term] * frequency / (norm[passage] + frequency)
        indices[place] = passage
        cursor[term[starts]] += here
        path.unlink()
        say(f"chunk {number} of {len(spool.chunks)} placed")
    data.flush()
    indices.flush()


def _chunks(corpus: Corpus, size: int) -> Iterator[list[str]]:
    passages = iter(corpus)
    while texts := [passage.contents for passage in islice(passages, size)]:
        yield texts


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = checked(dict[str, Any], read_json((folder / BM25_META).read_bytes()))
        if not isinstance(meta.get("corpus"), str):
            raise ValueError
    except (OSError, ValueError):
        raise DataError(
            f"{folder}: no BM25 index here; build one with `paw data search build --corpus CORPUS --out "
            f"{folder}`"
        ) from None
    return meta
