"""Queries that wait together are asked together, each gets its own answer, and one that is refused costs no
other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from paw_hpc.envs.search.batching import SearchDesk
from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.retriever import Hit, RetrieverFailure


class Echo:
    """Answers a query with a passage that says it. Refuses `poison`; `down` fails; `bug` raises something
    else."""

    name = "echo"

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.calls = seconds, list[list[str]]()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        with self._lock:
            self.calls.append(list(queries))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
        if "poison" in queries or "down" in queries:
            raise RetrieverFailure("no", refused="poison" in queries)
        if "bug" in queries:
            raise KeyError("bug")
        return [[Hit(Passage(str(i), query), 1.0) for i in range(topk)] for query in queries]

    def close(self) -> None:
        pass


def ask(echo: Echo, queries: Sequence[str], topk: int = 1, **settings: int) -> list[object]:
    """The contents that each query got, or its error."""

    async def run() -> list[object]:
        desk = SearchDesk(echo, **settings)
        found = await asyncio.gather(*(desk.search(query, topk) for query in queries), return_exceptions=True)
        await desk.close()
        return [f if isinstance(f, BaseException) else f[0].passage.contents for f in found]

    return asyncio.run(run())


def test_each_gets_its_own_answer_from_few_calls() -> None:
    echo, queries = Echo(seconds=0.01), [f"q{i}" for i in range(100)]
    assert ask(echo, queries) == queries
    assert len(echo.calls) <= 2 and sum(map(len, echo.calls)) == 100


def test_batches_and_calls_keep_within_their_limits() -> None:
    echo, queries = Echo(seconds=0.01), [f"q{i}" for i in range(50)]
    assert ask(echo, queries, max_batch=8, calls=3) == queries
    assert max(map(len, echo.calls)) == 8 and 1 < echo.most_at_once <= 3


def test_what_arrives_while_a_call_is_under_way_is_the_next_batch() -> None:
    echo = Echo(seconds=0.05)

    async def run() -> None:
        desk = SearchDesk(echo)
        first = asyncio.create_task(desk.search("first", 1))
        await asyncio.sleep(0.02)
        later = [asyncio.create_task(desk.search(f"later {i}", 1)) for i in range(5)]
        await asyncio.gather(first, *later)

    asyncio.run(run())
    assert echo.calls == [["first"], [f"later {i}" for i in range(5)]]


def test_queries_of_different_depth_are_not_mixed() -> None:
    echo = Echo()

    async def run() -> list[list[Hit]]:
        desk = SearchDesk(echo)
        return list(await asyncio.gather(desk.search("a", 1), desk.search("b", 3), desk.search("c", 1)))

    assert [len(hits) for hits in asyncio.run(run())] == [1, 3, 1]


@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_refused_query_costs_only_itself(place: int) -> None:
    queries: list[str] = [f"q{i}" for i in range(10)]
    queries[place] = "poison"
    found = ask(Echo(), queries)
    assert isinstance(found[place], RetrieverFailure)
    assert [f for i, f in enumerate(found) if i != place] == [q for i, q in enumerate(queries) if i != place]


def test_a_retriever_that_is_down_is_not_asked_again_in_halves() -> None:
    echo = Echo()
    assert (
        all(isinstance(f, RetrieverFailure) for f in ask(echo, ["a", "down", "b"])) and len(echo.calls) == 1
    )


def test_an_error_of_the_code_reaches_those_who_asked_and_the_desk_goes_on() -> None:
    echo = Echo()

    async def run() -> list[Hit]:
        desk = SearchDesk(echo)
        with pytest.raises(KeyError):
            await desk.search("bug", 1)
        return await desk.search("after", 1)

    assert asyncio.run(run())[0].passage.contents == "after"


def test_an_episode_that_is_cancelled_disturbs_no_other() -> None:
    echo = Echo(seconds=0.05)

    async def run() -> list[Hit]:
        desk = SearchDesk(echo)
        gone, stays = (
            asyncio.create_task(desk.search("gone", 1)),
            asyncio.create_task(desk.search("stays", 1)),
        )
        await asyncio.sleep(0.02)
        gone.cancel()
        return await stays

    assert asyncio.run(run())[0].passage.contents == "stays"
