"""What a run's servers bear, and what long play leaves behind.

    python -m benchmarks.load hostile [--server retriever|sglang] [--seconds 60] [--rate 1000]
    python -m benchmarks.load retriever [--kinds bm25 dense] [--clients 1280] [--requests 12800]
    python -m benchmarks.load soak [--episodes 10000] [--benchmarks search webshop alfworld]

`hostile`: a server with a key answers a run's turns (or searches), first in peace, then while a process of
its own sends it requests without the key and with a wrong one, each on a connection of its own, as many per
second as asked for or as the machine lets it. What counts is whether a turn was lost, and how much slower
they were. `retriever`: the paper's update has 1,280 episodes; so many clients ask at once, without pause, a
query each. The dense index is of a small encoder with random weights: its speed is real, its answers are not.
`soak`: episodes in one process, groups of eight, one after the other; memory, descriptors and processes at
each tenth, between two groups. Servers, attackers and clients share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.soak import soak
from paw_hpc.envs.search import data
from paw_hpc.system.keys import new_key, read_key, write_secret

ATTACKERS = 64
"""Hostile connections at once."""
WRONG = b"Authorization: Bearer 0123456789abcdef\r\n"


@dataclass(frozen=True)
class Speed:
    """Of a run's requests, by as many clients as played."""

    done: int
    lost: int
    per_s: float
    p50_s: float
    p99_s: float


async def measured(once: Callable[[int], Awaitable[Any]], clients: int, seconds: float) -> Speed:
    """Clients that ask without pause; `once(number)` raises where a request is lost."""
    waits, lost, numbers = list[float](), 0, iter(range(10**9))
    started = time.perf_counter()

    async def ask_on() -> None:
        nonlocal lost
        while time.perf_counter() - started < seconds:
            start = time.perf_counter()
            try:
                await once(next(numbers))
            except Exception as error:
                lost += 1
                print(f"lost: {type(error).__name__}: {error}", file=sys.stderr)
            waits.append(time.perf_counter() - start)

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    taken = time.perf_counter() - started
    p50, p99 = np.percentile(waits, [50, 99])
    return Speed(len(waits) - lost, lost, (len(waits) - lost) / taken, float(p50), float(p99))


