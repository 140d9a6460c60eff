"""What the rollout side costs beside the engine: scheduling, the controller's CPU time, and publication.

    python benchmarks/rollout.py schedule [--episodes 32 128 1024 4096] [--sigma 1.0]
    python benchmarks/rollout.py publish [--megabytes 512 1024 2048 4096] [--repeats 3] [--sampled 8]

schedule: the real collector, prompts and chat template; engine and environments only take their time, which
is drawn from seeded lognormal distributions per (episode, step). Asynchronous play and lock-step turns (every
turn waits for the slowest answer, then for the slowest environment) see the very same draws. Time is virtual:
the event loop's clock jumps to the next event, so the ratio is that of the schedules and of nothing else, the
same on every machine. The controller's CPU time is real.

publish: the real publisher and paths, to a process that does with the bytes what a server does
(benchmarks/receiver.py). Each publication is timed beside a bare copy of the same bytes in memory, in turn;
what counts is the ratio. Two thirds of the memory that it takes are the sender's and the receiver's weights.
Wall clock counts only on a machine that does nothing else; the ratio of the CPU time, of sender and receiver
with their checks against the copy's, holds on a busy one, too.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import os
import platform
import selectors
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config

from benchmarks.receiver import tensors
from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import FleetSection, ModelSection, PublishSection
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector, PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.publish.buckets import Weights
from paw_hpc.rollout.sglang.publish.fleet_publisher import FleetPublisher
from paw_hpc.rollout.sglang.publish.paths import BroadcastPath, DiskPath, PublishPath, TensorPath
from paw_hpc.system.keys import new_key, write_secret

MEMBERS = 8
TURN_S, STEP_S = 1.0, 0.1
"""Medians of a generated turn and of an environment step, in virtual seconds."""
SAYINGS = ("go to desk 1", "take mug 1 from desk 1", "open drawer 2", "look")
OBSERVATION = (
    "You arrive at desk 1. On the desk 1, you see a bowl 1, a laptop 2, a mug 1, a pen 3, and a pencil 1."
)


# ------------------------------------------------------------------------------------------------- scheduling


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(_Impatient(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Impatient(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self._loop.now += timeout
        return ready


class Draws:
    """Seeded lognormal durations, a function of (what, episode, step) alone."""

    def __init__(self, seed: int, sigma: float):
        self._seed, self._sigma = seed, sigma

    def seconds(self, what: int, episode: int, step: int, median: float) -> float:
        return median * float(
            np.exp(self._sigma * np.random.default_rng([self._seed, what, episode, step]).standard_normal())
        )


class Worlds:
    """A benchmark whose environments only take their time; episodes differ in length."""

    def __init__(self, draws: Draws, members: int, max_steps: int):
        self._draws, self._members, self._max_steps = draws, members, max_steps

    def view(self, task: Task, seed: int) -> AlfworldView:
        return AlfworldView(task, style="paper", history=2, seed=seed)

    async def open(self, task: Task, members: int) -> Sequence[_World]:
        first = int(task.task_id) * self._members
        return [_World(self._draws, first + m, self._max_steps) for m in range(members)]

    def tasks(self, count: int) -> list[Task]:
        return [Task(str(i), "pick_and_place_simple", "") for i in range(count)]


class _World:
    def __init__(self, draws: Draws, episode: int, max_steps: int):
        self._draws, self._episode, self._step = draws, episode, 0
        self._last = int(np.random.default_rng([1, episode]).integers(max_steps // 3, max_steps + 1))

    async def reset(self) -> EnvironmentState:
        return EnvironmentState(f"{OBSERVATION}\n\nYour task is to: put some mug on desk.", SAYINGS)

    async def step(self, action: str) -> EnvironmentState:
        await asyncio.sleep(self._draws.seconds(0, self._episode, self._step, STEP_S))
        self._step += 1
        return EnvironmentState(OBSERVATION, SAYINGS, done=self._step >= self._last)

    async def close(self) -> None: ...


class Asynchronous:
    """Every turn takes its own time and no other's."""

    def __init__(self, draws: Draws, chat: ChatFormat):
        self._draws, self._answers = (
            draws,
            [chat.answer(f"<think>so</think><action>{s}</action>") for s in SAYINGS],
        )
        self.turns: dict[int, int] = {}
        self.playing: set[int] = set()

    def join(self, episode: int) -> None:
        self.playing.add(episode)

    def leave(self, episode: int) -> None:
        self.playing.discard(episode)

    def _duration(self, request: GenerationRequest) -> float:
        turn = self.turns[request.episode] = self.turns.get(request.episode, -1) + 1
        return self._draws.seconds(1, request.episode, turn, TURN_S)

    async def generate(self, request: GenerationRequest) -> Completion:
        await asyncio.sleep(self._duration(request))
        return self._answer(request)

    def _answer(self, request: GenerationRequest) -> Completion:
        ids = self._answers[request.seed % len(self._answers)]
        return Completion(ids, np.zeros(len(ids), dtype=np.float32), None, 0, True)


