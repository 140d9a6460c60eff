"""The OpenEnv server: its own conformance check, who may play, how much, and what hostile or dead clients
leave behind. That it plays the same is in test_interface.py."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs import AsyncEnvironments, Environments, Task
from paw_hpc.system.errors import UserError
from tests.envs import walks

pytest.importorskip("openenv")

from openenv import GenericEnvClient
from openenv.cli._validation import validate_running_environment
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from paw_hpc.envs.openenv import (
    LONGEST_ACTION,
    LONGEST_MESSAGE_BYTES,
    Served,
    TextAction,
    TextClient,
    TextEnvironment,
    make_app,
)

ROOT = Path(__file__).resolve().parents[2]
Test = Callable[[str], Awaitable[None]]


@pytest.fixture(scope="module")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openenv-cache")


@pytest.fixture(autouse=True)
def _cache(world_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(world_cache))


@pytest.fixture
def served() -> Iterator[Served]:
    with Environments("search", **walks.GENERATED["search"]) as environments:
        yield Served(environments, panel="test:8@0")


def run(served: Served, test: Test, **settings: Any) -> None:
    """`test` with the address of a server; afterwards no episode is open."""
    with walks.serving(make_app(served, **settings)) as url:
        asyncio.run(asyncio.wait_for(test(url), 60))
        assert ended(served)


def ended(served: Served, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while served.environments._environments._open and time.monotonic() < end:
        time.sleep(0.01)
    return not served.environments._environments._open


def test_openenvs_own_check_passes(served: Served) -> None:
    with walks.serving(make_app(served)) as url:
        report = validate_running_environment(url)
        assert report["passed"], report
        assert {criterion["id"]: criterion["passed"] for criterion in report["criteria"]}["health_endpoint"]
    assert not validate_running_environment(url, timeout_s=1.0)["passed"], (
        "the control: nobody is there any more"
    )


def test_a_session_plays_episodes(served: Served) -> None:
    async def test(url: str) -> None:
        async with TextClient(url) as client:
            first = await client.reset(seed=3, episode_id="e-1", prompts=True)
            seen = first.observation
            assert (
                seen.task_id in served.by_id
                and seen.observation == seen.state_key
                and seen.steps == 0
                and not first.done
            )
            assert seen.messages is not None and seen.observation in seen.messages[0]["content"]
            said = await client.step(
                TextAction(action="<think>so</think><search>who</search>", response=True)
            )
            assert (said.observation.invalid, said.observation.steps, said.reward, said.done) == (
                0,
                1,
                0.0,
                False,
            )
            said = await client.step(TextAction(action="<search>who</search>", response=True))
            assert said.observation.invalid == 1, "without a thought"
            state = await client.state()
            assert (state.episode_id, state.step_count) == ("e-1", 2)
            said = await client.step(TextAction(action="<answer>nobody</answer>"))
            assert said.done and not said.observation.success and said.observation.messages is None
            with pytest.raises(RuntimeError, match="this episode is over; reset it"):
                await client.step(TextAction(action="<answer>nobody</answer>"))
            again = await client.reset(seed=3)
            assert (
                again.observation.task_id == seen.task_id
                and again.observation.messages is None
                and not again.done
            )

    run(served, test)


def test_an_outcome_is_that_of_the_plain_interface(served: Served) -> None:
    task = served.tasks[2]
    [answer] = [
        line for line in [served.environments._environments.benchmark.question(task).answers[0]] if line
    ]
    ways = [["who", f"<answer>{answer}</answer>"], ["<search>who</search>"]]
    wanted = []
    for repeat, way in enumerate(ways):
        episode = served.environments.open(task, repeat=repeat)
        for action in way:
            episode.step(action)
        wanted.append(episode.outcome())
        episode.close()
    assert (
        [outcome.success for outcome in wanted] == [True, False]
        and wanted[0].episode_return > 0
        and wanted[0].seed != wanted[1].seed
    )

    async def test(url: str) -> None:
        async with TextClient(url) as client:
            for repeat, way in enumerate(ways):
                await client.reset(task_id=task.task_id, repeat=repeat)
                for action in way:
                    said = await client.step(TextAction(action=action))
                assert said.observation.outcome() == wanted[repeat]

    run(served, test)


def test_a_client_that_knows_nothing_of_this_package_plays(served: Served) -> None:
    """OpenEnv's generic one."""

    async def test(url: str) -> None:
        async with GenericEnvClient(base_url=url) as client:
            result = await client.reset(seed=3, prompts=True)
            assert (
                result.observation["task_id"] in served.by_id
                and result.observation["messages"][0]["role"] == "user"
            )
            result = await client.step(
                {"action": "<think>so</think><answer>nobody</answer>", "response": True}
            )
            assert result.done and result.reward == 0.0 and result.observation["invalid"] == 0

    run(served, test)
    required = TextAction.model_json_schema()["required"]
    assert required == ["action"], "clients that send plain text look for the one field that must be there"


