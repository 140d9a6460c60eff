"""The load benchmark, at toy size: it measures what it says, and finds what it looks for."""

from __future__ import annotations

import asyncio
from argparse import Namespace

import pytest
from rich.console import Console

from benchmarks import load, soak


def test_hostile_requests_are_refused_and_no_search_is_lost() -> None:
    found = load.main(["hostile", "--seconds", "3", "--quiet-seconds", "1", "--rate", "50", "--clients", "2"])
    assert set(found["answers"]) == {"401"} and found["answers"]["401"] > 20
    assert found["quiet"].lost == found["loud"].lost == 0 and min(found["quiet"].done, found["loud"].done) > 0


@pytest.mark.parametrize("kind", ["bm25", "dense"])
def test_many_clients(kind: str) -> None:
    if kind == "dense":
        pytest.importorskip("faiss")
    [(name, result)] = load.main(["retriever", "--kinds", kind, "--clients", "40", "--requests", "80"])
    assert (name, result.done, result.lost) == (kind, 80, 0) and 0 < result.p50_s <= result.p99_s


def test_soak() -> None:
    found = load.main(["soak", "--episodes", "80", "--benchmarks", "search", "webshop"])
    for lefts in found.values():
        assert [left.episodes for left in lefts] == list(range(8, 81, 8))
        assert len({left.descriptors for left in lefts[2:]}) == len({left.processes for left in lefts}) == 1


def test_what_is_lost_or_leaks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls."""

    async def fails_sometimes(number: int) -> None:
        await asyncio.sleep(0.01)
        if number % 2:
            raise ConnectionError("refused")

    assert asyncio.run(load.measured(fails_sometimes, 2, 0.3)).lost > 5
    kept: list[object] = []
    played = soak._episode

    async def leaks(name: str, *rest: object) -> None:
        kept.append(open("/dev/null"))  # noqa: SIM115
        await played(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(soak, "_episode", leaks)
    [lefts] = soak.soak(Namespace(episodes=80, benchmarks=["search"]), Console(quiet=True)).values()
    assert lefts[-1].descriptors - lefts[0].descriptors >= 64
