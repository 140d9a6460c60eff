"""Training with servers, from recipe to metrics: on-policy, one update ahead, and from a policy that two
processes share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from paw_hpc import loop
from paw_hpc.build import Machinery
from paw_hpc.envs.base import Task
from paw_hpc.experience import Group
from paw_hpc.policy import checkpoint
from paw_hpc.policy.convert import transfer
from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.recipe import Recipe, load_recipe, parse_recipe
from paw_hpc.rollout.collector import CollectStats
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import ServerFault
from paw_hpc.rollout.sglang.lifecycle import FleetError
from paw_hpc.rollout.sglang.publish.paths import BroadcastPath, PublishPath, TensorPath
from paw_hpc.rollout.sglang.publish.pipeline_stages import StagedBroadcast
from paw_hpc.run.metrics import read_metrics
from paw_hpc.system import distributed
from paw_hpc.system.errors import RecipeError, TrainingError
from tests.processes import run_ranks
from tests.rollout.site import PYTHON, Site, recipe_for_servers, reference_greedy, reference_logprobs

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-sglang.yaml"
SMALL = [
    "updates=2",
    "env.max_steps=4",
    "env.train_games=4",
    "rollout.groups=2",
    "rollout.group_size=3",
    "optimizer.mini_batch=null",
    "rollout.fleet.device=cpu",
    f"rollout.fleet.python={PYTHON}",
    "model.device=cpu",
]


def train(site: Site, folder: Path, *overrides: str) -> list[dict[str, float]]:
    servers = (f"rollout.fleet.addresses=[{','.join(site.urls)}]", f"rollout.fleet.key_file={site.key_file}")
    loop.train(load_recipe(RECIPE, [*SMALL, *servers, *overrides]), folder, command="test")
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture
def played_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer goes on when what is played ahead is over: else, on a busy machine, no episode of it might
    begin before the next weights."""
    begin = Machinery.collect_ahead

    def whole(self: Machinery, tasks: Sequence[Task], members: int, update: int) -> None:
        begin(self, tasks, members, update)
        assert self._ahead is not None
        self._ahead[1].result(timeout=300)

    monkeypatch.setattr(Machinery, "collect_ahead", whole)


class TestTraining:
    def test_of_the_quickstart_is_on_policy(self, site: Site, tmp_path: Path) -> None:
        first, second = train(site, tmp_path / "run", "algorithm.truncated_importance=2.0")
        for metrics in (first, second):
            assert metrics["train/episodes"] == 6 and metrics["train/behaviour_gap_max"] < 1e-3
            assert (
                metrics["fleet/ready"] == 2
                and metrics["fleet/lost"] == metrics["rollout/mixed_version_turns"] == 0
            )
            assert metrics["time/generation_tokens_per_s"] > 0 and 0 <= metrics["time/engine_idle_share"] <= 1
            assert metrics["time/first_token_s"] > 0 and metrics["policy/steps"] == 1

    @pytest.mark.usefixtures("played_ahead")
    def test_one_update_ahead_plays_with_older_weights_and_whole_groups(
        self, site: Site, tmp_path: Path
    ) -> None:
        first, second = train(
            site,
            tmp_path / "run",
            "rollout.staleness=1",
            "algorithm.truncated_importance=2.0",
            "optimizer.lr=2e-3",
        )
        assert first["train/behaviour_gap_max"] < 1e-3 < second["train/behaviour_gap_max"], (
            "the second update's episodes began before its weights"
        )
        assert (
            first["train/episodes"] == second["train/episodes"] == 6
            and first["train/groups"] == second["train/groups"] == 2
        )

    @pytest.mark.usefixtures("played_ahead")
    def test_stops_before_it_trains_on_a_gap_that_is_too_large(self, site: Site, tmp_path: Path) -> None:
        ahead = (
            "rollout.staleness=1",
            "algorithm.truncated_importance=2.0",
            "optimizer.lr=2e-3",
            "rollout.max_logprob_gap=1e-3",
            "checkpoint.every=10",
        )
        with pytest.raises(
            TrainingError,
            match=r"update 1: trainer and engine differ by .* "
            r"rollout\.max_logprob_gap=0\.001.*truncated_importance",
        ):
            train(site, tmp_path / "run", *ahead, "rollout.max_logprob_gap=1e-3")
        assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1
        newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
        assert newest is not None and checkpoint.load(newest)[1]["update"] == 1


