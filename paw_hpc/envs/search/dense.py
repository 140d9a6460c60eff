"""Dense retrieval: unit vectors of all passages in a FAISS index, searched by inner product.

The kind of index is FAISS's own factory string: `Flat` (exact), `SQfp16` (exact over half-precision vectors),
`IVF4096,Flat`, `IVF65536,SQ8`, `HNSW32`. Vectors are encoded in chunks into one memory-mapped half-precision
file; an interrupted build goes on with the chunk that it was at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paw_hpc.envs.search import corpus as corpora
from paw_hpc.envs.search.bm25 import Say
from paw_hpc.envs.search.corpus import Corpus, Identity
from paw_hpc.envs.search.encoder import Encoder, EncoderSettings
from paw_hpc.envs.search.retriever import DENSE_META, Hit
from paw_hpc.system.data_paths import atomic_file
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import checked, read_json

INDEX, VECTORS, PROGRESS = "index.faiss", "vectors.npy", "vectors.json"
CHUNK_PASSAGES = 8192
TRAINING_VECTORS_PER_LIST = 64
SEARCH_PARAMETERS = {"IVF": "nprobe=64", "HNSW": "efSearch=128"}
"""How thoroughly the approximate indices are searched; the builder may say otherwise."""

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class _Meta:
    corpus: str
    encoder: dict[str, Any]
    kind: str
    parameters: str
    """FAISS's search parameters, such as nprobe=64."""


class DenseRetriever:
    """Implements `paw_hpc.envs.search.retriever.Retriever` with an index that `build_dense` made.

    Args:
        corpus: path of the corpus; none: where it lay when the index was built.

    Raises:
        DataError: index or encoder missing or torn, or of another corpus.
    """

    def __init__(self, folder: Path, corpus: Path | None = None):
        self._meta = _read_meta(folder)
        self._corpus = Corpus(corpus or Path(self._meta.corpus), folder)
        self._encoder = Encoder(EncoderSettings(**self._meta.encoder))
        try:
            mapped = self._meta.kind.startswith("IVF") and not faiss.get_num_gpus()
            index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP if mapped else 0)
        except RuntimeError as error:
            raise DataError(
                f"{folder / INDEX}: torn ({' '.join(str(error).split())[-120:]}); build it anew with `paw "
                "data search build`"
            ) from None
        if index.ntotal != len(self._corpus) or index.d != self._encoder.width:
            raise DataError(
                f"{folder}: {index.ntotal} vectors of {index.d} numbers, but the corpus has "
                f"{len(self._corpus)} passages and the encoder "
                f"gives {self._encoder.width}; build the index anew"
            )
        if self._meta.parameters:
            faiss.ParameterSpace().set_index_parameters(index, self._meta.parameters)  # type: ignore[arg-type]
        self._index = _on_gpus(index)

    @property
    def name(self) -> str:
        return (
            f"{Path(self._meta.encoder['path']).name} with {self._meta.kind} over {len(self._corpus)} "
            "passages"
        )

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        if not queries:
            return []
        scores, numbers = self._index.search(self._encoder.queries(queries), min(topk, len(self._corpus)))
        return [
            [
                Hit(self._corpus[int(number)], float(score))
                for number, score in zip(row, of_row, strict=True)
                if number >= 0
            ]
            for row, of_row in zip(numbers, scores, strict=True)
        ]

    def close(self) -> None:
        pass


