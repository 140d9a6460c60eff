"""GRPO of TRL against an OpenEnv server: `python examples/trl/openenv_grpo.py [UPDATES] [--url URL
--panel-url URL --key-file FILE]`, in an environment with paw-hpc[train,alfworld,openenv] and trl>=1.

As grpo.py, whose training it takes, only that every episode is played by a session at a server: one server
has the tasks of training, another those of the panel. Without addresses both are started here. What TRL hands
back for every completion is a seed, by which the server draws the task. (TRL's `environment_factory` wants a
model that calls tools; the small policy here answers in text, which the server reads by its own rules.)
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from grpo import RULES, SHIPPED, judged, played, trained

from paw_hpc.envs import Environments, Outcome
from paw_hpc.envs.openenv import TextAction, TextClient
from paw_hpc.system.keys import new_key, read_key, write_secret

PANEL = "valid_seen:8@0"
SEEDS = 64


class Remote:
    """An episode of a session, in the words that those of `Environments` have."""

    def __init__(self, session: Any, **which: Any):
        self._session, self._said = session, session.reset(prompts=True, **which)

    @property
    def done(self) -> bool:
        return bool(self._said.done)

    @property
    def score(self) -> float:
        return float(self._said.observation.score)

    @property
    def steps(self) -> int:
        return int(self._said.observation.steps)

    @property
    def invalid(self) -> int:
        return int(self._said.observation.invalid)

    def messages(self) -> Any:
        return self._said.observation.messages

    def respond(self, response: str) -> None:
        self._said = self._session.step(TextAction(action=response, response=True))

    def outcome(self) -> Outcome:
        return self._said.observation.outcome()

    def close(self) -> None:
        """Nothing: the next episode of the session ends it."""


@contextmanager
def server(key_file: Path, *tasks: str) -> Iterator[str]:
    """The address of a server of these tasks that runs as long as this."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = [
        f"{name}={'[' + ','.join(value) + ']' if isinstance(value, list) else value}"
        for name, value in RULES.items()
    ]
    command = [
        sys.executable,
        "-m",
        "paw_hpc.envs.openenv",
        "alfworld",
        *keys,
        *tasks,
        "--port",
        str(port),
        "--key-file",
        str(key_file),
    ]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            sys.exit("the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main(updates: int, url: str | None, panel_url: str | None, key_file: Path | None) -> None:
    with ExitStack() as stack:
        if url is None or panel_url is None:
            key_file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "key"
            write_secret(key_file, new_key())
            url, panel_url = (
                stack.enter_context(server(key_file, "--split", "train")),
                stack.enter_context(server(key_file, "--panel", PANEL)),
            )
        key = None if key_file is None else read_key(key_file, "--key-file")
        session = stack.enter_context(TextClient(url, key=key).sync())
        model, tokenizer = trained(
            str(SHIPPED),
            updates,
            [str(seed) for seed in range(SEEDS)],
            lambda seed, repeat: Remote(session, seed=int(seed), repeat=repeat),
        )
        panel_session = stack.enter_context(TextClient(panel_url, key=key).sync())
        # its tasks' names; no game is opened here
        panel = stack.enter_context(Environments("alfworld", **RULES)).panel(PANEL)
        outcomes = []
        for task in panel.tasks:
            episode = Remote(panel_session, task_id=task.task_id)
            played(model, tokenizer, episode)
            outcomes.append(episode.outcome())
        judged("trl-openenv.jsonl", outcomes, panel, "TRL-OpenEnv", updates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("updates", type=int, nargs="?", default=3)
    parser.add_argument("--url", help="server of the tasks of training")
    parser.add_argument("--panel-url", help=f"server of {PANEL}")
    parser.add_argument("--key-file", type=Path, help="key of both")
    main(**vars(parser.parse_args()))