# ---------------------------------------------------------------------------------- a policy of two processes


@contextlib.contextmanager
def of_two_processes(
    folder: Path, megatron: dict[str, object], rollout: dict[str, object], **fleet: object
) -> Iterator[tuple[Recipe, Machinery, EventLoop]]:
    """A run's parts on each of two ranks, beside the servers of the site."""
    data = recipe_for_servers(**rollout).model_dump(mode="json")
    servers = json.loads((folder / "site.json").read_text())
    data["rollout"]["fleet"] |= {"addresses": servers["urls"], "key_file": servers["key_file"], **fleet}
    recipe = parse_recipe(
        data | {"policy": {"backend": "megatron"}, "megatron": {**megatron, "timeout_s": 600.0}, "threads": 1}
    )
    with (
        EventLoop() as event_loop,
        Machinery(recipe, event_loop, folder / f"run-{time.time_ns()}") as machinery,
    ):
        yield recipe, machinery, event_loop
    machinery.policy.layout.close()  # type: ignore[attr-defined]


def multiply_weights(machinery: Machinery, factor: float) -> None:
    with torch.no_grad():
        for chunk in machinery.policy.models:  # type: ignore[attr-defined]
            for parameter in chunk.parameters():
                parameter.mul_(factor)


def assert_servers_have(
    recipe: Recipe, machinery: Machinery, event_loop: EventLoop, factor: float, version: int
) -> None:
    """Greedy ids and log-probs of every server are those of the whole model with its weights times `factor`.
    On the first rank."""
    if machinery.playing.servers is None:
        return
    whole = load_model(recipe, load_tokenizer(recipe.model)).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(factor)
    prompt = np.arange(5, 60, dtype=np.int32)
    for server in machinery.playing.servers.fleet.servers:
        sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        piece = event_loop.run(server.http.generate(f"{version}-{server.index}", prompt, sampling, 300.0))
        assert piece.ids.tolist() == reference_greedy(whole, prompt, 8) and set(piece.versions.tolist()) == {
            version
        }
        assert np.abs(piece.logprobs - reference_logprobs(whole, prompt, piece.ids)).max() < 1e-5


def publishes_its_shards(rank: int, folder: Path) -> None:
    """On each of two tensor-parallel ranks: by every path, the servers come to serve the whole model. No rank
    gathers more than its share."""
    gathered: list[tuple[int, int]] = []
    with of_two_processes(folder, {"tensor_parallel": 2}, {"publish": {"bucket_mib": 1}}) as (
        recipe,
        machinery,
        event_loop,
    ):
        paths: list[PublishPath | None] = [None] * 3
        if machinery.playing.servers is not None:
            disk = machinery.playing.servers.publisher._path
            paths = [disk, BroadcastPath(event_loop, 200_000, 300.0), TensorPath(event_loop, 200_000, 300.0)]
        for version, path in enumerate(paths, 301):
            multiply_weights(machinery, 1.02)
            if machinery.playing.servers is not None and path is not None:
                machinery.playing.servers.publisher._path = path
            with mock.patch.object(transfer, "_gather", _noted(transfer._gather, gathered)):
                machinery.publisher.publish(version)
            assert_servers_have(recipe, machinery, event_loop, 1.02 ** (version - 300), version)
            if path is not None:
                path.close()
            distributed.gather(None)
    assert all(count == 1 or size <= (1 << 20) / 6 for count, size in gathered) and len(gathered) > 3 * 5
    assert sum(size for _, size in gathered) >= 3 * machinery.policy.whole_bytes * 0.9  # type: ignore[attr-defined]


def _noted(
    gather: Callable[..., list[torch.Tensor]], noted_buckets: list[tuple[int, int]]
) -> Callable[..., list[torch.Tensor]]:
    """`gather` that notes the parameters of each bucket, and its bytes."""

    def noted(bucket: Sequence[object], *arguments: object) -> list[torch.Tensor]:
        shards = gather(bucket, *arguments)
        noted_buckets.append((len(bucket), sum(s.nbytes for s in shards)))
        return shards

    return noted


