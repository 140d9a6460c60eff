"""The event loop of a run: in a thread of its own, so that servers are watched, and episodes go on, while the
trainer computes."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from paw_hpc.run.signals import EvaluationLeft

T = TypeVar("T")
_POLL_S = 0.5
"""How often a wait looks for work that only its own thread may do; a finished coroutine ends the wait at
once."""


class EventLoop:
    """Coroutines of one run. A context manager; `run` is that of `asyncio.Runner`.

    Leaving it cancels what still runs and waits for that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="paw-event-loop", daemon=True)
        self._thread.start()
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Let it run in the background; `wait` for it, or cancel it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        serve: bool = False,
        leave: Callable[[], bool] | None = None,
    ) -> T:
        """Its result. An interrupt (Ctrl-C) cancels it first.

        Args:
            serve: meanwhile do, in this thread, what `in_waiting_thread` asks for.
            leave: with `serve`; asked about every half second: once true, it is cancelled.

        Raises:
            EvaluationLeft: `leave` said so.
        """
        return self.wait(self.start(coroutine), serve=serve, leave=leave)

    def wait(self, future: Future[T], *, serve: bool = False, leave: Callable[[], bool] | None = None) -> T:
        """The result of what `start` began (see `run`)."""
        if serve:
            # wakes the loop below
            future.add_done_callback(lambda _: self._tasks.put((lambda: None, Future())))
        try:
            while serve and not future.done():
                if leave is not None and leave():
                    raise EvaluationLeft
                self._do_task()
            return future.result()
        except BaseException:
            self.cancel(future)
            raise

    def cancel(self, future: Future[Any]) -> None:
        """End what `start` began, and wait until it has cleaned up after itself."""
        if future.cancel():
            self._settle()

    async def in_waiting_thread(self, work: Callable[[], T]) -> T:
        """Called in the loop: have `work` done by the thread that waits with `serve=True`, now or when it
        next does."""
        done: Future[T] = Future()
        self._tasks.put((work, done))
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._settle(everything=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do_task(self) -> None:
        try:
            work, done = self._tasks.get(timeout=_POLL_S)
        except queue.Empty:
            return
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    def _settle(self, everything: bool = False) -> None:
        """Wait until cancelled coroutines have cleaned up after themselves."""

        async def settle() -> None:
            others = [
                task
                for task in asyncio.all_tasks()
                if task is not asyncio.current_task() and (everything or task.cancelling())
            ]
            for task in others:
                if not task.cancelling():  # a second time would break off its cleaning up
                    task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if everything:
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(settle(), self._loop).result()
