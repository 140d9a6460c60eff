"""Servers that die, hang, come late or miss a version: what is played is whole, and played with the current
weights."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from paw_hpc.experience import Group
from paw_hpc.recipe import FleetSection
from paw_hpc.rollout.collector import Collector, CollectStats, PlaySettings
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.sglang.client import ServerClient, ServerFault
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.lifecycle import FleetError, Keeper, Server
from paw_hpc.rollout.sglang.publish.buckets import NamedTensors, Weights
from paw_hpc.rollout.sglang.publish.checks import WeightSample, cpu_checksum
from paw_hpc.rollout.sglang.publish.traversal import Passes
from tests.rollout.desks import World
from tests.rollout.site import PATIENCE_S, Site

GROUPS, MEMBERS, STEPS = 6, 4, 12
SETTINGS = PlaySettings(
    run_seed=7,
    purpose="train",
    temperature=1.0,
    max_prompt_tokens=512,
    max_response_tokens=12,
    max_observation_tokens=64,
)


def collect_and(
    site: Site, disturbances: dict[int, Callable[[], None]]
) -> tuple[list[Group], CollectStats, World]:
    """Play groups of desks with the real servers, and disturb them after so many environment steps."""
    world = World(max_steps=STEPS)

    async def play() -> tuple[list[Group], CollectStats]:
        played = asyncio.create_task(
            Collector(world, site.engine, site.chat, SETTINGS).collect(
                world.tasks("train")[:GROUPS], MEMBERS, 0
            )
        )
        for after, disturb in disturbances.items():
            while len(world.events) < after and not played.done():
                await asyncio.sleep(0.005)
            assert not played.done(), "the disturbance came too late"
            disturb()
        return await played

    groups, stats = site.loop.run(asyncio.wait_for(play(), PATIENCE_S), serve=True)
    return groups, stats, world


def assert_complete(groups: list[Group], world: World, version: int) -> None:
    """Every member of every group is there once, every environment step was taken once, and all with these
    weights."""
    assert [len(g.episodes) for g in groups] == [MEMBERS] * GROUPS
    assert sorted(e.index for g in groups for e in g.episodes) == list(range(GROUPS * MEMBERS))
    assert max(Counter(world.events).values()) == 1
    recorded = {
        (g.task_id, m, t.step + 1) for g in groups for m, e in enumerate(g.episodes) for t in e.transitions
    }
    assert recorded == set(world.events)
    for episode in (e for g in groups for e in g.episodes):
        assert not episode.failed_by_environment and [t.step for t in episode.transitions] == list(
            range(len(episode.transitions))
        )
        assert episode.success or len(episode.transitions) == STEPS
        assert {t.weight_version for t in episode.transitions} == {version}


def assert_serve_alike(site: Site) -> None:
    """Both servers: greedy ids, and log-probs up to the last bits (what is cached differs)."""
    [prompt] = site.prompts(1, seed=77)
    (ids, logprobs), (other_ids, other_logprobs) = (
        site.only(server, prompt) for server in site.fleet.servers
    )
    assert ids == other_ids and np.allclose(logprobs, other_logprobs, rtol=0, atol=1e-5)


def pid_of(server: Server) -> int:
    assert server.process is not None
    return server.process.pid


class TestInMidCollection:
    def test_a_frozen_and_then_a_dead_server_cost_time_and_nothing_else(self, site: Site) -> None:
        """The other one plays on while the first is frozen and nobody knows; once it is killed, all turns
        wait for servers that come back."""
        pids = [pid_of(server) for server in site.fleet.servers]
        disturbances = {
            30: lambda: os.killpg(pids[0], signal.SIGSTOP),
            60: lambda: os.killpg(pids[1], signal.SIGKILL),
        }
        groups, _, world = collect_and(site, disturbances)
        assert_complete(groups, world, site.version)
        metrics = site.fleet.drain_metrics()
        assert (
            metrics["fleet/lost"] == 2
            and metrics["fleet/retried_turns"] >= 2
            and metrics["fleet/stale_answers"] == 0
        )
        site.all_ready()  # they come back, with the current weights
        for server, pid in zip(site.fleet.servers, pids, strict=True):
            assert pid_of(server) != pid and not _alive(pid)
        assert_serve_alike(site)
        assert site.fleet.drain_metrics()["fleet/ready"] == 2


class TestAtPublication:
    def test_a_dead_server_is_done_without_and_one_that_missed_a_version_never_plays(
        self, site: Site
    ) -> None:
        """By broadcast: the group is made anew without it, and it gets the weights when it is back, though no
        publication is due."""
        victim, other = site.fleet.servers
        site.take("broadcast")
        site.change_weights(31)
        site.publish()
        os.killpg(pid_of(victim), signal.SIGSTOP)
        site.change_weights(32)
        version = site.publish()
        assert site.fleet.version == other.version == version and victim.state != "ready"
        requests = [
            GenerationRequest(i, p, seed=i, temperature=1.0, max_tokens=8)
            for i, p in enumerate(site.prompts(16))
        ]
        assert {t.weight_version for t in site.play(requests)} == {version}
        assert victim.in_flight == 0 and victim.version is None
        metrics = site.fleet.drain_metrics()
        assert metrics["fleet/lost"] >= 1 and metrics["fleet/stale_answers"] == 0
        site.all_ready()
        assert victim.version == version
        assert_serve_alike(site)

    def test_a_server_that_is_killed_in_mid_transfer_is_named_in_time_and_comes_back(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """By broadcast, half of the tensors on their way. Whoever publishes to its old address then, by any
        path, is told so at once, too."""
        victim, other = site.fleet.servers
        dead = Server(
            9, "the dead server", client=ServerClient("the dead server", victim.http.url, victim.http._http)
        )
        site.take("broadcast", bucket_bytes=200_000)
        site.publish()
        whole, name, began = site.publisher._weights, victim.name, list[float]()

        def fatal() -> NamedTensors:
            began.append(time.monotonic())
            for i, tensor in enumerate(whole.tensors()):
                if len(began) == 1 and i == len(site.original) // 2:
                    os.killpg(pid_of(victim), signal.SIGKILL)
                yield tensor

        site.publisher._weights = Weights(fatal, whole.nbytes)
        site.change_weights(34)
        version = site.publish()
        site.publisher._weights = whole
        assert len(began) == 2 and began[1] - began[0] < site.recipe.rollout.publish.timeout_s / 2
        assert f"publication of version {version}, attempt 1: {name}: " in caplog.text
        assert (
            other.state == "ready"
            and other.version == version
            and victim.state != "ready"
            and victim.version is None
        )
        for path in ("disk", "tensor", "broadcast"):
            started = time.monotonic()
            with pytest.raises(ServerFault, match=r"^the dead server: "):
                site.take(path).deliver(
                    [dead], Passes(whole, None, WeightSample(1, 1, 1, torch.float32, 1, cpu_checksum)), 1
                )
            assert time.monotonic() - started < site.recipe.rollout.publish.timeout_s / 2
        site.take("broadcast")
        site.all_ready()
        assert victim.version == version
        assert_serve_alike(site)

    def test_a_server_whose_weights_somebody_else_changed_is_found_out_at_its_first_answer(
        self, site: Site
    ) -> None:
        victim = site.fleet.servers[1]
        site.loop.run(
            victim.http.post("/update_weight_version", {"new_version": "7", "abort_all_requests": False})
        )
        folder = site.publisher._path.folder(site.version)  # type: ignore[attr-defined]
        order = {"model_path": str(folder), "load_format": "auto", "weight_version": "7"}
        site.loop.run(victim.http.post("/update_weights_from_disk", order))
        requests = [
            GenerationRequest(i, p, seed=i, temperature=1.0, max_tokens=8)
            for i, p in enumerate(site.prompts(8))
        ]
        assert {t.weight_version for t in site.play(requests)} == {site.version}
        assert site.fleet.drain_metrics()["fleet/stale_answers"] >= 1


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -------------------------------------------------------------------------------------------- without servers


class TestRouting:
    def fleet(self, **settings: object) -> Fleet:
        fleet = Fleet(FleetSection(addresses=("http://a", "http://b", "http://c"), **settings), None)  # type: ignore[arg-type]
        for server in fleet.servers:
            server.state, server.version = "ready", 3
        fleet._common.version, fleet.routing.open = 3, True
        return fleet

    def chosen(self, fleet: Fleet, episodes: list[int]) -> list[int]:
        """The servers that turns of these episodes get while none of them ends."""

        async def take() -> list[int]:
            found = []
            for episode in episodes:
                async with asyncio.timeout(1):
                    found.append(await fleet.routing.server_for(episode).__aenter__())
            return [s.index for s in found]

        return asyncio.run(take())

    def test_gives_turns_to_the_least_loaded(self) -> None:
        fleet = self.fleet()
        fleet.servers[1].in_flight = 2
        assert self.chosen(fleet, [0, 1, 2, 3, 4]) == [0, 2, 0, 2, 0]

    def test_keeps_an_episode_where_its_prompt_is_cached_unless_that_server_has_far_more_to_do(self) -> None:
        fleet = self.fleet(routing="prefix")
        [first] = self.chosen(fleet, [5])
        assert self.chosen(fleet, [5, 5, 5]) == [first] * 3
        fleet.servers[first].in_flight = 30
        [second] = self.chosen(fleet, [5])
        assert second != first and self.chosen(fleet, [5]) == [second]

    @pytest.mark.parametrize(
        ("state", "version"), [("waiting", 3), ("starting", 3), ("gone", 3), ("ready", 2), ("ready", None)]
    )
    def test_never_uses_a_server_that_is_not_ready_with_the_current_weights(
        self, state: str, version: int | None
    ) -> None:
        fleet = self.fleet()
        fleet.servers[0].state, fleet.servers[0].version = state, version  # type: ignore[assignment]
        assert 0 not in self.chosen(fleet, list(range(12)))

    def test_holds_turns_back_beyond_what_servers_take_at_once(self) -> None:
        fleet = self.fleet(concurrency=2)

        at_once: list[int] = []

        async def turn(episode: int) -> int:
            async with fleet.routing.server_for(episode) as server:
                at_once.append(sum(s.in_flight for s in fleet.servers))
                await asyncio.sleep(0.001 * (episode % 3))
                return server.index

        async def play() -> list[int]:
            return list(await asyncio.gather(*(turn(i) for i in range(200))))

        served = asyncio.run(asyncio.wait_for(play(), 30))
        assert max(at_once) == 6 and len(served) == 200 and set(served) == {0, 1, 2}
        assert all(s.in_flight == 0 for s in fleet.servers)

    def test_says_why_when_no_server_is_left(self) -> None:
        fleet = self.fleet()
        for server in fleet.servers:
            server.state, server.fault = "gone", "its process ended with status -9"
        with pytest.raises(
            FleetError, match="no server is left: http://a: its process ended with status -9; http://b"
        ):
            self.chosen(fleet, [0])

    def test_a_request_to_a_lost_server_fails_at_once(self) -> None:
        fleet = self.fleet()

        async def lose() -> None:
            [server, *_] = fleet.servers
            asked = asyncio.create_task(fleet.routing.ask(server, asyncio.sleep(60)))
            await asyncio.sleep(0.01)
            await Keeper(server, fleet._common).lose(ServerFault("http://a", "stuck"))
            with pytest.raises(ServerFault, match="stuck"):
                await asked

        asyncio.run(asyncio.wait_for(lose(), 5))


def test_gaps_of_servers_are_of_their_own_time() -> None:
    fleet = TestRouting().fleet()

    async def busy() -> dict[str, float]:
        async with fleet.routing.server_for(0):
            await asyncio.sleep(0.2)
        return fleet.drain_metrics()

    fleet.drain_metrics()
    assert np.isclose(asyncio.run(busy())["time/server_idle_share"], 2 / 3, atol=0.1)
