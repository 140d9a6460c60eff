"""The HTTP client against real server processes: the project's own, one that is killed and comes back, one
that is slow or answers nonsense."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from paw_hpc.envs.search import load_test
from paw_hpc.envs.search.bm25 import Bm25Retriever
from paw_hpc.envs.search.remote import HttpRetriever
from paw_hpc.envs.search.retriever import RetrieverFailure
from paw_hpc.system.errors import DataError
from tests.envs.search.servers import free_port, own_server, strange_server

QUERIES = ["capital of Norway", "zzzz", "who wrote Peer Gynt?"]


@pytest.fixture(scope="module")
def served(bm25_folder: Path) -> Iterator[str]:
    port = free_port()
    with own_server(bm25_folder, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    port = free_port()
    with strange_server(tmp_path_factory.mktemp("strange"), port) as mode:
        yield f"http://127.0.0.1:{port}", mode


def client(url: str, *, timeout_s: float = 5.0, give_up_s: float = 0.0) -> HttpRetriever:
    return HttpRetriever(url, timeout_s=timeout_s, give_up_s=give_up_s, longest_wait_s=0.2)


class TestTheProjectsOwnServer:
    def test_gives_what_its_index_gives(self, served: str, bm25_index: Bm25Retriever) -> None:
        for url in (served, f"{served}/", f"{served}/retrieve"):
            found = client(url).search(QUERIES, 3)
            expected = bm25_index.search(QUERIES, 3)
            assert [[h.passage for h in hits] for hits in found] == [
                [h.passage for h in hits] for hits in expected
            ]
            assert found[0][0].score == pytest.approx(expected[0][0].score)

    def test_speaks_the_common_protocol(self, served: str) -> None:
        asked = {"queries": ["capital of Norway"], "topk": 1, "return_scores": True}
        (result,) = httpx.post(f"{served}/retrieve", json=asked).json()["result"]
        assert set(result[0]) == {"document", "score"} and set(result[0]["document"]) == {"id", "contents"}
        (result,) = httpx.post(f"{served}/retrieve", json={**asked, "return_scores": False}).json()["result"]
        assert set(result[0]) == {"id", "contents"} and result[0]["contents"].startswith('"Oslo"\n')
        (result,) = httpx.post(f"{served}/retrieve", json={"queries": ["Norway Bergen Oslo Edvard"]}).json()[
            "result"
        ]
        assert len(result) == 3, "three where nobody says otherwise"
        assert httpx.post(f"{served}/retrieve", json={"queries": []}).json() == {"result": []}

    @pytest.mark.parametrize(
        "asked",
        [
            {},
            {"queries": "Oslo"},
            {"queries": [1]},
            {"queries": ["a"], "topk": 0},
            {"queries": ["a"], "topk": 10**6},
        ],
    )
    def test_refuses_what_is_no_request_and_goes_on(self, served: str, asked: dict[str, object]) -> None:
        assert httpx.post(f"{served}/retrieve", json=asked).status_code == 422
        assert client(served).search(["Oslo"], 1)[0]

    def test_bears_many_clients_at_once(self, served: str) -> None:
        load = load_test.load_test(served, QUERIES, requests=60, clients=12, batch=5)
        assert (
            load.requests == 60
            and load.failed == 0
            and 0 < load.p50_s <= load.p95_s <= load.p99_s
            and load.queries_per_s > 0
        )
        assert httpx.get(f"{served}/health").json()["queries"] >= 300

    def test_a_load_test_of_nothing_is_refused(self) -> None:
        with pytest.raises(DataError, match="no healthy server"):
            load_test.load_test(f"http://127.0.0.1:{free_port()}", QUERIES, requests=1, clients=1, batch=1)


class TestAServerThatMisbehaves:
    @pytest.mark.parametrize(
        ("mode", "says"),
        [
            ("html", "nonsense"),
            ("half", "nonsense"),
            ("no result", "nonsense"),
            ("null", "nonsense"),
            ("one result too few", "2 results for 3 queries"),
            ("null contents", "nonsense"),
            ("text for documents", "nonsense"),
            ("status 500", "status 500"),
            ("status 503", "status 503"),
            ("status 429", "status 429"),
            ("hangs up", "not reached"),
            ("slow", "no whole answer in 0.3 s"),
        ],
    )
    def test_is_asked_again_until_it_is_well(self, mode: str, says: str, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text(mode)
        with pytest.raises(RetrieverFailure, match=says) as failure:
            client(url, timeout_s=0.3).search(QUERIES, 3)
        assert not failure.value.refused
        recovery = threading.Timer(0.3, control.write_text, ["well"])
        recovery.start()
        assert len(client(url, timeout_s=0.3, give_up_s=20).search(QUERIES, 3)) == 3
        recovery.join()

    def test_that_refuses_is_not_asked_again(self, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text("status 400")
        start = time.monotonic()
        with pytest.raises(RetrieverFailure, match="status 400") as failure:
            client(url, give_up_s=60).search(QUERIES, 3)
        assert failure.value.refused and time.monotonic() - start < 30

    def test_without_scores_is_well_enough(self, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text("without scores")
        (hits,) = client(url).search(["a"], 3)
        assert hits[0].passage.title == "Oslo" and hits[0].score == 0.0

    def test_may_say_half_a_character(self, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text("half a character")
        (hits,) = client(url).search(["a"], 1)
        assert (hits[0].passage.passage_id, hits[0].passage.contents) == ("\ufffd", "Os\ufffdlo")

    def test_may_give_more_than_was_asked_for(self, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text("well")
        assert [len(hits) for hits in client(url).search(["a", "b"], 2)] == [2, 2]

    def test_is_given_up_at_once_when_the_client_closes(self, strange: tuple[str, Path]) -> None:
        url, control = strange
        control.write_text("status 500")
        retriever, ended = client(url, give_up_s=600), list[float]()

        def search() -> None:
            with pytest.raises(RetrieverFailure):
                retriever.search(["a"], 1)
            ended.append(time.monotonic())

        waiting = threading.Thread(target=search)
        waiting.start()
        time.sleep(0.5)
        assert not ended
        retriever.close()
        waiting.join(30)
        assert ended


def test_a_server_that_is_killed_and_comes_back_is_found_again(bm25_folder: Path) -> None:
    port = free_port()
    retriever = client(f"http://127.0.0.1:{port}", give_up_s=60)
    with own_server(bm25_folder, port) as process:
        assert retriever.search(["Oslo"], 1)[0]
        process.kill()
        process.wait()
        with pytest.raises(RetrieverFailure, match="not reached"):
            client(f"http://127.0.0.1:{port}").search(["Oslo"], 1)
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(retriever.search(["Oslo"], 1)))
        waiting.start()
        with own_server(bm25_folder, port):
            waiting.join(60)
            assert answers and answers[0][0][0].passage.title == "Oslo"  # type: ignore[index]