def spoil(folder: Path, machinery: Machinery, event_loop: EventLoop) -> None:
    """Give every server other weights, of another version, behind the back of the run: it has no server left,
    and finds that out in play."""
    other = json.loads((folder / "site.json").read_text())["weights"]
    for server in machinery.playing.servers.fleet.servers if machinery.playing.servers is not None else ():
        order = {
            "model_path": other,
            "load_format": "auto",
            "weight_version": "7",
            "flush_cache": True,
            "abort_all_requests": False,
        }
        event_loop.run(server.http.post("/update_weights_from_disk", order))


def turns(machinery: Machinery, event_loop: EventLoop) -> list[int]:
    """Play a few turns on the first rank, while the other is told what to do; the versions of the weights
    that played them."""
    found: list[int] = []

    def play(tasks: Sequence[Task], first: int) -> tuple[list[Group], CollectStats]:
        async def all_turns() -> list[Completion]:
            requests = [
                GenerationRequest(i, np.arange(5, 40, dtype=np.int32), seed=i, temperature=1.0, max_tokens=4)
                for i in range(6)
            ]
            return list(await asyncio.gather(*(machinery.engine.generate(r) for r in requests)))  # type: ignore[union-attr]

        found.extend(t.weight_version for t in event_loop.run(all_turns(), serve=True))
        return [], CollectStats()

    machinery.players.play([], 0, play)
    return distributed.broadcast(found)


def goes_on_when_its_last_server_is_lost_and_comes_back(rank: int, folder: Path) -> None:
    """By broadcast, of both ranks, in the middle of a collection."""
    with of_two_processes(folder, {"tensor_parallel": 2}, {"publish": {"path": "broadcast"}}) as (
        recipe,
        machinery,
        event_loop,
    ):
        multiply_weights(machinery, 1.05)
        machinery.publisher.publish(401)
        assert turns(machinery, event_loop) == [401] * 6
        spoil(folder, machinery, event_loop)
        assert turns(machinery, event_loop) == [401] * 6
        if machinery.playing.servers is not None:
            _wait_until_all_are_ready(machinery, event_loop)
        else:
            machinery.players.play([], 0, lambda *_: ([], CollectStats()))
        assert_servers_have(recipe, machinery, event_loop, 1.05, 401)
        if machinery.playing.servers is not None:
            metrics = machinery.playing.servers.engine.drain_metrics()
            assert metrics["fleet/lost"] == 2 and metrics["fleet/stale_answers"] >= 2


def _wait_until_all_are_ready(machinery: Machinery, event_loop: EventLoop) -> None:
    """On the first rank, in a play of which the other is a part."""
    assert machinery.playing.servers is not None
    fleet = machinery.playing.servers.fleet

    async def ready() -> None:
        while any(s.state != "ready" for s in fleet.servers):
            await asyncio.sleep(0.05)

    def play(tasks: Sequence[Task], first: int) -> tuple[list[Group], CollectStats]:
        event_loop.run(asyncio.wait_for(ready(), 300.0), serve=True)
        return [], CollectStats()

    machinery.players.play([], 0, play)


def ends_together_when_its_last_server_is_lost_for_good(rank: int, folder: Path) -> None:
    with of_two_processes(
        folder, {"tensor_parallel": 2}, {"publish": {"path": "broadcast"}}, max_restarts=0
    ) as (_, machinery, event_loop):
        machinery.publisher.publish(411)
        spoil(folder, machinery, event_loop)
        started = time.monotonic()
        with pytest.raises(FleetError if rank == 0 else distributed.PeerFailed):
            turns(machinery, event_loop)
        assert time.monotonic() - started < 60.0


def sends_from_its_stages(rank: int, folder: Path) -> None:
    """On each of two pipeline stages: both send, nothing is gathered across them, and a fault of the second
    one is the publication's."""
    publish = {"path": "broadcast", "bucket_mib": 1, "sampled_tensors": "all"}
    whole = mock.Mock(side_effect=AssertionError("gathered across stages"))
    with of_two_processes(folder, {"pipeline_parallel": 2}, {"publish": publish}) as (
        recipe,
        machinery,
        event_loop,
    ):
        own = (
            machinery.playing.servers.publisher._path
            if machinery.playing.servers is not None
            else machinery.publisher._stages
        )  # type: ignore[union-attr]
        assert isinstance(own, StagedBroadcast)
        with mock.patch.object(dist, "broadcast", _unless_model(dist.broadcast, whole, machinery)):
            for version in (501, 502):
                multiply_weights(machinery, 1.02)
                machinery.publisher.publish(version)
                assert own._group is not None and own._group.name
                assert_servers_have(recipe, machinery, event_loop, 1.02 ** (version - 500), version)
        groups = distributed.gather(own._group.name)
        assert len(set(groups)) == 2
        names = distributed.gather([name for name, _ in machinery.policy.whole_tensors(own_stage=True)])  # type: ignore[attr-defined]
        assert names[0] and names[1] and not set(names[0]) & set(names[1])
        _fails_at_the_second_stage(rank, own, machinery, event_loop)
        assert_servers_have(recipe, machinery, event_loop, 1.02**3, 503)


