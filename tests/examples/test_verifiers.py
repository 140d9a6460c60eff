"""The environments in verifiers: its own command evaluates a local model server, and what was said to the
model is what the plain interface says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs import Environments

ROOT = Path(__file__).resolve().parents[2]
RULES: dict[str, dict[str, Any]] = {
    "webshop": {"webshop": {"catalogue": "generated"}, "max_steps": 4},
    "search": {"search": {"data": "generated"}, "max_steps": 3},
    "alfworld": {"games": "generated", "max_steps": 3, "workers": 1},
}
PANELS = {"webshop": "test:3@0", "search": "test:3@0", "alfworld": "valid_seen:2@0"}


def spoken(turn: str) -> str:
    """What the pretended model says to a user turn: an action that is listed there, or a search."""
    listed = re.findall(r"'([^'\n]+)'", turn.rpartition("actions")[2])
    said = (
        f"<action>{listed[len(turn) % len(listed)]}</action>"
        if listed
        else "<search>who was born in Oslo</search>"
    )
    return f"<think>So be it.</think>{said}"


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible server, as far as verifiers asks: chat completions as a stream."""

    def log_message(self, *_: object) -> None:
        return

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        turn = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
        turn = turn if isinstance(turn, str) else "".join(part["text"] for part in turn)
        deltas: list[tuple[dict[str, str], str | None]] = [
            ({"role": "assistant", "content": spoken(turn)}, None),
            ({}, "stop"),
        ]
        head = {"id": "0", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        lines = [
            json.dumps(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]})
            for delta, end in deltas
        ]
        data = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("benchmark", RULES)
def test_its_own_command_plays_what_the_plain_interface_plays(
    benchmark: str, address: str, tmp_path: Path
) -> None:
    pytest.importorskip("verifiers.v1")
    if shutil.which("uv") is None:
        pytest.skip("verifiers runs its chat by uv, which is not here")
    words = ["paw-text", "--env.taskset.benchmark", benchmark, "--env.taskset.panel", PANELS[benchmark]]
    words += [
        "--env.taskset.rules",
        json.dumps(RULES[benchmark]),
        "--model",
        "pretended",
        "--client.base-url",
        address,
    ]
    command = [
        sys.executable,
        "-c",
        "from verifiers.v1.cli.eval.main import main; main()",
        *words,
        "--no-push",
        "--no-rich",
        "-o",
        str(tmp_path),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples" / "verifiers")]),
    }
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    [file] = tmp_path.glob("*/traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    assert episodes and all(episode["ok"] for episode in episodes), ran.stderr[-2000:]
    with Environments(benchmark, prompt="conversation", history="all", **RULES[benchmark]) as environments:
        tasks = {task.task_id: task for task in environments.panel(PANELS[benchmark]).tasks}
        assert {episode["task"]["data"]["id"] for episode in episodes} == set(tasks)
        for episode in episodes:
            [trace] = episode["traces"]
            told = [
                node["message"]["content"] for node in trace["nodes"] if node["message"]["role"] == "user"
            ]
            told = [
                turn if isinstance(turn, str) else "".join(part["text"] for part in turn) for turn in told
            ]
            played, expected = environments.open(tasks[episode["task"]["data"]["id"]]), list[str]()
            while not played.done:
                expected.append(played.turn())
                played.respond(spoken(expected[-1]))
            assert told == expected and len(set(told)) > 1
            assert trace["rewards"]["success"]["score"] == float(played.success)
            assert trace["metrics"] == {
                "score": played.score,
                "steps": played.steps,
                "invalid": played.invalid,
                "episode_return": played.episode_return,
            }
