"""Every HTTP client of the project has a deadline for the whole of an answer, against a real server that
sends one byte at a time."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paw_hpc.envs.search import load_test
from paw_hpc.envs.search.remote import HttpRetriever
from paw_hpc.envs.search.retriever import RetrieverFailure
from paw_hpc.system import downloads
from paw_hpc.system.errors import DataError
from tests.dripping import FORMS, dripping_server

DEADLINE_S, SOON_S = 1.0, 20.0


@pytest.fixture(params=FORMS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with dripping_server(request.param) as address:
        yield address


def ended(wait: Callable[[], object]) -> Exception:
    """How a call ends, which must be soon: it is not waited for any longer."""
    ends: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(SOON_S)
    assert ends, f"no end after {time.monotonic() - start:.0f} s"
    assert time.monotonic() - start > DEADLINE_S * 0.9
    return ends[0]


def test_the_retrievers_client(url: str) -> None:
    retriever = HttpRetriever(url, timeout_s=DEADLINE_S, give_up_s=0.0)
    error = ended(lambda: retriever.search(["Oslo"], 1))
    assert isinstance(error, RetrieverFailure) and "no whole answer in 1 s" in str(error)
    retriever.close()


def test_the_retrievers_client_when_it_is_closed(url: str) -> None:
    retriever = HttpRetriever(url, timeout_s=600.0, give_up_s=0.0)
    closing = threading.Timer(1.0, retriever.close)
    closing.start()
    assert isinstance(ended(lambda: retriever.search(["Oslo"], 1)), RetrieverFailure)
    closing.join()


def test_the_load_test(url: str) -> None:
    error = ended(
        lambda: load_test.load_test(url, ["Oslo"], requests=1, clients=1, batch=1, timeout_s=DEADLINE_S)
    )
    assert isinstance(error, DataError) and "no healthy server" in str(error)


def test_the_client_of_rollout_servers(url: str) -> None:
    pytest.importorskip("aiohttp")
    from paw_hpc.rollout.sglang.client import ServerClient, ServerFault, http_session

    async def ask() -> None:
        async with http_session(None) as session:
            await ServerClient("server 3", url, session).post("/generate", {}, DEADLINE_S)

    error = ended(lambda: asyncio.run(ask()))
    assert isinstance(error, ServerFault) and "server 3: no answer to /generate in 1 s" in str(error)


def test_downloads(url: str) -> None:
    error = ended(lambda: list(downloads.blocks(url, patience_s=DEADLINE_S, bytes_per_s=100.0)))
    assert isinstance(error, TimeoutError) and "too slow" in str(error)


def test_a_download_comes_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    (tmp_path / "file").write_bytes(content)
    assert b"".join(downloads.blocks((tmp_path / "file").as_uri())) == content
    with pytest.raises(OSError, match=r"No such file"):
        list(downloads.blocks((tmp_path / "none").as_uri()))


def test_a_download_that_is_cut_short_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(FORMS["body"] + b"half")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(
            (OSError, http.client.HTTPException), match=r"cut short after 4 of 100000 bytes|IncompleteRead"
        ):
            list(downloads.blocks(f"http://127.0.0.1:{listening.getsockname()[1]}"))
