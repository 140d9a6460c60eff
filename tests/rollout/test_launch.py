"""Processes of servers: found, owned, and ended with all that belongs to them. A program stands in for
SGLang; the processes are real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.rollout.sglang.process import Launch, ServerProcess, make_launch

STAND_IN = """
import http.server, os, signal, subprocess, sys, time
if "--fail" in sys.argv:
    print("a line before"); sys.exit("this is why")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as stubborn as can be, and with a child
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
open(os.environ["CHILD_FILE"], "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(" ".join(sys.argv).encode())
    def log_message(self, *_): pass
arguments = dict(zip(sys.argv[1::1], sys.argv[2::1]))
http.server.HTTPServer((arguments["--host"], int(arguments["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    package = tmp_path / "path" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(STAND_IN)
    environment = {"PYTHONPATH": str(tmp_path / "path"), "CHILD_FILE": str(tmp_path / "child")}
    return Launch(
        sys.executable, ("--model-path", "somewhere"), environment, hosts=(), logs=tmp_path, seed=0, gpus=0
    )


def eventually(true: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def asked(url: str) -> str:
    """What it was started with; "" while it does not answer."""
    try:
        return str(urllib.request.urlopen(url, timeout=5).read().decode())
    except OSError:
        return ""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def started(launch: Launch, index: int = 0, attempt: int = 0) -> tuple[ServerProcess, int]:
    """A server that answers, and its child."""
    process = await ServerProcess.start(launch, index, attempt)
    assert await asyncio.to_thread(eventually, lambda: bool(asked(process.url))), process.last_words()
    return process, int((launch.logs / "child").read_text())


class TestAServer:
    def test_ends_with_all_its_processes_when_it_is_ended_even_frozen(self, launch: Launch) -> None:
        async def run(frozen: bool) -> None:
            process, child = await started(launch)
            if frozen:
                os.killpg(process.pid, signal.SIGSTOP)
            await process.end()
            assert gone(process.pid) and gone(child) and not asked(process.url) and process.status is not None

        asyncio.run(run(frozen=False))
        asyncio.run(run(frozen=True))

    def test_that_dies_is_noticed_and_takes_its_processes_along(self, launch: Launch) -> None:
        async def run() -> None:
            process, child = await started(launch)
            os.kill(process.pid, signal.SIGKILL)
            assert await asyncio.wait_for(process.ended(), 30) == 128 + signal.SIGKILL
            assert eventually(lambda: gone(child))

        asyncio.run(run())

    def test_dies_with_a_supervisor_that_is_killed(self, launch: Launch) -> None:
        async def run() -> None:
            process, _ = await started(launch)
            process._process.kill()
            assert await asyncio.to_thread(eventually, lambda: gone(process.pid))
            await process.end()

        asyncio.run(run())

    def test_dies_with_a_trainer_that_is_killed(self, launch: Launch, tmp_path: Path) -> None:
        program = (
            "import asyncio, sys, time\nfrom pathlib import Path\nfrom paw_hpc.rollout.sglang.process "
            "import Launch, ServerProcess\n"
            f"launch = Launch(sys.executable, {launch.arguments!r}, {launch.environment!r}, (), "
            f"Path({str(tmp_path)!r}), 0, 0)\n"
            "async def main():\n    p = await ServerProcess.start(launch, 0, 0)\n    print(p.pid, p.url, "
            "flush=True)\n    await asyncio.sleep(600)\n"
            "asyncio.run(main())\n"
        )
        trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert trainer.stdout is not None
        pid, url = trainer.stdout.readline().split()
        assert eventually(lambda: bool(asked(url)))
        child = int((tmp_path / "child").read_text())
        trainer.kill()
        trainer.wait()
        assert eventually(lambda: gone(int(pid)) and gone(child))

    def test_has_a_port_and_a_seed_of_its_own(self, launch: Launch) -> None:
        async def run() -> None:
            servers = [
                (await started(launch, index, attempt))[0] for index, attempt in ((0, 1), (1, 1), (0, 2))
            ]
            said = [asked(s.url).split() for s in servers]
            for name in ("--port", "--nccl-port", "--random-seed"):
                assert len({words[words.index(name) + 1] for words in said}) == 3
            await asyncio.gather(*(server.end() for server in servers))

        asyncio.run(run())

    def test_that_fails_leaves_its_last_words_and_not_those_of_an_earlier_start(self, launch: Launch) -> None:
        launch.log(0).write_text("words of yesterday\n")

        async def run() -> None:
            failing = Launch(launch.python, ("--fail",), launch.environment, (), launch.logs, 0, 0)
            process = await ServerProcess.start(failing, 0, 0)
            assert await asyncio.wait_for(process.ended(), 30) == 1
            assert (
                process.last_words() == "a line before\nthis is why"
                or process.last_words() == "this is why\na line before"
            )
            await process.end()

        asyncio.run(run())

    def test_on_a_node_of_an_allocation_is_started_by_srun(
        self, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stand-in for srun notes its options and runs the rest here. Servers go to the hosts in turn."""
        srun = tmp_path / "bin" / "srun"
        srun.parent.mkdir()
        srun.write_text(
            f'#!/bin/sh\nwhile [ "${{1#--}}" != "$1" ]; do echo "$1" >> {tmp_path}/options; shift; '
            'done\nexec "$@"\n'
        )
        srun.chmod(0o755)
        monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
        spread = Launch(
            launch.python, launch.arguments, launch.environment, ("127.0.0.2", "127.0.0.3"), launch.logs, 0, 0
        )

        async def run() -> None:
            servers = [(await started(spread, index))[0] for index in range(3)]
            assert [s.url.rpartition(":")[0] for s in servers] == [
                "http://127.0.0.2",
                "http://127.0.0.3",
                "http://127.0.0.2",
            ]
            await asyncio.gather(*(server.end() for server in servers))
            assert not any(asked(server.url) for server in servers)

        asyncio.run(run())
        options = (tmp_path / "options").read_text().split()
        assert [o for o in options if "nodelist" in o] == [
            "--nodelist=127.0.0.2",
            "--nodelist=127.0.0.3",
            "--nodelist=127.0.0.2",
        ]
        assert options.count("--ntasks=1") == 3

    def test_that_cannot_be_started_at_all_is_an_error(
        self, launch: Launch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(OSError, match="srun"):
            asyncio.run(
                ServerProcess.start(Launch(launch.python, (), {}, ("node1",), launch.logs, 0, 0), 0, 0)
            )


def command(tmp_path: Path, stop: tuple[str, ...] = (), **fleet: object) -> list[str]:
    recipe: Recipe = parse_recipe(
        {
            "model": {"path": "warm-start"},
            "rollout": {"engine": "sglang", "stop": stop, "fleet": {"python": sys.executable, **fleet}},
        }
    )
    tokenizer = load_tokenizer(recipe.model)
    return list(
        make_launch(recipe, tmp_path, load_model(recipe, tokenizer).config, tokenizer, "0123").arguments
    )


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


class TestACommand:
    def test_starts_from_a_configuration_without_weights(self, tmp_path: Path) -> None:
        words = command(tmp_path, device="cpu")
        assert after(words, "--load-format") == "dummy" and "--skip-tokenizer-init" in words
        assert {p.name for p in Path(after(words, "--model-path")).iterdir()} == {"config.json"}

    def test_has_the_tokenizer_where_a_string_may_end_a_turn_and_not_as_a_models(
        self, tmp_path: Path
    ) -> None:
        words = command(tmp_path, stop=("</action>",), device="cpu")
        folder = Path(after(words, "--tokenizer-path"))
        assert (
            (folder / "tokenizer.json").is_file()
            and not (folder / "config.json").exists()
            and "--skip-tokenizer-init" not in words
        )

    def test_is_for_the_device_it_runs_on(self, tmp_path: Path) -> None:
        on_cpu, on_gpu = (
            command(tmp_path, device="cpu"),
            command(tmp_path, device="cuda", tensor_parallel=4, colocated=True, memory_fraction=0.5),
        )
        assert (
            after(on_cpu, "--attention-backend") == "torch_native" and "--enable-memory-saver" not in on_cpu
        )
        assert (
            after(on_gpu, "--tp-size") == "4"
            and after(on_gpu, "--mem-fraction-static") == "0.5"
            and "--enable-memory-saver" in on_gpu
        )
        assert "--attention-backend" not in on_gpu and "--max-total-tokens" not in on_gpu
