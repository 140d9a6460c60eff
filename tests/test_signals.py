"""A signal asks for a stop; a second Ctrl-C insists."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from paw_hpc.run.signals import StopRequest


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_each_signal_asks_for_a_stop_and_kills_nobody(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop and stop.name is None
        send(number)
        assert stop and stop.name == number.name


def test_slurm_may_ask_as_often_as_it_likes() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            send(number)
        assert stop.name == "SIGUSR1"


@pytest.mark.parametrize("between", [[], [signal.SIGTERM]])
def test_a_second_ctrl_c_interrupts(between: list[signal.Signals]) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        for number in between:
            send(number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop


def test_ctrl_c_after_another_signal_is_the_first_ctrl_c() -> None:
    with StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.name == "SIGINT"


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    heard: list[int] = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in StopRequest.SIGNALS}
    try:
        with pytest.raises(ZeroDivisionError), StopRequest() as stop:
            send(signal.SIGTERM)
            raise ZeroDivisionError
        assert stop and heard == []
        for number in StopRequest.SIGNALS:
            send(number)
        assert heard == list(StopRequest.SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_it_leaves_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    entered = []

    def work() -> None:
        with StopRequest() as stop:
            entered.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False] and signal.getsignal(signal.SIGTERM) is before