def test_sessions_see_nothing_of_each_other(served: Served) -> None:
    async def test(url: str) -> None:
        tasks = [served.tasks[n % 8] for n in range(24)]
        clients = [TextClient(url) for _ in tasks]
        starts = await asyncio.gather(
            *(client.reset(task_id=task.task_id) for client, task in zip(clients, tasks, strict=True))
        )
        assert [start.observation.task_id for start in starts] == [task.task_id for task in tasks]
        ends = await asyncio.gather(
            *(
                c.step(TextAction(action="<answer>nobody</answer>" if n % 2 else "who"))
                for n, c in enumerate(clients)
            )
        )
        assert [end.done for end in ends] == [bool(n % 2) for n in range(24)]
        assert [end.observation.task_id for end in ends] == [task.task_id for task in tasks]
        await asyncio.gather(*(client.close() for client in clients))

    run(served, test)


def test_more_sessions_than_there_may_be_are_told_so(served: Served) -> None:
    async def test(url: str) -> None:
        first, second, third = (TextClient(url) for _ in range(3))
        await first.reset()
        await second.reset()
        with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
            await third.reset()
        await first.close()
        for _ in range(200):  # the server learns of it by and by
            fourth = TextClient(url)
            try:
                assert (await fourth.reset()).observation.task_id
                break
            except RuntimeError:
                await asyncio.sleep(0.02)
            finally:
                await fourth.close()
        else:
            raise AssertionError("no place became free")
        assert not (await second.step(TextAction(action="who"))).done
        await second.close()

    run(served, test, sessions=2)


def test_only_who_has_the_key_may_play(served: Served) -> None:
    import httpx

    async def test(url: str) -> None:
        for key in (None, "b-key", ""):
            with pytest.raises(ConnectionError, match="403"):
                await TextClient(url, key=key).connect()
        async with TextClient(url, key="a-key") as client:
            assert (await client.reset()).observation.task_id
        async with httpx.AsyncClient(base_url=url) as stranger:
            assert (await stranger.get("/health")).json() == {"status": "ok"}
            for path in ("/schema", "/metadata", "/openapi.json", "/docs", "/state"):
                assert (await stranger.get(path)).status_code == 401, path
            assert (
                (await stranger.post("/reset")).status_code
                == (await stranger.post("/mcp")).status_code
                == 401
            )
            known = await stranger.get("/metadata", headers={"Authorization": "Bearer a-key"})
            assert known.json()["name"] == "search" and "8 tasks" in known.json()["description"]

    run(served, test, key="a-key")


