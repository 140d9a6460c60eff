"""See the package."""

from __future__ import annotations

import argparse
import asyncio
import pickle
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import mean, quantiles

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks import envs_load
from benchmarks.envs_load.clients import PATIENCE_S, Played, differs, harm, play
from benchmarks.envs_load.processes import Helper, Sample, Server, until
from paw_hpc.envs.openenv import TextAction, TextClient
from tests.envs.walks import AUTO, GENERATED, Walk, walk_bare

SPARE = 8
"""Places of the server beyond the clients' sessions; hostile clients come and go there."""


@dataclass
class Found:
    """What a run of this benchmark has found."""

    played: Played = field(default_factory=Played)
    harm: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0
    """Without those in which a server came back."""
    samples: list[Sample] = field(default_factory=list)
    client_kills: list[float] = field(default_factory=list)
    """Seconds until the server had closed all connections of a killed process of clients."""
    server_kills: list[tuple[float, int]] = field(default_factory=list)
    """Seconds until all that it had started had gone, and files that it left."""
    back_s: list[float] = field(default_factory=list)
    """From the server's death until nine tenths of the sessions were there again."""
    all_killed: tuple[int, float] = (0, 0.0)
    """At the end everybody is killed at once: processes of episodes then, and seconds until these and all
    connections had gone."""
    lost_in_peace: int = 0
    """Connections that broke, or were refused, while no server was dead or coming back."""
    swapped: int = 0
    """Differences where two sessions exchange their websockets: the control."""
    places: tuple[int, int] = (0, 0)
    """Sessions that could be opened when all clients had gone, and that there may be."""
    at_rest: Sample | None = None
    stopped: tuple[float, int] = (0.0, 0)
    """As for `server_kills`, by SIGTERM at the end."""
    log: list[str] = field(default_factory=list)


class Load:
    """One run."""

    def __init__(self, options: argparse.Namespace, server: Server, walks_file: Path, stack: ExitStack):
        self._options, self._server, self._walks_file, self._stack = options, server, walks_file, stack
        self._share, self._seeds = options.sessions // options.clients, iter(range(10**6))
        self.found, self._ended, self._deaths = Found(), list[Helper](), list[float]()
        # the server, and one worker where there are any
        self._at_rest = 1 + (options.benchmark == "alfworld")
        self._clients = [self._client() for _ in range(options.clients)]
        self._hostile = self._helper(harm, 4 * SPARE, options.half_open)

    def run(self) -> Found:
        """Play, kill and look, as long as asked for."""
        found, options = self.found, self._options
        until(self._all_there, patience_s=PATIENCE_S)
        say("all there")
        started, plan = time.time(), _plan(options)
        # a server that comes back stops the clock
        while (now := time.time() - started - sum(found.back_s)) < options.seconds:
            found.samples.append(self._server.sample(now))
            found.harm = self._hostile.last or found.harm
            self._tell(found.samples[-1])
            while plan and now >= plan[0][0]:
                plan.pop(0)[1](self)
            time.sleep(options.sample_s)
        until(lambda: bool(self._hostile.last), patience_s=PATIENCE_S)
        found.harm, found.seconds = self._hostile.last, time.time() - started - sum(found.back_s)
        rest, episodes, killed = (
            self._at_rest,
            len(self._server.family()) - self._at_rest,
            time.perf_counter(),
        )
        for one in [*self._clients, self._hostile]:
            one.kill()
        found.all_killed = (
            episodes,
            until(lambda: len(self._server.family()) == rest and not self._server.connected(), killed),
        )
        found.played = _sum(one.last for one in [*self._ended, *self._clients] if one.last is not None)
        war = [(death, death + back) for death, back in zip(self._deaths, found.back_s, strict=True)]
        found.lost_in_peace = sum(
            not any(death <= at <= back for death, back in war) for at in found.played.lost
        )
        return found

    def _tell(self, sample: Sample) -> None:
        now = _sum(one.last for one in [*self._ended, *self._clients] if one.last is not None)
        there = sum(one.last.connected for one in self._clients if one.last is not None)
        say(
            f"{sample.at_s:.0f} s: {there} sessions, {now.steps} steps, {sample.processes} processes, "
            f"{sample.memory_mib:.0f} MiB"
        )

    def kill_server(self) -> None:
        self._deaths.append(time.time())
        self.found.server_kills.append(self._server.kill())
        self._server.start()
        time.sleep(2)  # what clients told before it died is old then
        until(self._all_there, patience_s=PATIENCE_S)
        self.found.back_s.append(time.time() - self._deaths[-1])
        say(f"server killed, all there again after {self.found.back_s[-1]:.1f} s")

    def kill_client(self) -> None:
        victim = self._clients.pop(Random(len(self._ended)).randrange(len(self._clients)))
        ports, started = victim.ports(), time.perf_counter()
        victim.kill()
        self.found.client_kills.append(until(lambda: not ports & self._server.connected(), started))
        say(f"clients killed, gone after {self.found.client_kills[-1]:.1f} s")
        self._ended.append(victim)
        self._clients.append(self._client())

    def _client(self) -> Helper:
        return self._helper(
            play, str(self._walks_file), self._share, self._options.think_s, next(self._seeds)
        )

    def _helper(self, job: Callable[..., None], *arguments: object) -> Helper:
        helper = Helper(job, self._server.url, str(self._server.key_file), *arguments)
        self._stack.callback(helper.kill)
        return helper

    def _all_there(self) -> bool:
        return sum(
            one.last.connected for one in self._clients if one.last is not None
        ) >= 0.9 * self._share * len(self._clients)


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def load(options: argparse.Namespace) -> Found:
    keys = (GENERATED if options.data == "generated" else AUTO)[options.benchmark]
    walks = walk_bare(options.benchmark, keys, options.walks)
    say(
        f"{len(walks)} walks, {sum(len(walk.actions) for walk in walks)} steps, "
        f"{sum(walk.states[-1].success for walk in walks)} won"
    )
    with tempfile.TemporaryDirectory(prefix="paw-load-") as folder, ExitStack() as stack:
        (walks_file := Path(folder) / "walks").write_bytes(pickle.dumps(walks))
        server = Server(Path(folder), options.benchmark, keys, options.sessions + SPARE)
        stack.callback(server.end)
        found = Load(options, server, walks_file, stack).run()
        found.swapped = asyncio.run(swapped(server, walks))
        until(lambda: not server.connected())
        until(lambda: len(server.family()) <= 1 + (options.benchmark == "alfworld"))
        found.at_rest = server.sample(options.seconds)
        found.places = asyncio.run(places(server)), server.sessions
        found.stopped, found.log = server.stop(), server.log()
        return found


