"""`paw data search`: questions, passages, indices and the retrieval server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paw_hpc.system.errors import UserError

if TYPE_CHECKING:
    from paw_hpc.envs.search.data import DataSource

app = typer.Typer(no_args_is_help=True, help="Search QA's questions, passages and retrieval server.")

DataOption = Annotated[str, typer.Option("--data", help="auto, official, mini or generated.")]
CorpusOption = Annotated[
    Path | None,
    typer.Option(help="Passages in JSON lines with id and contents. Default: the corpus of --data."),
]
KeyFileOption = Annotated[
    Path | None, typer.Option(help="File with the server's key, which only you can read.")
]
TopkOption = Annotated[int, typer.Option(min=1, help="Passages per query.")]


@app.command()
def fetch(
    corpus: Annotated[
        bool, typer.Option(help="Also the wiki-18 passages: 5 GB to download, 14 GB on disk.")
    ] = True,
) -> None:
    """Download the official questions (and passages) into the cache."""
    from paw_hpc.envs.search import fetch as fetching

    print(fetching.fetch_questions())
    if corpus:
        print(fetching.fetch_corpus())


@app.command()
def build(
    corpus: CorpusOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the index. Default: where env.search.index=null looks (BM25 only)."),
    ] = None,
    retriever: Annotated[str, typer.Option(help="bm25 or dense.")] = "bm25",
    encoder: Annotated[str, typer.Option(help="dense: encoder folder or hub name.")] = "intfloat/e5-base-v2",
    pooling: Annotated[
        str | None, typer.Option(help="dense: mean or cls. Default: what suits the encoder's name.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=8, help="dense: tokens of a passage or query that are read.")
    ] = 256,
    index: Annotated[
        str,
        typer.Option(
            help="dense: kind of FAISS index, such as Flat, SQfp16, IVF4096,Flat, IVF65536,SQ8, HNSW32."
        ),
    ] = "Flat",
    parameters: Annotated[
        str | None, typer.Option(help="dense: FAISS search parameters, such as nprobe=64.")
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="dense: ready-made unit vectors (.npy) of the passages by the same encoder."),
    ] = None,
    source: DataOption = "auto",
) -> None:
    """Build the index of a corpus, in bounded memory. An interrupted dense build goes on where it stopped."""
    from paw_hpc.envs.search import bm25, data

    found = corpus or data.load(_source(source)).corpus
    if retriever == "bm25":
        folder = out or data.index_folder(found)
        bm25.build_bm25(found, folder, say=_say)
    elif retriever == "dense":
        from paw_hpc.envs.search import dense
        from paw_hpc.envs.search.encoder import EncoderSettings

        if out is None:
            raise UserError("--out: a dense index needs a folder")
        folder = out
        settings = EncoderSettings.of(encoder, pooling, max_tokens)
        dense.build_dense(
            found, folder, settings, kind=index, parameters=parameters, vectors=vectors, say=_say
        )
    else:
        raise UserError(f"--retriever {retriever}: one of bm25, dense")
    print(folder)


@app.command()
def verify(source: DataOption = "auto") -> None:
    """Read every question and count them against the published sets. Exit status 1 where they differ."""
    from paw_hpc.envs.search import data

    kind, folder = data.find(_source(source))
    print(f"{kind} questions in {folder}")
    found = data.verify(_source(source))
    for part in found:
        state = (
            ""
            if part.expected is None
            else f" of {part.expected}, {'as published' if part.intact else 'NOT as published'}"
        )
        print(f"{part.name}: {part.found}{state}")
    if not all(part.intact for part in found):
        raise typer.Exit(1)


@app.command("list")
def list_questions(
    panel: Annotated[
        str, typer.Argument(help="train, or a panel: test, in_domain, out_of_domain, nq, ..., PANEL:N@SEED.")
    ] = "test",
    source: DataOption = "auto",
) -> None:
    """List a panel's questions: task id, question, golden answers."""
    from paw_hpc.envs.search.benchmark import SearchQA
    from paw_hpc.recipe import EnvSection, SearchSection

    benchmark = SearchQA(EnvSection(name="search", search=SearchSection(data=_source(source))))
    for task in benchmark.tasks("train") if panel == "train" else benchmark.panel(panel).tasks:
        question = benchmark.question(task)
        print(f"{task.task_id}\t{question.question}\t{' | '.join(question.answers)}")


@app.command()
def serve(
    index: Annotated[
        Path | None,
        typer.Argument(
            metavar="[INDEX]", help="Folder made by `paw data search build`. Default: BM25 of --data."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for other nodes.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    topk: TopkOption = 3,
    max_batch: Annotated[int, typer.Option(min=1, help="Queries that are searched together.")] = 256,
    calls: Annotated[int, typer.Option(min=1, help="Batches under way at once (BM25: one per core).")] = 1,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key that clients must send (env.search.key_file), mode 0600."),
    ] = None,
    corpus: CorpusOption = None,
    source: DataOption = "auto",
) -> None:
    """Serve a retriever: POST /retrieve {queries, topk, return_scores}, GET /health."""
    from paw_hpc.envs.search.benchmark import default_index, open_index
    from paw_hpc.envs.search.server import serve as serve_app
    from paw_hpc.system.keys import read_key

    key = None if key_file is None else read_key(key_file, "--key-file")
    retriever = open_index(index or default_index(_source(source)), corpus)
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    strangers = "every user of this machine" + ("" if local else ", and whoever reaches it from elsewhere,")
    who = "with a key" if key else f"without a key: {strangers} may search"
    _say(f"{retriever.name} at http://{host}:{port}, {who}")
    serve_app(retriever, host, port, key=key, topk=topk, max_batch=max_batch, calls=calls)


@app.command("load-test")
def load_test(
    url: Annotated[str, typer.Argument(help="A retrieval server, such as http://127.0.0.1:8000.")],
    requests: Annotated[int, typer.Option(min=1)] = 500,
    clients: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="Queries of a request.")] = 8,
    topk: TopkOption = 3,
    key_file: KeyFileOption = None,
    source: DataOption = "auto",
) -> None:
    """Ask a server as fast as it answers, with test questions as queries. Exit status 1 where a request
    failed."""
    from paw_hpc.envs.search import data
    from paw_hpc.envs.search import load_test as load
    from paw_hpc.system.keys import read_key

    key = None if key_file is None else read_key(key_file, "--key-file")
    queries = [question.question for question in data.load(_source(source)).test]
    result = load.load_test(url, queries, requests=requests, clients=clients, batch=batch, topk=topk, key=key)
    print(
        f"{result.requests} requests of {batch} queries from {clients} clients: {result.queries_per_s:.0f} "
        f"queries/s, {result.failed} failed"
    )
    print(
        f"request time: median {result.p50_s * 1e3:.1f} ms, 95 % {result.p95_s * 1e3:.1f} ms, 99 % "
        f"{result.p99_s * 1e3:.1f} ms"
    )
    if result.failed:
        raise typer.Exit(1)


def _source(name: str) -> DataSource:
    if name not in ("auto", "official", "mini", "generated"):
        raise UserError(f"--data {name}: one of auto, official, mini, generated")
    return name  # type: ignore[return-value]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