def test_requests_without_a_session_are_few_at_once_and_leave_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    open_now, most = 0, list[int]()
    start = TextEnvironment.reset_async

    async def counted(self: TextEnvironment, *given: Any, **options: Any) -> Any:
        nonlocal open_now
        open_now += 1
        most.append(open_now)
        await asyncio.sleep(0.05)
        open_now -= 1
        return await start(self, *given, **options)

    monkeypatch.setattr(TextEnvironment, "reset_async", counted)

    async def test(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            answers = await asyncio.gather(*(client.post("/reset", json={"seed": 1}) for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["observation"]["task_id"] for answer in answers}) == 1

    run(served, test)
    assert len(most) == 20 and 1 < max(most) <= 4


def test_a_client_that_dies_leaves_nothing(served: Served) -> None:
    async def test(url: str) -> None:
        dying, living = TextClient(url), TextClient(url)
        await dying.reset()
        await living.reset()
        assert len(served.environments._environments._open) == 2
        dying._ws.transport.abort()
        for _ in range(500):
            if len(served.environments._environments._open) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(served.environments._environments._open) == 1
        assert (await living.step(TextAction(action="who"))).observation.steps == 1
        await living.close()

    run(served, test)


def test_a_reset_that_nobody_waits_for_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = list[str]()

    async def long(self: AsyncEnvironments, task: Task, *, repeat: int = 0) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(task.task_id)
            raise

    monkeypatch.setattr(AsyncEnvironments, "open", long)

    async def test(url: str) -> None:
        going = TextClient(url)
        await going.connect()
        await going._send({"type": "reset", "data": {}})
        await asyncio.sleep(0.2)
        assert not given_up
        going._ws.transport.abort()
        for _ in range(500):
            if given_up:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    run(served, test, sessions=1)


def test_an_episode_whose_opening_is_cancelled_is_closed(served: Served) -> None:
    """However far it was."""

    async def test() -> int:
        finished = 0
        for number in range(60):
            opening = asyncio.ensure_future(served.environments.open_async(served.tasks[0]))
            await asyncio.sleep(0.0002 * (number % 20))
            if opening.done():
                finished += 1
                opening.result().close()
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        return finished

    assert 0 < asyncio.run(test()) < 60, "some in time, some not"
    assert ended(served)


def test_who_has_not_sent_a_whole_request_takes_no_place(served: Served) -> None:
    """As many as are answered at once, and more, send half of one; another is answered."""

    async def test(url: str) -> None:
        import httpx

        host, port = url.removeprefix("http://").split(":")
        half = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
        for _, writer in half:
            writer.write(
                b"POST /reset HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                b"9\r\n\r\n{"
            )
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            assert (await client.post("/reset", json={"seed": 1})).status_code == 200
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /reset HTTP/1.1\r\nHost: x\r\nContent-Length: {LONGEST_MESSAGE_BYTES + 1}\r\n\r\n".encode()
        )
        assert b" 413 " in await reader.readline()
        writer.close()
        for _, writer in half:
            writer.close()

    run(served, test)


def test_a_websocket_that_says_nothing_is_closed_with_its_session(served: Served) -> None:
    async def test(url: str) -> None:
        silent, talking = TextClient(url), TextClient(url)
        await silent.reset()
        await talking.reset()
        for _ in range(8):
            await asyncio.sleep(0.1)
            await talking.step(TextAction(action="who"))
            if (await talking.state()).step_count == 4:
                await talking.reset()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(silent._ws.recv(), 10)
        assert len(served.environments._environments._open) == 1
        await talking.close()

    run(served, test, idle_s=0.5)


def test_a_client_that_goes_amid_steps_is_no_error(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = TextEnvironment.step_async

    async def slow(self: TextEnvironment, *given: Any, **options: Any) -> Any:
        said = await step(self, *given, **options)
        await asyncio.sleep(0.2)
        return said

    monkeypatch.setattr(TextEnvironment, "step_async", slow)

    async def test(url: str) -> None:
        going = TextClient(url)
        await going.reset()
        for _ in range(3):
            await going._send({"type": "step", "data": {"action": "who"}})
        await asyncio.sleep(0.1)
        going._ws.transport.abort()

    run(served, test)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("{", "INVALID_JSON"),
        ('{"type": "fly"}', "UNKNOWN_TYPE"),
        ('{"type": "step", "data": {"action": "who"}}', "reset first"),
        ('{"type": "step", "data": {"action": 3}}', "VALIDATION_ERROR"),
        ('{"type": "step", "data": {"action": "who", "shell": "rm"}}', "VALIDATION_ERROR"),
        (json.dumps({"type": "step", "data": {"action": "x" * (LONGEST_ACTION + 1)}}), "VALIDATION_ERROR"),
        ('{"type": "reset", "data": {"task_id": "nowhere/1"}}', "nowhere/1 is none of the 8 tasks here"),
        ('{"type": "reset", "data": {"task_id": {}}}', "EXECUTION_ERROR"),
        ('{"type": "reset", "data": {"repeat": 1000000000}}', "repeat is 1000000000, and is from 0 to 1023"),
        ('{"type": "reset", "data": {"repeat": "many"}}', "repeat is many"),
        ('{"type": "reset", "data": {"command": "rm"}}', "unknown argument command"),
        ('{"type": "reset", "data": {"seed": "x"}}', "EXECUTION_ERROR"),
    ],
)
def test_a_wrong_message_is_answered_and_harms_nobody(served: Served, message: str, said: str) -> None:
    async def test(url: str) -> None:
        other = TextClient(url)
        await other.reset()
        async with connect(url.replace("http", "ws") + "/ws") as hostile:
            await hostile.send(message)
            answer = json.loads(await hostile.recv())
            assert answer["type"] == "error" and said in json.dumps(answer), answer
            await hostile.send('{"type": "reset", "data": {}}')
            assert json.loads(await hostile.recv())["type"] == "observation", "the session goes on"
        assert (await other.step(TextAction(action="who"))).observation.steps == 1
        await other.close()

    run(served, test)


