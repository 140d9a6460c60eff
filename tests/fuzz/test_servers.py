"""Answers of a retriever and of SGLang's servers: whatever they say, an episode fails or a server is
replaced, and the run goes on."""

from __future__ import annotations

import asyncio
import functools
import json
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from paw_hpc.envs.search.protocol import passages_text
from paw_hpc.envs.search.retriever import RetrieverFailure
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.system.errors import UserError
from tests.fuzz.harness import Target, judged
from tests.fuzz.inputs import as_json, json_files

remote = pytest.importorskip(
    "paw_hpc.envs.search.remote", reason="the extra `search` is not installed", exc_type=ImportError
)
client = pytest.importorskip(
    "paw_hpc.rollout.sglang.client", reason="the extra `sglang` is not installed", exc_type=ImportError
)
from paw_hpc.rollout.sglang.engine import SGLangEngine, _Turn  # noqa: E402

DOCUMENT = {"id": "p0", "contents": '"Oslo"\nOslo is the capital of Norway.'}
FOUND = {"result": [[{"document": DOCUMENT, "score": 1.5}, {"document": {**DOCUMENT, "id": 7}}], [DOCUMENT]]}
LONG = {"result": [[{"document": {"id": "p", "contents": "word " * 1_000_000}}], []]}
STATUS = st.sampled_from((200,) * 8 + (204, 302, 400, 422, 429, 500, 503))


@functools.cache
def _retriever() -> Any:
    return remote.HttpRetriever("http://127.0.0.1:9", timeout_s=5, give_up_s=0)


def _retrieved(found: tuple[int, bytes]) -> None:
    retriever = _retriever()

    async def answered(payload: dict[str, Any]) -> tuple[int, bytes]:
        return found

    retriever._post = answered
    hits = judged(retriever.search, ["a", "b"], 3, refused=RetrieverFailure)
    if isinstance(hits, list):
        assert len(hits) == 2
        for each in hits:
            judged(passages_text, [hit.passage for hit in each], None).encode()
            assert all(
                isinstance(hit.score, float) and hit.passage.passage_id.encode() is not None for hit in each
            )


GENERATED = {
    "text": "look",
    "meta_info": {
        "id": "r", "finish_reason": {"type": "stop", "matched": 2}, "weight_version": "3", "first_token_latency": 0.01,
        "output_token_logprobs": [[-0.5, 4, None], [-0.1, 2, "look"]],
        "weight_versions": [{"version": "3", "start": 0, "end": 2}],
    },
}  # fmt: skip
OLDER = {
    "meta_info": {key: value for key, value in GENERATED["meta_info"].items() if key != "weight_versions"}
}  # type: ignore[attr-defined]
CUT = {
    "meta_info": {
        **GENERATED["meta_info"],
        "finish_reason": {"type": "abort", "status_code": 400, "message": "too long"},
    }
}  # type: ignore[dict-item]
MILLION = {"meta_info": {**GENERATED["meta_info"], "output_token_logprobs": [[-0.5, 4, None]] * 1_000_000}}  # type: ignore[dict-item]
BODIES = {
    "generate": json_files(GENERATED) | json_files(OLDER) | json_files(CUT),
    "weight_version": json_files({"weight_version": "3"}),
    "info": json_files({"max_req_input_len": 4096, "version": "0.5"}),
    "checksums": json_files({"ranks": [{"checksums": {"a": "f00"}}], "success": True}),
    "begin_update": json_files({"success": True, "message": "update already open"}),
    "pause": json_files({"success": True, "error": {"message": "x"}}),
    "flush_cache": json_files({"error": {"message": "x"}}),
}
ANSWERS = st.one_of(*(st.tuples(st.just(call), STATUS, st.sampled_from(("application/json", "application/json", "text/plain")), bodies)
                      for call, bodies in BODIES.items()))  # fmt: skip
VOCABULARY, MOST_TOKENS = 50, 8


class _Http:
    """One answer to everything, as aiohttp hands it out."""

    def __init__(self, status: int, kind: str, body: bytes):
        self.status, self.content_type, self.body = status, kind, body
        self.content = self

    @asynccontextmanager
    async def request(self, *_: Any, **__: Any) -> AsyncIterator[_Http]:
        yield self

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for first in range(0, len(self.body), size):
            yield self.body[first : first + size]


def _served(found: tuple[str, int, str, bytes]) -> None:
    call, status, kind, body = found
    asked = client.ServerClient("server 0", "http://127.0.0.1:9", _Http(status, kind, body))
    server = types.SimpleNamespace(name="server 0", http=asked, version=3)
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: _engine()._ask(
            server, GenerationRequest(0, np.array([1, 2], np.int32), 7, 1.0, MOST_TOKENS), _Turn()
        ),
        "checksums": lambda: asked.checksums([], 1.0),
        "begin_update": lambda: asked.begin_update(1.0),
        "info": lambda: asked.info(1.0),
        "flush_cache": lambda: asked.flush_cache(1.0),
    }
    answer = judged(
        lambda: asyncio.run(calls.get(call, getattr(asked, call))()), refused=(client.ServerFault, UserError)
    )
    if call == "generate" and not isinstance(answer, Exception):
        assert len(answer.ids) == len(answer.logprobs) == len(answer.versions) <= MOST_TOKENS
        assert (
            (answer.ids >= 0).all()
            and (answer.ids < VOCABULARY).all()
            and answer.ended in ("stop", "length", "abort")
        )
        assert answer.first_token_s is None or isinstance(answer.first_token_s, float)


def _engine() -> Any:
    settings = types.SimpleNamespace(request_timeout_s=1.0)
    routing = types.SimpleNamespace(ask=lambda server, request: request)
    fleet = types.SimpleNamespace(settings=settings, routing=routing, count=lambda name: None)
    return SGLangEngine(fleet, frozenset({2}), types.SimpleNamespace(strings=()), VOCABULARY)  # type: ignore[arg-type]


def _without_types(kind: Any, value: Any) -> Any:
    return value


TARGETS = [
    Target(
        "retriever",
        st.tuples(STATUS, json_files(FOUND)),
        _retrieved,
        lambda patch: patch.setattr(remote, "read_json", json.loads),
    ),
    Target("SGLang", ANSWERS, _served, lambda patch: patch.setattr(client, "checked", _without_types)),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_answer_is_one_or_a_fault_of_its_server(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)


def test_a_million_words_or_tokens_are_too_many_or_soon_read() -> None:
    _retrieved((200, as_json(LONG)))
    _served(("generate", 200, "application/json", as_json(MILLION)))