class LockStep(Asynchronous):
    """All episodes that still play take their turns together: a batch begins when all have asked, and ends
    with its slowest answer."""

    def __init__(self, draws: Draws, chat: ChatFormat):
        super().__init__(draws, chat)
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    def leave(self, episode: int) -> None:
        super().leave(episode)
        self._begin()

    async def generate(self, request: GenerationRequest) -> Completion:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._duration(request), future))
        self._begin()
        await future
        return self._answer(request)

    def _begin(self) -> None:
        if self._waiting and len(self._waiting) >= len(self.playing):
            batch, self._waiting = self._waiting, []
            asyncio.get_running_loop().call_later(
                max(d for d, _ in batch), lambda: [f.set_result(None) for _, f in batch if not f.done()]
            )


def play(
    kind: type[Asynchronous], episodes: int, sigma: float, max_steps: int, chat: ChatFormat
) -> tuple[float, float, int]:
    """(virtual seconds, CPU seconds of this process, environment steps)."""
    draws = Draws(0, sigma)
    worlds = Worlds(draws, MEMBERS, max_steps)
    settings = PlaySettings(
        0, "benchmark", 1.0, max_prompt_tokens=4096, max_response_tokens=64, max_observation_tokens=256
    )
    loop = VirtualLoop()
    gc.collect()
    before = time.process_time()
    try:
        collector = Collector(worlds, kind(draws, chat), chat, settings)  # type: ignore[arg-type]
        _, stats = loop.run_until_complete(collector.collect(worlds.tasks(episodes // MEMBERS), MEMBERS, 0))
        return loop.now, time.process_time() - before, stats.environment_steps
    finally:
        loop.close()


def schedule(
    episodes: Sequence[int], sigma: float, max_steps: int, console: Console
) -> list[dict[str, float]]:
    """Print the table; one row per number of episodes."""
    chat = ChatFormat(load_tokenizer(ModelSection(path="warm-start")))
    play(Asynchronous, MEMBERS, sigma, max_steps, chat)  # templates and caches
    rows = []
    for count in episodes:
        alone, cpu, steps = play(Asynchronous, count, sigma, max_steps, chat)
        together, *_ = play(LockStep, count, sigma, max_steps, chat)
        rows.append(
            {
                "episodes": count,
                "steps": steps,
                "asynchronous": alone,
                "lock-step": together,
                "ratio": together / alone,
                "cpu_ms": 1e3 * cpu / steps,
            }
        )
    console.print(f"\n### Schedules, lognormal latencies of sigma {sigma:g}, virtual seconds\n")
    table = Table(
        "episodes in flight",
        "steps",
        "lock-step s",
        "asynchronous s",
        "ratio",
        "controller CPU, ms per step",
        box=MARKDOWN,
    )
    for r in rows:
        table.add_row(
            f"{r['episodes']:.0f}",
            f"{r['steps']:.0f}",
            f"{r['lock-step']:.0f}",
            f"{r['asynchronous']:.0f}",
            f"{r['ratio']:.2f}",
            f"{r['cpu_ms']:.2f}",
        )
    console.print(table)
    return rows


# ------------------------------------------------------------------------------------------------ publication


COLUMNS = (
    "bare copy s",
    "delivery s",
    "delivery / copy",
    "with checks s",
    "with checks / copy",
    "CPU of both / of copy",
)
TARGET_BYTES = 1 << 30
"""The bare copy's target is used again and again, as buckets are."""


@contextmanager
def receiver(megabytes: int, key_file: Path) -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    command = [sys.executable, "-m", "benchmarks.receiver", str(megabytes), str(key_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait()


def publish(
    sizes: Sequence[int],
    repeats: int,
    bucket_mib: int,
    sampled: int | Literal["all"],
    folder: Path,
    console: Console,
) -> list[dict[str, Any]]:
    """Print the table; one row per size and path."""
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    key, key_file = new_key(), folder / "key"
    write_secret(key_file, key)
    for megabytes in sizes:
        weights = tensors(megabytes)
        total = sum(t.nbytes for t in weights.values())
        target = torch.zeros(min(TARGET_BYTES, total) // 4)
        source = Weights(lambda held=weights: iter(held.items()), total)  # type: ignore[misc]
        with receiver(megabytes, key_file) as (address, pid), EventLoop() as loop:
            fleet = Fleet(FleetSection(addresses=(address,), device="cpu"), None, key)
            loop.run(fleet.start())
            limit, config = bucket_mib << 20, Qwen2Config()
            paths: dict[str, PublishPath] = {
                "disk": DiskPath(loop, folder, config, limit, 600.0),
                "broadcast": BroadcastPath(loop, limit, 600.0),
                "tensor": TensorPath(loop, limit, 600.0),
            }
            number = 0
            for name, path in paths.items():
                publisher = FleetPublisher(
                    loop,
                    fleet,
                    path,
                    source,
                    PublishSection(sampled_tensors=sampled),
                    dtype=torch.float32,
                    kv_heads=1,
                )
                taken, bare, worked, moved = [], [], [], clocked(path)
                for repeat in range(repeats + 1):
                    number += 1
                    started, before = time.perf_counter(), cpu_s(pid)
                    publisher.publish(number)
                    done, between = time.perf_counter(), cpu_s(pid)
                    copy(weights, target)
                    if repeat:  # the first one makes groups, folders and pages
                        taken.append((moved[-1], done - started))
                        bare.append(time.perf_counter() - done)
                        worked.append((between - before) / (cpu_s(pid) - between))
                path.close()
                delivered, whole = zip(*taken, strict=True)
                ratios = [[t / b for t, b in zip(times, bare, strict=True)] for times in (delivered, whole)]
                medians = [
                    statistics.median(values)
                    for values in (bare, delivered, ratios[0], whole, ratios[1], worked)
                ]
                rows.append({"MiB": megabytes, "path": name, **dict(zip(COLUMNS, medians, strict=True))})
            loop.run(fleet.close())
    console.print(
        f"\n### Publication to one receiver, buckets of {bucket_mib} MiB, {sampled} tensors checked, "
        f"medians of {repeats}\n"
    )
    table = Table("MiB", "path", *COLUMNS, box=MARKDOWN)
    for r in rows:
        table.add_row(str(r["MiB"]), r["path"], *(f"{r[column]:.2f}" for column in COLUMNS))
    console.print(table)
    return rows


def cpu_s(other: int) -> float:
    """CPU seconds of this process and another one."""
    times = psutil.Process(other).cpu_times()
    return time.process_time() + times.user + times.system


def clocked(path: PublishPath) -> list[float]:
    """Seconds of each delivery from now on: the bytes are where they belong, and nothing has been checked
    yet."""
    seconds: list[float] = []
    deliver = path.deliver

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        deliver(*arguments)
        seconds.append(time.perf_counter() - started)

    path.deliver = timed  # type: ignore[method-assign]
    return seconds


def copy(weights: dict[str, torch.Tensor], target: torch.Tensor) -> None:
    start = 0
    for tensor in weights.values():
        start = start if start + tensor.numel() <= len(target) else 0
        target[start : start + tensor.numel()].copy_(tensor.view(-1))
        start += tensor.numel()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    scheduling = parts.add_parser("schedule")
    scheduling.add_argument("--episodes", type=int, nargs="+", default=[32, 128, 1024, 4096])
    scheduling.add_argument("--sigma", type=float, nargs="+", default=[0.5, 1.0])
    scheduling.add_argument("--max-steps", type=int, default=30)
    publication = parts.add_parser("publish")
    publication.add_argument("--megabytes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    publication.add_argument("--repeats", type=int, default=3)
    publication.add_argument("--bucket-mib", type=int, default=1024)
    publication.add_argument("--sampled", type=lambda word: word if word == "all" else int(word), default=8)
    chosen, console = parser.parse_args(), Console(width=150)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "aiohttp", "safetensors"))
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"# {datetime.date.today()}, CPU ({os.cpu_count()} x {platform.machine()}), Python "
        f"{platform.python_version()}, {versions}"
    )
    console.print(
        f"\n`{shlex.join([Path(sys.executable).name, *sys.argv])}`, load of the machine at the start {load}"
    )
    if chosen.part == "schedule":
        for sigma in chosen.sigma:
            schedule(chosen.episodes, sigma, chosen.max_steps, console)
        return
    with tempfile.TemporaryDirectory(prefix="paw-weights-") as folder:
        publish(chosen.megabytes, chosen.repeats, chosen.bucket_mib, chosen.sampled, Path(folder), console)


if __name__ == "__main__":
    main()
