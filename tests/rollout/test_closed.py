"""A run's servers obey that run alone: what another user of the machine reaches of a real one, with no key,
with a wrong one, and past the door."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.sglang.process import ServerProcess, make_launch
from paw_hpc.system.keys import bearer
from tests.rollout.site import PATIENCE_S, PYTHON, Site, recipe_for_servers
from tests.second_user import somebody_else

OPEN = {"/health", "/health_generate", "/ready", "/metrics", "/metrics/"}
"""Whether it lives, and how much it has to do: SGLang asks nobody for a key there."""
LIST_ROUTES = """
import json
from sglang.srt.entrypoints.http_server import app
flat = [inner for route in app.routes for inner in (route.original_router.routes if hasattr(route, "original_router") else [route])]
print(json.dumps([[r.path, sorted(getattr(r, "methods", None) or ["GET"])] for r in flat]))
"""
REFUSED = {401, 403}
Route = tuple[str, str]
"""(method, path)"""


def routes(url: str, key: str) -> list[Route]:
    """Every route of the program, those among them that it leaves out of its own description, and those that
    the running server describes."""
    environment = {
        "PYTHONPATH": str(Path("paw_hpc/rollout/sglang/cpu_shim").resolve()),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HOME": str(Path.home()),
    }
    listed = subprocess.run(
        [str(PYTHON), "-c", LIST_ROUTES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = {
        (method, path) for path, methods in json.loads(listed.stdout.splitlines()[-1]) for method in methods
    }
    described = json.loads(
        subprocess.run(
            ["curl", "-s", "-H", f"Authorization: Bearer {key}", f"{url}/openapi.json"], capture_output=True
        ).stdout
    )
    found |= {
        (method.upper(), path) for path, methods in described["paths"].items() for method in methods
    } | {("GET", path) for path in OPEN}
    return sorted(
        (method, path.replace("{", "").replace("}", "").replace(":path", "")) for method, path in found
    )


def tried(url: str, wanted: list[Route], headers: dict[str, str]) -> dict[Route, int | str]:
    answers = somebody_else("call", *([method, url + path, headers] for method, path in wanted))
    return dict(zip(wanted, answers, strict=True))


@pytest.fixture(scope="module")
def listed(servers: Site) -> list[Route]:
    servers.loop.run(servers.fleet.healthy())
    found = routes(servers.urls[0], servers.key)
    assert (
        len(found) > 90
        and ("POST", "/update_weights_from_tensor") in found
        and ("GET", "/v1/realtime") in found
    )
    return found


class TestAServer:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "Bearer ",
            "Bearer wrong",
            "Bearer {key}x",
            "Bearer {start}",
            "Basic {key}",
            "{key}",
            "Bearer  {key}",
            "Bearer {key} ",
        ],
    )
    def test_refuses_every_route_to_whoever_has_no_key(
        self, site: Site, listed: list[Route], header: str | None
    ) -> None:
        url, key = site.urls[0], site.key
        headers = {} if header is None else {"Authorization": header.format(key=key, start=key[:-1])}
        # A header's outer blanks are no part of it.
        right = header is not None and headers["Authorization"].strip() == f"Bearer {key}"
        answers = tried(url, listed if not right else [("GET", "/server_info")], headers)
        opened = {path for (_, path), status in answers.items() if status not in REFUSED}
        assert opened == ({"/server_info"} if right else OPEN), answers

    def test_is_not_opened_by_other_ways_to_write_a_path(self, site: Site) -> None:
        """Open paths are told by their beginnings, so what is guarded must not be reached behind one of
        these."""
        url = site.urls[0]
        target = "server_info"
        beginnings = ("/health", "/health/", "/health_generate/", "/ready/", "/metrics/", "/metrics")
        ways = [
            f"{start}{dots}{target}"
            for start in beginnings
            for dots in ("../", "/../", "..%2f", "%2e%2e/", "//", ";/", "?/", "%00/", "\\..\\")
        ]
        ways += [
            f"//{target}",
            f"/{target}/",
            f"/.{target}",
            f"/./{target}",
            "/%73erver_info",
            f"/{target.upper()}",
            f"/{target}?/health",
        ]
        answers = tried(url, [("GET", way) for way in ways], {})
        # What is answered is health or metrics, a path that is none, or a refusal: never what the target
        # says, which would have status 200.
        harmless = [way for way in ways if way.startswith(("/health?", "/metrics"))]
        assert {
            way: status for (_, way), status in answers.items() if status == 200 and way not in harmless
        } == {}
        # Which host a caller says it means is the caller's word.
        for host in ("x/health", "x/health?", "x#/health", "/health", "health", "x/health\\"):
            [status] = somebody_else("call", ["GET", f"{url}/{target}", {"Host": host}])
            assert status in {400, 401}, host

    def test_is_not_opened_by_another_protocol_or_method(self, site: Site) -> None:
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert set(tried(site.urls[0], [("GET", "/v1/realtime")], upgrade).values()) <= REFUSED
        assert set(
            tried(site.urls[0], [("OPTIONS", "/generate"), ("OPTIONS", "/pause_generation")], {}).values()
        ) == {405}
        over = {
            "X-HTTP-Method-Override": "POST",
            "X-Forwarded-For": "127.0.0.1",
            "X-Original-URL": "/health",
            "X-Forwarded-Prefix": "/health",
        }
        assert set(
            tried(site.urls[0], [("GET", "/server_info"), ("POST", "/pause_generation")], over).values()
        ) == {401}

    def test_plays_on_after_all_that(self, site: Site) -> None:
        requests = [
            GenerationRequest(i, p, seed=i, temperature=1.0, max_tokens=8)
            for i, p in enumerate(site.prompts(8))
        ]
        assert {turn.weight_version for turn in site.play(requests)} == {site.version}

    def test_shows_its_key_nowhere(self, site: Site) -> None:
        """Not in the list of processes, nor in a log; files that hold it are their owner's alone."""
        assert somebody_else("find", site.key, "sglang.launch_server") == [
            [],
            *somebody_else("find", "sglang.launch_server"),
        ]
        assert somebody_else("find", "sglang.launch_server") != [[]], (
            "a search that finds nothing shows nothing"
        )
        holding = {
            file: file.stat().st_mode & 0o777
            for file in site.folder.rglob("*")
            if file.is_file() and site.key.encode() in file.read_bytes()
        }
        assert {file.name for file in holding} == {"key", "key.yaml"} and set(holding.values()) == {0o600}
        log = (site.folder / "servers" / "server-0.log").read_text()
        assert "api_key': '*****'" in log, (
            "the log does not say what was started, so that this test sees nothing"
        )

    def test_lets_nobody_into_what_its_processes_say_to_each_other(self, site: Site) -> None:
        sockets = {path for process in processes(site) for path in sockets_of(process)}
        assert len(sockets) >= 4
        assert set(somebody_else("connect", *sorted(sockets))) == {False}