def _plan(options: argparse.Namespace) -> list[tuple[float, Callable[[Load], None]]]:
    """What is killed when, in seconds."""
    plan: list[tuple[float, Callable[[Load], None]]] = [
        (options.seconds / 6, Load.kill_server),
        (options.seconds / 3, Load.kill_server),
    ]
    plan += [
        (number * options.kill_client_s, Load.kill_client)
        for number in range(1, int(options.seconds / options.kill_client_s))
    ]
    return sorted(plan, key=lambda one: one[0])


async def swapped(server: Server, walks: Sequence[Walk]) -> int:
    """The control: two sessions begin their walks, exchange their websockets, and take a step each. How many
    of these are not as they were."""
    two = [walks[0], next(walk for walk in walks if walk.task != walks[0].task)]
    async with (
        TextClient(server.url, key=server.key) as first,
        TextClient(server.url, key=server.key) as second,
    ):
        for client, walk in zip((first, second), two, strict=True):
            said = await client.reset(task_id=walk.task.task_id, repeat=walk.repeat)
            assert differs(said.observation, walk, 0) is None
        first._ws, second._ws = second._ws, first._ws
        said_then = [
            await client.step(TextAction(action=walk.actions[0]))
            for client, walk in zip((first, second), two, strict=True)
        ]
    return sum(
        differs(said.observation, walk, 1) is not None for said, walk in zip(said_then, two, strict=True)
    )


async def places(server: Server) -> int:
    """How many sessions can be opened at once."""
    clients, opened = [TextClient(server.url, key=server.key) for _ in range(server.sessions + 1)], 0
    try:
        for one in clients:
            try:
                await one.state()
                opened += 1
            except RuntimeError as error:
                assert "CAPACITY_REACHED" in str(error), error
    finally:
        await asyncio.gather(*(one.close() for one in clients))
    return opened


def _sum(all_played: Iterable[Played]) -> Played:
    total = Played(waits_s=deque())
    for one in all_played:
        total.steps, total.walks, total.full = (
            total.steps + one.steps,
            total.walks + one.walks,
            total.full + one.full,
        )
        total.differences, total.lost, total.errors = (
            total.differences + one.differences,
            total.lost + one.lost,
            total.errors + one.errors,
        )
        total.waits_s.extend(one.waits_s)
    return total


