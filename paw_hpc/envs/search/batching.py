"""Queries of many episodes (or clients), asked together: whatever waits while the retriever works is its next
batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from paw_hpc.envs.search.retriever import Hit, Retriever, RetrieverFailure

_Waiting = tuple[str, int, "asyncio.Future[list[Hit]]"]
"""Query, topk, who waits for the answer."""


class SearchDesk:
    """Gives a retriever's answers to coroutines. Used from one event loop.

    A batch that the retriever refuses is asked again in halves, so that one bad query costs its own episode
    and not those of its neighbours.

    Args:
        max_batch: queries of one call.
        calls: how many calls may be under way at once (threads).
    """

    def __init__(self, retriever: Retriever, *, max_batch: int = 256, calls: int = 1):
        self._retriever, self._max_batch = retriever, max_batch
        self._free = calls
        self._waiting: list[_Waiting] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def search(self, query: str, topk: int) -> list[Hit]:
        """Raises RetrieverFailure."""
        return (await self.search_all([query], topk))[0]

    async def search_all(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Raises RetrieverFailure."""
        futures = [asyncio.get_running_loop().create_future() for _ in queries]
        self._waiting += [(query, topk, future) for query, future in zip(queries, futures, strict=True)]
        await asyncio.sleep(0)  # others that are ready now come along
        self._send()
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """End the retriever and whatever still waits for it."""
        for _, _, future in self._waiting:
            future.cancel()
        self._retriever.close()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _send(self) -> None:
        while self._free and self._waiting:
            topk, batch, rest = self._waiting[0][1], list[_Waiting](), list[_Waiting]()
            for entry in self._waiting:
                (batch if entry[1] == topk and len(batch) < self._max_batch else rest).append(entry)
            self._waiting = rest
            self._free -= 1
            task = asyncio.create_task(self._serve(batch, topk))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _serve(self, batch: Sequence[_Waiting], topk: int) -> None:
        answers: Sequence[list[Hit] | Exception]
        try:
            answers = await asyncio.to_thread(self._answers, [query for query, _, _ in batch], topk)
        except Exception as error:
            answers = [error] * len(batch)
        self._free += 1
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its episode was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._send()

    def _answers(self, queries: Sequence[str], topk: int) -> Sequence[list[Hit] | Exception]:
        try:
            return self._retriever.search(queries, topk)
        except RetrieverFailure as error:
            if len(queries) == 1 or not error.refused:
                return [error] * len(queries)
            middle = len(queries) // 2
            return [*self._answers(queries[:middle], topk), *self._answers(queries[middle:], topk)]
