"""The project's own retrieval server obeys whoever has its key: what another user of the machine reaches with
none and with a wrong one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.envs.search import load_test, server
from paw_hpc.envs.search.benchmark import make_retriever
from paw_hpc.envs.search.remote import HttpRetriever
from paw_hpc.envs.search.server import make_app
from paw_hpc.recipe import EnvSection, load_recipe
from paw_hpc.system.errors import UserError
from paw_hpc.system.keys import bearer, new_key, read_key, write_secret
from tests.envs.search.servers import free_port, own_server
from tests.second_user import somebody_else

KEY = new_key()
Routes = list[tuple[str, str]]


def env_section(search: dict[str, Any]) -> EnvSection:
    return EnvSection.model_validate({"name": "search", "search": search})


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_secret(file := tmp_path_factory.mktemp("keys") / "key", KEY + "\n")
    return file


@pytest.fixture(scope="module")
def closed(bm25_folder: Path, key_file: Path) -> Iterator[str]:
    port = free_port()
    with own_server(bm25_folder, port, "--key-file", str(key_file)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def routes() -> Routes:
    app = make_app(None, key=KEY)  # type: ignore[arg-type]  # it is not asked
    found = [(method, route.path) for route in app.routes for method in getattr(route, "methods", ["GET"])]
    assert {("POST", "/retrieve"), ("GET", "/health"), ("GET", "/openapi.json")} <= set(found)
    return [*found, ("GET", "/none"), ("POST", "/health"), ("OPTIONS", "/retrieve"), ("DELETE", "/retrieve")]


def tried(url: str, wanted: Routes, headers: dict[str, str]) -> dict[tuple[str, str], int | str]:
    return dict(
        zip(
            wanted,
            somebody_else("call", *([method, url + path, headers] for method, path in wanted)),
            strict=True,
        )
    )


WRONG = [
    None,
    "Bearer ",
    "Bearer wrong",
    "Bearer {key}x",
    "Bearer {start}",
    "Basic {key}",
    "{key}",
    "Bearer  {key}",
]


class TestAServerWithAKey:
    @pytest.mark.parametrize("header", WRONG)
    def test_refuses_every_route_to_whoever_does_not_have_it(
        self, closed: str, routes: Routes, header: str | None
    ) -> None:
        answers = tried(
            closed,
            routes,
            {} if header is None else {"Authorization": header.format(key=KEY, start=KEY[:-1])},
        )
        assert {route for route, status in answers.items() if status != 401} == {("GET", "/health")}

    def test_opens_them_to_whoever_has(self, closed: str, routes: Routes) -> None:
        assert 401 not in tried(closed, routes, bearer(KEY)).values()

    def test_is_not_opened_by_other_ways_to_write_a_path(self, closed: str) -> None:
        ways = [
            "/health/../openapi.json",
            "//openapi.json",
            "/health%2f..%2fopenapi.json",
            "/health;/openapi.json",
            "/health/openapi.json",
            "//health",
        ]
        assert set(tried(closed, [("GET", way) for way in ways], {}).values()) == {401}
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert set(tried(closed, [("GET", "/retrieve"), ("GET", "/health")], upgrade).values()) <= {
            200,
            401,
            403,
        }
        assert tried(
            closed, [("GET", "/openapi.json")], {"X-Original-URL": "/health", "X-HTTP-Method-Override": "GET"}
        ) == {("GET", "/openapi.json"): 401}

    def test_is_not_opened_by_a_key_beside_another(self, closed: str) -> None:
        twice = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")]
        assert httpx.get(f"{closed}/openapi.json", headers=twice, trust_env=False).status_code == 401

    def test_tells_strangers_that_it_lives_and_no_more(self, closed: str) -> None:
        assert httpx.get(f"{closed}/health", trust_env=False).json() == {"status": "ok"}
        assert set(httpx.get(f"{closed}/health", headers=bearer(KEY), trust_env=False).json()) == {
            "status",
            "retriever",
            "queries",
            "uptime_s",
        }

    def test_does_not_wait_for_what_strangers_send(self, closed: str) -> None:
        def endless() -> Iterator[bytes]:
            for _ in range(200):
                yield b"x" * 1024
                time.sleep(0.1)

        began = time.monotonic()
        with contextlib.suppress(httpx.WriteError):  # it has hung up
            assert (
                httpx.post(f"{closed}/retrieve", content=endless(), trust_env=False, timeout=30).status_code
                == 401
            )
        assert time.monotonic() - began < 10

    def test_shows_its_key_nowhere(self, closed: str, key_file: Path) -> None:
        [shown, found] = somebody_else("find", KEY, closed.rpartition(":")[2])
        assert shown == [] and found, "a search that does not find the server shows nothing"
        assert somebody_else("read", str(key_file)) == [False]


def test_the_same_finds_a_server_without_a_key_open(bm25_folder: Path, routes: Routes) -> None:
    """Negative control."""
    port = free_port()
    with own_server(bm25_folder, port):
        answers = tried(f"http://127.0.0.1:{port}", routes, {})
        assert (
            401 not in answers.values()
            and answers[("GET", "/openapi.json")] == 200
            and answers[("POST", "/retrieve")] == 422
        )


class TestAClient:
    def test_with_the_key_is_answered(self, closed: str, key_file: Path) -> None:
        search = {"data": "generated", "retriever": "http", "url": closed, "key_file": str(key_file)}
        retriever = make_retriever(env_section(search))
        assert retriever.search(["capital of Norway"], 1)[0][0].passage.title == "Oslo"
        assert (
            load_test.load_test(
                closed, ["Oslo"], requests=4, clients=2, batch=2, key=read_key(key_file, "x")
            ).failed
            == 0
        )

    @pytest.mark.parametrize("key", [None, "wrong"])
    def test_with_another_ends_the_run_at_once_and_not_only_its_episodes(
        self, closed: str, key: str | None
    ) -> None:
        """A UserError, which no environment catches; waiting would not help."""
        began, client = time.monotonic(), HttpRetriever(closed, timeout_s=5, give_up_s=60, key=key)
        with pytest.raises(
            UserError,
            match=r"retrieve: it does not take this run's key \(status 401\); see env.search.key_file$",
        ) as said:
            client.search(["Oslo"], 1)
        assert time.monotonic() - began < 10 and "wrong" not in str(said.value)
        with pytest.raises(UserError, match="does not take this key; see --key-file"):
            load_test.load_test(closed, ["Oslo"], requests=1, clients=1, batch=1, key=key)
        client.close()

    def test_sends_the_key_of_the_job_to_the_retriever_of_the_job_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        search = {"data": "generated", "retriever": "http", "url": "http://node1:8000"}
        env = env_section(search)
        write_secret(tmp_path / "job", "of-the-job")
        monkeypatch.setenv("PAW_KEY_FILE", str(tmp_path / "job"))
        sent = [make_retriever(env)._client.headers.get("Authorization")]  # type: ignore[attr-defined]
        monkeypatch.setenv("PAW_RETRIEVER", "http://node3:20001")
        sent.append(make_retriever(env)._client.headers.get("Authorization"))  # type: ignore[attr-defined]
        assert sent == [None, "Bearer of-the-job"]

    def test_needs_an_address_for_its_key(self) -> None:
        with pytest.raises(UserError, match=r"env\.search: key_file: it goes with url"):
            load_recipe(
                "recipes/search/ours.yaml",
                ["env.search.url=null", "env.search.key_file=k", "cluster.retriever_node=true"],
            )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "without a key: every user of this machine may search"),
        (
            ("--host", "0.0.0.0"),
            "without a key: every user of this machine, and whoever reaches it from elsewhere, may search",
        ),
        (("--key-file", "{key}"), ", with a key"),
    ],
)
def test_says_at_its_start_who_may_search(
    options: tuple[str, ...], says: str, bm25_folder: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr(server, "serve", lambda retriever, host, port, **_: served.append(host))
    given = [option.format(key=key_file) for option in options]
    result = CliRunner().invoke(
        app, ["data", "search", "serve", str(bm25_folder), *given], catch_exceptions=False
    )
    assert result.exit_code == 0 and says in result.output and KEY not in result.output
    assert served == ["0.0.0.0" if "--host" in options else "127.0.0.1"]


def test_a_file_that_others_can_read_starts_nothing(bm25_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123")
    (tmp_path / "key").chmod(0o644)
    command = [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "data",
        "search",
        "serve",
        str(bm25_folder),
        "--key-file",
        str(tmp_path / "key"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--key-file: " in done.stderr and "chmod 600" in done.stderr