def report(found: Found, options: argparse.Namespace, console: Console) -> None:
    played = found.played
    table = Table(
        f"{options.benchmark}, {options.sessions} sessions, {found.seconds:.0f} s", "", box=MARKDOWN
    )
    table.add_row(
        "steps, walks; steps/s", f"{played.steps:,}, {played.walks:,}; {played.steps / found.seconds:.0f}"
    )
    table.add_row("states that were not those of the walk", str(len(played.differences)))
    table.add_row("control: steps of two exchanged sessions that were noticed", f"{found.swapped} of 2")
    table.add_row(
        "connections lost where no server was killed; errors", f"{found.lost_in_peace}; {len(played.errors)}"
    )
    waits = quantiles(played.waits_s, n=100) if len(played.waits_s) > 1 else [0.0] * 99
    table.add_row(
        "wait for a step: median, 99th of a hundred, longest",
        f"{waits[49]:.2f}, {waits[98]:.2f}, {max(played.waits_s):.2f} s",
    )
    table.add_row(
        "processes of clients killed; their connections gone after",
        f"{len(found.client_kills)}; {_spread(found.client_kills)}",
    )
    table.add_row(
        "all killed at once: processes of episodes; all gone after",
        f"{found.all_killed[0]}; {found.all_killed[1]:.1f} s",
    )
    gone, files = (
        [seconds for seconds, _ in found.server_kills],
        sum(files for _, files in found.server_kills),
    )
    table.add_row(
        "servers killed; all processes gone after; files left", f"{len(gone)}; {_spread(gone)}; {files}"
    )
    table.add_row("until nine tenths of the sessions were there again", _spread(found.back_s))
    after = [sample for sample in found.samples if sample.at_s > options.seconds * 0.4]
    for title, part in (("0.4 to 0.6", (0.4, 0.6)), ("0.8 to 1", (0.8, 1.0))):
        some = [sample for sample in after if part[0] <= sample.at_s / options.seconds <= part[1]]
        if some:
            words = (
                f"{mean(s.memory_mib for s in some):,.0f}; {mean(s.processes for s in some):.0f}; "
                f"{mean(s.descriptors for s in some):.0f}"
            )
            table.add_row(f"memory MiB; processes; descriptors, mean of {title} of the time", words)
    if found.at_rest:
        rest = found.at_rest
        table.add_row(
            "the same when all had gone", f"{rest.memory_mib:,.0f}; {rest.processes}; {rest.descriptors}"
        )
    table.add_row("places then, and there may be", f"{found.places[0]}, {found.places[1]}")
    table.add_row(
        "SIGTERM: all processes gone after; files left", f"{found.stopped[0]:.1f} s; {found.stopped[1]}"
    )
    console.print(table)
    harmful = Table("hostile clients", "what came of it", "how often", box=MARKDOWN)
    for (kind, came), often in sorted(found.harm.items()):
        harmful.add_row(kind, came, f"{often:,}")
    console.print(harmful)
    for title, lines in (
        ("differences", played.differences),
        ("errors", played.errors),
        ("server's log", found.log),
    ):
        if lines:
            console.print(f"{title}, {len(lines)}:", *lines[:5], sep="\n  ", markup=False)


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s" if seconds else "-"


def main(arguments: Sequence[str] | None = None) -> Found:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs_load", description=envs_load.__doc__)
    parser.add_argument("benchmark", choices=tuple(AUTO))
    parser.add_argument(
        "--data",
        choices=("generated", "auto"),
        default="auto",
        help="auto: official data where it is at hand",
    )
    parser.add_argument("--sessions", type=int, default=256)
    parser.add_argument("--clients", type=int, default=8, help="processes that share the sessions")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--walks", type=int, default=512)
    parser.add_argument("--kill-client-s", type=float, default=40.0)
    parser.add_argument(
        "--think-s",
        type=float,
        default=0.0,
        help="mean time between an answer and the next step of a session",
    )
    parser.add_argument(
        "--half-open", type=int, default=256, help="connections that hostile clients leave half-open"
    )
    parser.add_argument("--sample-s", type=float, default=5.0)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    found = load(options)
    report(found, options, Console(width=160))
    return found


if __name__ == "__main__":
    main()