def processes(site: Site) -> list[psutil.Process]:
    tops = [psutil.Process(server.process.pid) for server in site.fleet.servers if server.process is not None]
    return [process for top in tops for process in (top, *top.children(recursive=True))]


def sockets_of(process: psutil.Process) -> set[str]:
    return {
        str(connection.laddr)
        for connection in process.net_connections(kind="unix")
        if str(connection.laddr).startswith("/")
    }


@pytest.fixture(scope="module")
def without_key(servers: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as they were before there were keys."""
    recipe, folder = recipe_for_servers(), tmp_path_factory.mktemp("open")
    tokenizer = load_tokenizer(recipe.model)
    launch = dataclasses.replace(
        make_launch(recipe, folder, load_model(recipe, tokenizer).config, tokenizer, "0123"), key_config=None
    )
    process = servers.loop.run(ServerProcess.start(launch, 0, 0))
    deadline = time.monotonic() + PATIENCE_S
    while somebody_else("call", ["GET", f"{process.url}/health", {}]) != [200]:
        assert process.status is None and time.monotonic() < deadline, process.last_words()
        time.sleep(1.0)
    yield process.url
    servers.loop.run(process.end())


def test_the_same_finds_a_server_without_a_key_open(without_key: str, listed: list[Route]) -> None:
    """Negative control."""
    wanted = [("GET", "/server_info"), ("GET", "/v1/models"), ("POST", "/flush_cache")]
    assert set(wanted) <= set(listed) and set(tried(without_key, wanted, {}).values()) == {200}
    assert tried(without_key, wanted[:1], bearer("any")) == {wanted[0]: 200}
    harmful = [
        ("POST", "/pause_generation"),
        ("POST", "/generate"),
        ("POST", "/update_weights_from_tensor"),
        ("POST", "/v1/chat/completions"),
    ]
    assert set(harmful) <= set(listed) and not REFUSED & set(tried(without_key, harmful, {}).values())