def _unless_model(
    broadcast: Callable[..., object], refuse: Callable[..., object], machinery: Machinery
) -> Callable[..., object]:
    group = machinery.policy.layout.pipeline_group  # type: ignore[attr-defined]
    return lambda *arguments, **named: (refuse if named.get("group") is group else broadcast)(
        *arguments, **named
    )


def _fails_at_the_second_stage(
    rank: int, own: StagedBroadcast, machinery: Machinery, event_loop: EventLoop
) -> None:
    """A server that fails there is named by the first process and done without. It gets the weights, from
    both stages, while episodes are played."""
    multiply_weights(machinery, 1.02)
    name = distributed.broadcast(
        machinery.playing.servers.fleet.servers[1].name if machinery.playing.servers is not None else ""
    )
    if rank == 1:
        refusing = mock.Mock(
            side_effect=[
                ServerFault(name, "it does not answer the second stage"),
                mock.DEFAULT,
                mock.DEFAULT,
            ],
            wraps=own._join,
        )
        own._join = refusing  # type: ignore[method-assign]
    machinery.publisher.publish(503)
    if machinery.playing.servers is not None:
        first, second = machinery.playing.servers.fleet.servers
        assert first.version == 503 and first.state == "ready" and second.state != "ready"
        _wait_until_all_are_ready(machinery, event_loop)
    else:
        machinery.players.play([], 0, lambda *_: ([], CollectStats()))
        assert refusing.call_count == 3


def test_weights_of_two_processes_become_whole_on_the_servers(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    weights = site.publisher._path.folder(site.version)  # type: ignore[attr-defined]
    (tmp_path / "site.json").write_text(
        json.dumps({"urls": site.urls, "key_file": str(site.key_file), "weights": str(weights.resolve())})
    )
    cases = [
        publishes_its_shards,
        goes_on_when_its_last_server_is_lost_and_comes_back,
        ends_together_when_its_last_server_is_lost_for_good,
        sends_from_its_stages,
    ]
    run_ranks(2, cases, tmp_path, timeout_s=600.0)


# -------------------------------------------------------------------------------------------- without servers


def with_rollout(algorithm: dict[str, object] | None = None, **rollout: object) -> Recipe:
    return parse_recipe({"model": {"path": "warm-start"}, "rollout": rollout, "algorithm": algorithm or {}})


class TestRecipesThatAreRefused:
    def test_one_update_ahead_with_the_trainers_own_weights(self) -> None:
        with pytest.raises(RecipeError, match=r"rollout\.staleness: 1 needs rollout\.engine=sglang"):
            with_rollout(staleness=1)

    def test_one_update_ahead_without_correction(self) -> None:
        with pytest.raises(RecipeError, match=r"rollout\.staleness: 1 needs algorithm\.truncated_importance"):
            with_rollout(engine="sglang", staleness=1)

    def test_shared_memory_with_servers_elsewhere(self) -> None:
        with pytest.raises(
            RecipeError, match=r"rollout\.publish\.path: tensor needs servers on the trainer's machine"
        ):
            with_rollout(engine="sglang", publish={"path": "tensor"}, fleet={"hosts": ["node7"]})

    def test_servers_that_play_while_their_memory_is_the_trainers(self) -> None:
        with pytest.raises(RecipeError, match=r"rollout\.fleet\.colocated"):
            with_rollout(
                {"truncated_importance": 2.0}, engine="sglang", staleness=1, fleet={"colocated": True}
            )

    def test_no_sglang_where_it_should_be(self, tmp_path: Path) -> None:
        recipe = with_rollout(engine="sglang", fleet={"python": str(tmp_path / "python")})
        with (
            EventLoop() as event_loop,
            pytest.raises(RecipeError, match=r"rollout\.fleet\.python: no interpreter .*make setup-sglang"),
        ):
            Machinery(recipe, event_loop, tmp_path)