@pytest.mark.parametrize("message", ["[]", "[" * 100_000, '"' + "x" * (1 << 20) + '"', b"\xff\xfe"])
def test_nonsense_ends_its_own_session_alone(served: Served, message: str | bytes) -> None:
    async def test(url: str) -> None:
        other = TextClient(url)
        await other.reset()
        async with connect(url.replace("http", "ws") + "/ws") as hostile:
            await hostile.send(message)
            with pytest.raises(ConnectionClosed):
                while True:
                    await asyncio.wait_for(hostile.recv(), 10)
        assert (await other.step(TextAction(action="who"))).observation.steps == 1
        await other.close()

    run(served, test)


def test_a_session_that_has_ended_opens_nothing_more(served: Served) -> None:
    """As OpenEnv leaves one that was idle: closed, and its websocket open."""
    session = TextEnvironment(served)
    session.reset(seed=0)
    session.close()
    assert ended(served)
    with pytest.raises(UserError, match="this session has ended"):
        session.reset(seed=0)
    assert ended(served) and session.state.step_count == 0


def test_it_plays_without_a_server(served: Served) -> None:
    session = TextEnvironment(served)
    said = session.reset(seed=0)
    asked = session.step(TextAction(action="<search>who</search>"))
    assert asked.observation and asked.task_id == said.task_id and session.state.step_count == 1
    session.close()


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """As the image has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "key").write_text("a-key\n")
    (tmp_path / "key").chmod(0o600)
    image = (ROOT / "containers" / "openenv.Dockerfile").read_text()
    [entry], [health] = (
        map(json.loads, re.findall(rf"^{step} (\[.*\])$", image, re.MULTILINE))
        for step in ("ENTRYPOINT", "  CMD")
    )
    health = [sys.executable, *health[1:-1], health[-1].replace("8000", str(port))]
    command = [sys.executable, *entry[1:], "search", "search.data=generated", "max_steps=4"]
    options = ["--panel", "test:8@0", "--port", str(port), "--key-file", str(tmp_path / "key")]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " tasks, at " in line)
        assert f"8 tasks, at http://0.0.0.0:{port}, with a key" in line

        async def play() -> None:
            for _ in range(200):
                try:
                    async with TextClient(f"http://127.0.0.1:{port}", key="a-key") as client:
                        assert (await client.reset()).observation.task_id
                        assert (await client.step(TextAction(action="<answer>nobody</answer>"))).done
                        return
                except ConnectionError:
                    await asyncio.sleep(0.05)
            raise AssertionError("it does not answer")

        asyncio.run(play())
        assert subprocess.run(health).returncode == 0, "the image's health check"
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    assert subprocess.run(health, stderr=subprocess.DEVNULL).returncode != 0, (
        "the control: nobody is there any more"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "max_stps=3"], "paw: env.max_stps: unknown key; did you mean 'max_steps'?"),
        (["search", "--key-file", "nowhere"], "paw: --key-file: nowhere cannot be read"),
        (
            ["search", "search.data=generated", "--panel", "test", "--split", "train"],
            "paw: panel 'test' and split 'train': give one of the two",
        ),
    ],
)
def test_a_wrong_command_is_refused_in_a_line(arguments: list[str], said: str) -> None:
    from paw_hpc.envs.openenv import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert said in str(end.value.code)