def attack(port: int, paths: list[tuple[str, str]], rate: float, seconds: float, answers: Any) -> None:
    """In a process of its own. Puts (statuses of what was answered, seconds) into `answers`."""
    found: Counter[str] = Counter()

    async def one(number: int) -> None:
        method, path = paths[number % len(paths)]
        body = b'{"queries": ["x"]}' if method == "POST" else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            f"{len(body)}\r\nConnection: close\r\n"
        ).encode()
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head + (WRONG if number % 2 else b"") + b"\r\n" + body)
                line = await reader.readline()
                writer.close()
            found[line.split()[1].decode() if line else "nothing"] += 1
        except (OSError, TimeoutError, IndexError) as error:
            found[type(error).__name__] += 1

    async def all_of_them() -> float:
        started, numbers = time.perf_counter(), iter(range(int(rate * seconds)))

        async def attacker() -> None:
            for number in numbers:
                if (wait := started + number / rate - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                if time.perf_counter() - started > seconds:
                    return
                await one(number)

        await asyncio.gather(*(attacker() for _ in range(ATTACKERS)))
        return time.perf_counter() - started

    answers.put((dict(found), taken) if (taken := asyncio.run(all_of_them())) else None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def retriever(index: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """`paw data search serve` with a key: (port, key)."""
    write_secret(folder / "key", new_key())
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "paw_hpc.cli.main",
        "data",
        "search",
        "serve",
        str(index),
        "--port",
        str(port),
        "--key-file",
        str(folder / "key"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no retriever came up at port {port}") from None
                time.sleep(0.1)
        yield port, read_key(folder / "key", "key")
    finally:
        process.terminate()
        process.wait()


def index_of(kind: str, source: Any, folder: Path) -> Path:
    corpus = data.load(source).corpus
    if kind == "bm25":
        from paw_hpc.envs.search.bm25 import build_bm25

        build_bm25(corpus, folder / kind)
    else:
        from paw_hpc.envs.search.dense import build_dense
        from paw_hpc.envs.search.encoder import EncoderSettings

        build_dense(
            corpus, folder / kind, EncoderSettings.of(small_encoder(folder / "encoder", corpus), None, 64)
        )
    return folder / kind


def small_encoder(folder: Path, corpus: Path) -> str:
    """BERT with 2 layers of 64, random weights, over the corpus's own words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted(set(re.findall(r"\w+", corpus.read_text(encoding="utf-8").lower())))[:30_000]
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]")
    )
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
    }
    BertModel(BertConfig(vocab_size=len(words) + 2, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    return str(folder)


def under_attack(
    run: Callable[[float], Speed], port: int, paths: list[tuple[str, str]], options: argparse.Namespace
) -> tuple[Speed, Speed, dict[str, int], float]:
    """In peace, then attacked: speeds, what attackers were answered, and how many of their requests per
    second were answered."""
    quiet = run(options.quiet_seconds)
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    attacker = context.Process(
        target=attack, args=(port, paths, options.rate, options.seconds, answers), daemon=True
    )
    attacker.start()
    time.sleep(1.0)
    loud = run(max(1.0, options.seconds - 1.0))
    found, taken = answers.get(timeout=options.seconds + 120)
    attacker.join()
    return quiet, loud, found, sum(found.values()) / taken


def hostile(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="paw-load-") as name, contextlib.ExitStack() as stack:
        what, run, port, paths = (of_sglang if options.server == "sglang" else of_retriever)(
            Path(name), options, stack
        )
        quiet, loud, found, rate = under_attack(run, port, paths, options)
    console.print(
        f"\n### A {what} under {options.rate:g} hostile requests per second, {options.seconds:g} s; "
        f"{options.clients} clients of the run\n"
    )
    table = Table("", "answered", "lost", "per second", "p50 ms", "p99 ms", box=MARKDOWN)
    for label, speed in (("in peace", quiet), ("attacked", loud)):
        table.add_row(
            label,
            str(speed.done),
            str(speed.lost),
            f"{speed.per_s:.1f}",
            f"{speed.p50_s * 1e3:.1f}",
            f"{speed.p99_s * 1e3:.1f}",
        )
    console.print(table)
    said = ", ".join(f"{status}: {count}" for status, count in sorted(found.items()))
    console.print(f"\nHostile requests answered: {rate:.0f} per second ({said}).")
    return {"quiet": quiet, "loud": loud, "answers": found, "rate": rate}


def of_retriever(folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack) -> Any:
    from paw_hpc.envs.search.batching import SearchDesk
    from paw_hpc.envs.search.remote import HttpRetriever

    port, key = stack.enter_context(retriever(index_of("bm25", options.data, folder), folder))
    queries = [question.question for question in data.load(options.data).test]

    def run(seconds: float) -> Speed:
        async def play() -> Speed:
            desk = SearchDesk(
                HttpRetriever(f"http://127.0.0.1:{port}", timeout_s=20, give_up_s=120, key=key), calls=8
            )
            try:
                return await measured(
                    lambda number: desk.search(queries[number % len(queries)], 3), options.clients, seconds
                )
            finally:
                await desk.close()

        return asyncio.run(play())

    return (
        "retriever (BM25)",
        run,
        port,
        [("POST", "/retrieve"), ("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/none")],
    )


def of_sglang(folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack) -> Any:
    from urllib.parse import urlsplit

    from paw_hpc.policy.loading import load_model, load_tokenizer
    from paw_hpc.recipe import parse_recipe
    from paw_hpc.rollout.chat import ChatFormat
    from paw_hpc.rollout.engines.base import GenerationRequest
    from paw_hpc.rollout.event_loop import EventLoop
    from paw_hpc.rollout.sglang.publish.buckets import weights_of
    from paw_hpc.rollout.sglang.serving import Serving

    fleet = {"device": "cpu", "python": options.python, "start_timeout_s": 900.0}
    rollout = {"engine": "sglang", "fleet": fleet, "max_prompt_tokens": 256, "max_response_tokens": 32}
    recipe = parse_recipe({"model": {"path": "warm-start", "device": "cpu"}, "rollout": rollout})
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe, tokenizer)
    loop = stack.enter_context(EventLoop())
    serving = Serving(recipe, loop, folder, model.config, tokenizer, weights_of(model), 1 << 30)
    stack.callback(serving.close)
    serving.publisher.publish(1)
    prompt = ChatFormat(tokenizer).prompt([{"role": "user", "content": "you are in a room . what now ?"}])

    def run(seconds: float) -> Speed:
        async def once(number: int) -> None:
            await serving.engine.generate(
                GenerationRequest(f"{seconds}-{number}", prompt, seed=number, temperature=1.0, max_tokens=16)
            )

        return loop.run(measured(once, options.clients, seconds), serve=True)

    run(3.0)  # the first turns compile and fill caches
    port = urlsplit(serving.fleet.servers[0].http.url).port
    hurting = ["/generate", "/pause_generation", "/update_weights_from_tensor", "/flush_cache"]
    return "SGLang server", run, port, [*(("POST", path) for path in hurting), ("GET", "/server_info")]


async def asked(port: int, key: str, queries: list[str], clients: int, requests: int) -> Speed:
    """One query a request, on a connection that each client keeps. Bare streams: with so many, a pool of
    connections costs more than the server."""
    waits, lost, numbers = list[float](), 0, iter(range(requests))

    async def client() -> None:
        nonlocal lost
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            body = json.dumps(
                {"queries": [queries[number % len(queries)]], "topk": 3, "return_scores": True}
            ).encode()
            head = (
                f"POST /retrieve HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: "
                "application/json\r\n"
            )
            start = time.perf_counter()
            writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            async with asyncio.timeout(120):
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                said = json.loads(
                    await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))
                )
            lost += not answer.startswith(b"http/1.1 200") or len(said["result"]) != 1
            waits.append(time.perf_counter() - start)
        writer.close()

    started = time.perf_counter()
    ends = await asyncio.gather(*(client() for _ in range(clients)), return_exceptions=True)
    taken, lost = time.perf_counter() - started, lost + sum(end is not None for end in ends)
    p50, p99 = np.percentile(waits, [50, 99])
    return Speed(len(waits) - lost, lost, len(waits) / taken, float(p50), float(p99))


def many_clients(options: argparse.Namespace, console: Console) -> list[tuple[str, Speed]]:
    queries = [question.question for question in data.load(options.data).test]
    results = []
    for kind in options.kinds:
        with (
            tempfile.TemporaryDirectory(prefix="paw-load-") as name,
            retriever(index_of(kind, options.data, Path(name)), Path(name)) as (port, key),
        ):
            asyncio.run(asked(port, key, queries, 8, 64))
            results.append((kind, asyncio.run(asked(port, key, queries, options.clients, options.requests))))
    console.print(
        f"\n### A retriever asked by {options.clients:,} clients at once, "
        f"{data.load(options.data).description}\n"
    )
    table = Table("retriever", "answered", "lost", "queries per second", "p50 s", "p99 s", box=MARKDOWN)
    for kind, speed in results:
        table.add_row(
            kind,
            f"{speed.done:,}",
            str(speed.lost),
            f"{speed.per_s:.0f}",
            f"{speed.p50_s:.2f}",
            f"{speed.p99_s:.2f}",
        )
    console.print(table)
    return results


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("hostile")
    one.add_argument("--server", choices=("retriever", "sglang"), default="retriever")
    one.add_argument("--seconds", type=float, default=60.0)
    one.add_argument("--quiet-seconds", type=float, default=15.0)
    one.add_argument("--rate", type=float, default=1000.0)
    one.add_argument("--clients", type=int, default=8)
    one.add_argument("--python", default=".venv-sglang/bin/python", help="of SGLang's environment")
    two = steps.add_parser("retriever")
    two.add_argument("--kinds", nargs="+", choices=("bm25", "dense"), default=["bm25", "dense"])
    two.add_argument("--clients", type=int, default=1280)
    two.add_argument("--requests", type=int, default=12800)
    for step in (one, two):
        step.add_argument("--data", choices=("auto", "official", "mini", "generated"), default="generated")
    three = steps.add_parser("soak")
    three.add_argument("--episodes", type=int, default=10_000)
    three.add_argument(
        "--benchmarks",
        nargs="+",
        choices=("search", "webshop", "alfworld"),
        default=["search", "webshop", "alfworld"],
    )
    chosen, console = parser.parse_args(arguments), Console(width=150)
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"# {datetime.date.today()}, CPU ({os.cpu_count()} x {platform.machine()}), Python "
        f"{platform.python_version()}"
    )
    console.print(
        f"\n`{shlex.join(['python', '-m', 'benchmarks.load', *(arguments or sys.argv[1:])])}`, load of the "
        f"machine at the start {load}"
    )
    return {"hostile": hostile, "retriever": many_clients, "soak": soak}[chosen.step](chosen, console)


if __name__ == "__main__":
    main()
