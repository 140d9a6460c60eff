"""`paw data search serve`: any retriever of this package behind the common HTTP protocol.

    POST /retrieve  {"queries": [text, ...], "topk": 3, "return_scores": true}
                 -> {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]};
                 without scores {"result": [[{"id", "contents"}, ...], ...]}
    GET  /health -> {"status": "ok", "retriever", "queries", "uptime_s"}

Requests of all clients share batches (see batching.py). The retriever is loaded before the port is opened: a
server that answers is ready. With a key, whoever does not send it (`Authorization: Bearer KEY`) hears from
/health that the server lives, and from everything else status 401.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from paw_hpc.envs.search.batching import SearchDesk
from paw_hpc.envs.search.retriever import Hit, Retriever, RetrieverFailure
from paw_hpc.envs.serving import WholeBody
from paw_hpc.envs.serving import serve as serve_app
from paw_hpc.system.keys import KeyDoor

MAX_QUERIES, MAX_TOPK, MAX_QUERY_CHARACTERS = 4096, 100, 20_000
LONGEST_BODY_BYTES = MAX_QUERIES * MAX_QUERY_CHARACTERS


class RetrieveRequest(BaseModel):
    """The body of POST /retrieve."""

    queries: Annotated[
        list[Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]], Field(max_length=MAX_QUERIES)
    ]
    topk: Annotated[int, Field(ge=1, le=MAX_TOPK)] | None = None
    return_scores: bool = False


def make_app(
    retriever: Retriever, *, topk: int = 3, max_batch: int = 256, calls: int = 1, key: str | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        topk: passages per query where a request does not say.
        max_batch, calls: see SearchDesk.
        key: what a client must send; None lets everybody search.
    """
    started, served = time.monotonic(), {"queries": 0}
    desk = SearchDesk(retriever, max_batch=max_batch, calls=calls)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await desk.close()

    app = FastAPI(title="paw retriever", lifespan=lifespan)

    @app.post("/retrieve")
    async def retrieve(request: RetrieveRequest) -> dict[str, Any]:
        asked = request.topk or topk
        try:
            found = await desk.search_all(request.queries, asked)
        except RetrieverFailure as error:
            raise HTTPException(503, str(error)) from None
        served["queries"] += len(request.queries)
        return {"result": [[_entry(hit, request.return_scores) for hit in hits] for hits in found]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "retriever": retriever.name,
            "queries": served["queries"],
            "uptime_s": round(time.monotonic() - started, 1),
        }

    app.add_middleware(WholeBody, longest=LONGEST_BODY_BYTES)
    if key is not None:
        app.add_middleware(KeyDoor, key=key, health="/health")
    return app


def serve(retriever: Retriever, host: str, port: int, *, key: str | None = None, **settings: int) -> None:
    """Serve until a signal ends it."""
    serve_app(make_app(retriever, key=key, **settings), host, port)


def _entry(hit: Hit, with_score: bool) -> dict[str, Any]:
    document = {"id": hit.passage.passage_id, "contents": hit.passage.contents}
    return {"document": document, "score": hit.score} if with_score else document