def build_dense(
    corpus: Path,
    folder: Path,
    encoder: EncoderSettings,
    *,
    kind: str = "Flat",
    parameters: str | None = None,
    vectors: Path | None = None,
    say: Say = lambda _: None,
) -> None:
    """Build, or go on building, the index of a corpus in `folder`.

    Args:
        kind: FAISS factory string.
        parameters: FAISS search parameters; none: SEARCH_PARAMETERS of the kind.
        vectors: a file of ready-made unit vectors [passages, width] (.npy), made by the same encoder; none:
            encode.

    Raises:
        DataError: a torn corpus, an encoder that cannot be loaded, vectors that do not fit, an unknown kind
            of index, a full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DENSE_META).unlink(missing_ok=True)  # written last: it is what makes an index whole
        identity = corpora.index_corpus(corpus, folder)
        made = (
            _ready_made(vectors, identity)
            if vectors is not None
            else _encoded(Corpus(corpus, folder), folder, encoder, identity, say)
        )
        index = _filled(made, kind, say)
        faiss.write_index(index, str(folder / f"{INDEX}.building"))
        (folder / f"{INDEX}.building").replace(folder / INDEX)
        for name in (VECTORS, PROGRESS):
            (folder / name).unlink(missing_ok=True)
        if parameters is None:
            parameters = next(
                (value for prefix, value in SEARCH_PARAMETERS.items() if kind.startswith(prefix)), ""
            )
        meta = {
            "corpus": str(corpus.resolve()),
            "encoder": encoder.as_dict(),
            "kind": kind,
            "parameters": parameters,
        }
        with atomic_file(folder / DENSE_META) as file:
            file.write(json.dumps(meta).encode())
    except OSError as error:
        raise DataError(
            f"{folder}: the index cannot be written ({error.strerror or error}); make room, or give "
            "another --out"
        ) from error


def _encoded(corpus: Corpus, folder: Path, settings: EncoderSettings, identity: Identity, say: Say) -> Halves:
    """float16[N, width], memory-mapped; every chunk is on disk before it counts as done."""
    encoder, progress = Encoder(settings), folder / PROGRESS
    job = {"encoder": settings.as_dict(), "sha256": identity.sha256}
    done, shape = _done(progress, job), (len(corpus), encoder.width)
    mode = "r+" if done and (folder / VECTORS).is_file() else "w+"
    done = done if mode == "r+" else 0
    vectors = np.lib.format.open_memmap(
        folder / VECTORS, mode=mode, dtype=np.float16, shape=shape if mode == "w+" else None
    )
    while done < len(corpus):
        end = min(done + CHUNK_PASSAGES, len(corpus))
        vectors[done:end] = encoder.passages([corpus[i].contents for i in range(done, end)])
        vectors.flush()
        done = end
        with atomic_file(progress) as file:
            file.write(json.dumps({**job, "done": done}).encode())
        say(f"{done} of {len(corpus)} passages encoded")
    return vectors


def _done(progress: Path, job: dict[str, Any]) -> int:
    """Passages that an interrupted build of the same job has encoded."""
    try:
        kept = checked(dict[str, Any], read_json(progress.read_bytes()))
    except (OSError, ValueError):
        return 0
    done = kept.get("done")
    return done if isinstance(done, int) and {key: kept.get(key) for key in job} == job else 0


def _ready_made(path: Path, identity: Identity) -> Halves:
    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an array ({error})") from None
    if vectors.ndim != 2 or len(vectors) != identity.passages:
        raise DataError(
            f"{path}: {vectors.shape} is not one vector for each of the {identity.passages} passages"
        )
    return vectors  # type: ignore[no-any-return]


def _filled(vectors: Halves, kind: str, say: Say) -> Any:
    try:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise DataError(
            f"--index {kind}: not a FAISS index; for example Flat, SQfp16, IVF4096,Flat or HNSW32"
        ) from None
    if not index.is_trained:
        lists = faiss.extract_index_ivf(index).nlist if kind.startswith("IVF") else 256
        sample = np.sort(
            np.random.default_rng(0).permutation(len(vectors))[: lists * TRAINING_VECTORS_PER_LIST]
        )
        say(f"training {kind} on {len(sample)} vectors")
        index.train(vectors[sample].astype(np.float32))
    for first in range(0, len(vectors), 1 << 16):
        index.add(vectors[first : first + (1 << 16)].astype(np.float32))
        say(f"{index.ntotal} of {len(vectors)} vectors in the index")
    return index


def _on_gpus(index: Any) -> Any:
    """The index on all GPUs where FAISS was built for them (shared out among them, half precision), else as
    it is."""
    if not faiss.get_num_gpus():
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard, options.useFloat16 = True, True
    return faiss.index_cpu_to_all_gpus(index, co=options)


def _read_meta(folder: Path) -> _Meta:
    try:
        return checked(_Meta, read_json((folder / DENSE_META).read_bytes()))
    except (OSError, ValueError):
        raise DataError(
            f"{folder}: no dense index here; build one with `paw data search build --retriever dense --out "
            f"{folder}`"
        ) from None
