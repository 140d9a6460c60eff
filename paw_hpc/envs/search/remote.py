"""The client of a retrieval server: POST /retrieve with {queries, topk, return_scores}, the protocol that
Search-R1 made common."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import httpx
import tenacity

from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.retriever import Hit, RetrieverFailure
from paw_hpc.system.errors import UserError
from paw_hpc.system.keys import bearer
from paw_hpc.system.outside import read_json
from paw_hpc.system.text import well_formed

MOST_BYTES = 64 << 20
"""Of an answer."""
_log = logging.getLogger(__name__)


class HttpRetriever:
    """Implements `paw_hpc.envs.search.retriever.Retriever` by asking a server: again, with growing waits,
    while it is down or answers nonsense.

    Args:
        url: the server, with or without /retrieve.
        timeout_s: longest wait for one whole answer, from the first byte that is sent to the last that comes.
        give_up_s: no new try is made later than this after the first.
        longest_wait_s: between two tries.
        key: what the server asks for.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        give_up_s: float,
        longest_wait_s: float = 10.0,
        key: str | None = None,
    ):
        self._url = url.rstrip("/").removesuffix("/retrieve") + "/retrieve"
        self._stop = threading.Event()
        self._timeout_s = timeout_s
        # In an event loop of its own: a blocking client can bound each read, but not the whole of an answer
        # that comes byte by byte.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="retriever client")
        self._thread.start()
        # The addresses of a cluster's own nodes are no business of a proxy.
        self._client = httpx.AsyncClient(
            timeout=None, limits=httpx.Limits(max_connections=None), trust_env=False, headers=bearer(key)
        )
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_another_try),
            stop=tenacity.stop_any(
                tenacity.stop_after_delay(give_up_s), tenacity.stop_when_event_set(self._stop)
            ),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=longest_wait_s),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=self._tell,
            reraise=True,
        )

    @property
    def name(self) -> str:
        return f"retriever at {self._url}"

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As the protocol says. Raises UserError where the server does not take the key: it would refuse
        every other search, too."""
        # A copy, because Retrying keeps the state of its last call and several threads search at once.
        return self._retrying.copy()(self._ask, list(queries), topk)

    def close(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.aclose()

    async def _post(self, payload: dict[str, Any]) -> tuple[int, bytes]:
        """(status, body)."""
        body = bytearray()
        async with (
            asyncio.timeout(self._timeout_s),
            self._client.stream("POST", self._url, json=payload) as response,
        ):
            async for block in response.aiter_bytes():
                body += block
                if len(body) > MOST_BYTES:
                    raise RetrieverFailure(f"{self._url}: answers with more than {MOST_BYTES} bytes")
        return response.status_code, bytes(body)

    def _ask(self, queries: list[str], topk: int) -> list[list[Hit]]:
        if self._stop.is_set():
            raise RetrieverFailure(f"{self._url}: not asked, its client is closed")
        asked = self._post({"queries": queries, "topk": topk, "return_scores": True})
        try:
            status, body = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except TimeoutError:
            raise RetrieverFailure(f"{self._url}: no whole answer in {self._timeout_s:g} s") from None
        except RetrieverFailure:
            raise
        except (
            httpx.HTTPError,
            RuntimeError,
            CancelledError,
        ) as error:  # RuntimeError, CancelledError: the client was closed meanwhile
            raise RetrieverFailure(f"{self._url}: not reached ({error or type(error).__name__})") from None
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError(
                f"{self._url}: it does not take this run's key (status {status}); see env.search.key_file"
            )
        if status != httpx.codes.OK:
            refused = httpx.codes.is_client_error(status) and status not in (408, 425, 429)
            raise RetrieverFailure(
                f"{self._url}: status {status} ({body[:100].decode(errors='replace')!r})", refused=refused
            )
        try:
            results = read_json(body)["result"]
            if len(results) != len(queries):
                raise ValueError(f"{len(results)} results for {len(queries)} queries")
            return [[_hit(entry) for entry in result[:topk]] for result in results]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise RetrieverFailure(
                f"{self._url}: answered nonsense ({type(error).__name__}: {str(error)[:200]})"
            ) from None

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning(
            "%s; try %d, again in %.1f s",
            error,
            state.attempt_number,
            state.next_action.sleep if state.next_action else 0.0,
        )


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, RetrieverFailure) and not error.refused


def _hit(entry: Any) -> Hit:
    """{"document": {...}, "score": s}, or the bare document of a server that was asked for no scores."""
    document = entry.get("document", entry)
    contents = document["contents"]
    if not isinstance(contents, str):
        raise TypeError(f"contents is {type(contents).__name__}")
    # What a server says is not ours to put right: half a character, which no tokenizer takes, must not end
    # the run.
    number = document.get("id", "")
    if not isinstance(number, str | int):
        raise TypeError(f"id is {type(number).__name__}")
    passage = Passage(well_formed(str(number)), well_formed(contents))
    return Hit(passage, float(entry.get("score") or 0.0))
