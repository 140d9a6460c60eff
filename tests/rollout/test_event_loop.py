"""The event loop of a run goes on while the trainer computes, cleans up, and hands work back to the trainer's
thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from paw_hpc.rollout.event_loop import EventLoop


def test_coroutines_go_on_while_this_thread_does_something_else() -> None:
    ticks = []

    async def tick() -> str:
        for _ in range(3):
            ticks.append(threading.current_thread().name)
            await asyncio.sleep(0.01)
        return "done"

    with EventLoop() as loop:
        begun = loop.start(tick())
        while len(ticks) < 3:
            time.sleep(0.01)
        assert loop.wait(begun) == "done" and set(ticks) == {"paw-event-loop"}


def test_tasks_are_done_by_the_thread_that_waits_and_their_errors_go_back() -> None:
    async def ask(loop: EventLoop) -> list[str]:
        said = [await loop.in_waiting_thread(lambda: threading.current_thread().name)]
        with pytest.raises(ZeroDivisionError):
            await loop.in_waiting_thread(lambda: 1 / 0)
        return said

    with EventLoop() as loop:
        assert loop.run(ask(loop), serve=True) == [threading.current_thread().name]


def test_a_task_waits_for_a_thread_that_serves() -> None:
    async def ask(loop: EventLoop) -> str:
        return await loop.in_waiting_thread(lambda: "done")

    with EventLoop() as loop:
        begun = loop.start(ask(loop))
        loop.run(asyncio.sleep(0.05))
        assert not begun.done()
        loop.run(asyncio.sleep(0.05), serve=True)
        assert loop.wait(begun) == "done"


@pytest.mark.parametrize("how", ["cancel", "close", "error"])
def test_what_is_ended_has_cleaned_up_before_anything_goes_on(how: str) -> None:
    cleaned = threading.Event()

    async def stay() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    loop = EventLoop()
    begun = loop.start(stay())
    loop.run(asyncio.sleep(0.01))
    if how == "cancel":
        loop.cancel(begun)
        assert cleaned.is_set()
    elif how == "error":
        with pytest.raises(KeyboardInterrupt):
            _interrupted(loop, begun)
        assert cleaned.is_set()
    loop.close()
    assert cleaned.is_set()
    loop.close()


def _interrupted(loop: EventLoop, begun: object) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def ask() -> None:
        await loop.in_waiting_thread(interrupt)

    loop.start(ask())
    loop.wait(begun, serve=True)  # type: ignore[arg-type]
