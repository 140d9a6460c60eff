"""Publication: every path makes every server the trainer's, nothing else passes for it, and turns survive
it."""

from __future__ import annotations

import asyncio
import base64
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paw_hpc.policy.tiny import build_tiny
from paw_hpc.recipe import FleetSection, TinyModel
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.sglang.client import ServerClient, ServerFault
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import NamedTensors, buckets, in_turn, weights_of
from paw_hpc.rollout.sglang.publish.checks import WeightSample, cpu_checksum
from paw_hpc.rollout.sglang.publish.files import WeightFiles
from paw_hpc.rollout.sglang.publish.fleet_publisher import RELEASED, PublishError
from paw_hpc.rollout.sglang.publish.paths import _handle, _shared_buffer
from paw_hpc.rollout.sglang.publish.traversal import Passes
from tests.rollout.desks import TOKENIZER
from tests.rollout.site import Site, reference_greedy, reference_logprobs

TOLERANCE = 1e-5


def assert_serves_the_trainers(site: Site, version: int) -> None:
    """Greedy ids and log-probs of every server are those of the trainer's model now."""
    for server in site.fleet.servers:
        for prompt in site.prompts(2, seed=11):
            ids, logprobs = site.only(server, prompt)
            assert ids == reference_greedy(site.model, prompt, 8)
            assert (
                np.abs(np.array(logprobs) - reference_logprobs(site.model, prompt, np.array(ids))).max()
                < TOLERANCE
            )
        assert site.loop.run(server.http.weight_version()) == str(version)


class TestEveryPath:
    @pytest.mark.parametrize("path", ["disk", "broadcast", "tensor"])
    def test_makes_every_server_the_trainers(self, site: Site, path: str) -> None:
        """Also where tensors need many buckets, and again with a group or a folder that is there already;
        prompts are cached from before."""
        site.take(path, bucket_bytes=100_000)
        assert_serves_the_trainers(site, site.version)
        for seed in (1, 2):
            site.change_weights(seed)
            before = site.only(site.fleet.servers[0], site.prompts(1, seed=11)[0])
            assert_serves_the_trainers(site, site.publish())
            assert site.only(site.fleet.servers[0], site.prompts(1, seed=11)[0]) != before

    @pytest.mark.parametrize("path", ["disk", "broadcast", "tensor"])
    def test_that_loses_a_tensor_is_caught_by_name(
        self, site: Site, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Negative control: all but one tensor arrive, with the right version. The servers' checksums tell,
        and name it."""
        lost = "model.layers.2.mlp.down_proj.weight"
        chosen = site.take(path)
        deliver = chosen.deliver

        class Torn(Passes):
            def __call__(self) -> NamedTensors:
                for name, tensor in super().__call__():
                    yield name, (tensor if name != lost else site.original[name])

        def torn(servers: Sequence[Server], passes: Passes, version: int) -> None:
            deliver(servers, Torn(passes.weights, passes.give_order, passes.sample), version)

        monkeypatch.setattr(chosen, "deliver", torn)
        site.change_weights(3)
        monkeypatch.setattr(
            site.publisher,
            "_settings",
            site.publisher._settings.model_copy(update={"sampled_tensors": "all"}),
        )
        with pytest.raises(PublishError, match=rf"server \d|http.*tensor {lost} \(rank 0\) has checksum"):
            site.publish()
        site.fleet._common.failure = None  # the run would end here
        monkeypatch.undo()
        site.change_weights(4)
        site.take(path)
        assert_serves_the_trainers(site, site.publish())


class TestTurnsUnderWay:
    def test_go_on_with_the_new_weights_and_say_which_token_is_whose(self, site: Site) -> None:
        """The policy is nearly random here, so turns are long; each token's log-prob is that of the model of
        its own version."""
        models = {}
        site.change_weights(21, scale=0.1)
        models[site.publish()] = {n: p.detach().clone() for n, p in site.model.named_parameters()}
        prompts = site.prompts(12, seed=5)
        requests = [
            GenerationRequest(i, p, seed=i, temperature=1.0, max_tokens=400) for i, p in enumerate(prompts)
        ]

        async def all_turns() -> list[Completion]:
            return list(await asyncio.gather(*(site.engine.generate(r) for r in requests)))

        under_way = site.loop.start(all_turns())
        for seed in (22, 23):
            site.loop.run(asyncio.sleep(0.7))
            site.change_weights(seed, scale=0.1)
            models[site.publish()] = {n: p.detach().clone() for n, p in site.model.named_parameters()}
        turns = site.loop.wait(under_way, serve=True)
        mixed = [t for t in turns if t.token_versions is not None]
        assert mixed, "no turn was under way when weights changed"
        for prompt, turn in zip(prompts, turns, strict=True):
            versions = (
                turn.token_versions
                if turn.token_versions is not None
                else np.full(len(turn.ids), turn.weight_version)
            )
            assert (
                (np.diff(versions) >= 0).all()
                and versions[-1] == turn.weight_version
                and len(turn.ids) <= 400
            )
            assert turn.finished == (turn.ids[-1] == site.tokenizer.eos_token_id)
            for version in set(versions.tolist()):
                site.model.load_state_dict(models[version], strict=False)
                expected = reference_logprobs(site.model, prompt, turn.ids)
                at = versions == version
                assert np.allclose(turn.logprobs[at], expected[at], rtol=TOLERANCE, atol=TOLERANCE)
                if turn.token_versions is not None:
                    assert np.abs(turn.logprobs - expected)[~at].max() > 0.01, (
                        "negative control: another version's model says otherwise"
                    )
        metrics = site.fleet.drain_metrics()
        assert (
            metrics["fleet/paused_turns"] >= len(mixed)
            and metrics["fleet/lost"] == metrics["fleet/retried_turns"] == 0
        )


class TestReleasedMemory:
    @pytest.mark.parametrize("path", ["disk", "tensor"])
    def test_is_theirs_again_after_a_publication(self, site: Site, path: str) -> None:
        site.take(path)
        site.publisher.release_memory()
        site.change_weights(6)
        assert_serves_the_trainers(site, site.publish())

    def test_is_released_by_a_server_that_still_generates(self, site: Site) -> None:
        """As it does when somebody asks for its health. SGLang's scheduler dies of it, unless the request is
        over before."""
        server, prompt = site.fleet.servers[0], site.prompts(1, seed=5)[0]
        sampling = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
        for nap_s in (0.3, 1.0, 3.0, 10.0):  # until one is in the middle of it
            turn = site.loop.start(server.http.generate(f"long-{nap_s}", prompt, sampling, 120.0))
            probe = site.loop.start(server.http.healthy(120.0))
            site.loop.run(asyncio.sleep(nap_s))
            site.publisher.release_memory()
            cut = site.loop.wait(turn)
            site.change_weights(7)
            assert_serves_the_trainers(site, site.publish())
            site.loop.wait(probe)
            assert site.fleet.drain_metrics()["fleet/lost"] == 0
            if cut.ended == "abort" and 0 < len(cut.ids) < 400:
                return
        pytest.fail("it was never in the middle of a turn")

    def test_is_not_generated_from(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server whose weights are gone is not asked for its health, which is a token that it generates:
        on a GPU that ends it."""
        asked: list[float] = []
        healthy = ServerClient.healthy

        async def counted(client: ServerClient, timeout_s: float) -> bool:
            asked.append(timeout_s)
            return await healthy(client, timeout_s)

        monkeypatch.setattr(ServerClient, "healthy", counted)
        nap = asyncio.sleep(2.5 * site.fleet.settings.health_every_s)
        site.publisher.release_memory()
        asked.clear()
        site.loop.run(nap)
        assert not asked
        site.publish()

        async def asked_again() -> None:
            while not asked:
                await asyncio.sleep(0.2)

        site.loop.run(asyncio.wait_for(asked_again(), 120.0))  # control: it is asked otherwise

    def test_of_a_server_that_dies_meanwhile_is_not_taken_back(self, site: Site) -> None:
        """It comes back with memory, at the next publication, which finds it dead or starting."""
        site.publisher.release_memory()
        process = site.fleet.servers[1].process
        assert process is not None
        site.loop.run(process.end())
        site.change_weights(8)
        version = site.publish()
        site.all_ready()
        assert_serves_the_trainers(site, version)


# -------------------------------------------------------------------------------------------- without servers


def test_memory_is_taken_back_once_where_another_server_fails_at_it() -> None:
    """The publication begins anew with the servers that are left, which have theirs already. Told twice,
    SGLang's scheduler ends."""

    class Client:
        def __init__(self, fails: bool):
            self.fails, self.told = fails, list[str]()

        async def resume_memory(self, tags: Sequence[str]) -> None:
            self.told += tags
            if self.fails:
                raise ServerFault("server", "made to fail")

    fleet = Fleet(FleetSection(addresses=("http://a", "http://b", "http://c")), None)
    well, ill, new = clients = Client(False), Client(True), Client(False)
    for server, client in zip(fleet.servers, clients, strict=True):
        server.client = client  # type: ignore[assignment]
        server.released = frozenset(RELEASED if client is not new else ())
    for _ in range(2):
        with pytest.raises(ServerFault):
            asyncio.run(fleet.take_back(fleet.servers, "weights"))
    assert (well.told, ill.told, new.told) == (["weights"], ["weights", "weights"], [])
    assert [sorted(s.released) for s in fleet.servers] == [["kv_cache"], ["kv_cache", "weights"], []]


def tiny(kv_heads: int = 2, tie: bool = True) -> torch.nn.Module:
    settings = TinyModel(
        hidden_size=64, layers=2, heads=4, kv_heads=kv_heads, intermediate_size=96, tie_embeddings=tie
    )
    return build_tiny(settings, TOKENIZER, seed=1)


class TestBuckets:
    @pytest.mark.parametrize("limit", [1, 4_000, 20_000, 1 << 30])
    def test_hold_every_tensor_once_and_no_more_than_they_may(self, limit: int) -> None:
        named = list(weights_of(tiny()).tensors())
        packed = list(buckets(iter(named), limit, lambda size, device: torch.empty(size, dtype=torch.uint8)))
        found = [pair for bucket in packed for pair in bucket.tensors()]
        assert [n for n, _ in found] == [n for n, _ in named]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, named, strict=True))
        assert all(b.flat.nbytes <= limit or len(b.names) == 1 for b in packed)
        assert (len(packed) == 1) == (limit == 1 << 30)

    def test_begin_anew_where_the_next_tensor_would_not_lie_at_its_elements_size(self) -> None:
        mixed = [
            ("odd", torch.ones(3, dtype=torch.bfloat16)),
            ("wide", torch.ones(2)),
            ("byte", torch.ones(5, dtype=torch.bfloat16)),
        ]
        packed = list(
            buckets(iter(mixed), 1 << 20, lambda size, device: torch.empty(size, dtype=torch.uint8))
        )
        assert [b.names for b in packed] == [["odd"], ["wide", "byte"]]
        assert [t.tolist() for b in packed for _, t in b.tensors()] == [[1.0] * 3, [1.0] * 2, [1.0] * 5]

    def test_take_memory_in_turn(self) -> None:
        """Two buffers: a bucket's stays as it is until the next but one is packed."""
        made: list[int] = []

        def make(size: int, device: torch.device) -> torch.Tensor:
            made.append(size)
            return torch.empty(size, dtype=torch.uint8)

        named = list(weights_of(tiny()).tensors())
        before, count = None, 0
        for bucket in buckets(iter(named), 70_000, in_turn(2, make)):
            for held in filter(None, (before, bucket)):
                assert all(torch.equal(t, dict(named)[n]) for n, t in held.tensors())
            before, count = bucket, count + 1
        assert made == [70_000] * 2 and count > 3

    def test_of_shared_memory_are_pickled_as_places_in_one_file(self) -> None:
        named = list(weights_of(tiny()).tensors())
        [bucket] = buckets(iter(named), 1 << 30, _shared_buffer)
        handle = base64.b64decode(_handle(bucket.tensors()))
        assert len(handle) < bucket.flat.nbytes / 5 and b"rebuild_storage_filename" in handle
        bucket.flat[:4].view(torch.float32).fill_(7.0)
        read = dict(pickle.load(io.BytesIO(handle)))
        assert read.keys() == dict(named).keys() and read[named[0][0]].flatten()[0] == 7.0, (
            "the reader sees the very memory"
        )


class TestSample:
    def sample(
        self,
        model: torch.nn.Module,
        version: int = 1,
        count: int | None = None,
        ranks: int = 1,
        kv_heads: int = 2,
        names: frozenset[str] = frozenset(),
    ) -> dict[str, list[str]]:
        sample = WeightSample(version, count, ranks, torch.float32, kv_heads, cpu_checksum, names)
        assert sum(1 for _ in sample.watch(weights_of(model).tensors())) == len(list(model.parameters()))
        return sample.expected

    def test_is_another_one_for_another_version_and_the_same_for_the_same(self) -> None:
        model = tiny()
        names = [tuple(sorted(self.sample(model, version, 3))) for version in range(8)]
        assert (
            len(set(names)) > 4
            and names[3] == tuple(sorted(self.sample(model, 3, 3)))
            and {len(n) for n in names} == {3}
        )

    def test_looks_at_what_it_wants_alone_where_names_are_known(self) -> None:
        model = tiny()
        names = frozenset(self.sample(model))
        expected = [self.sample(model, version, 3) for version in range(8)]
        for version in range(8):
            checksum = mock.Mock(side_effect=cpu_checksum)
            sample = WeightSample(version, 3, 1, torch.float32, 2, checksum, names)
            assert list(sample.watch(weights_of(model).tensors()))
            assert sample.expected == expected[version] and checksum.call_count == 3
            assert set(sample.unwanted()) == names - sample.expected.keys()

    def test_of_stages_is_that_of_the_whole(self) -> None:
        named = list(weights_of(tiny()).tensors())
        for version in range(4):
            whole = WeightSample(version, 3, 1, torch.float32, 2, cpu_checksum)
            assert list(whole.watch(iter(named)))
            parts = [WeightSample(version, 3, 1, torch.float32, 2, cpu_checksum) for _ in range(2)]
            for part, share in zip(parts, (named[:14], named[14:]), strict=True):
                assert list(part.watch(iter(share)))
            merged = WeightSample(version, 3, 1, torch.float32, 2, cpu_checksum)
            merged.merge([(p.expected, p.names) for p in parts])
            assert merged.expected == whole.expected and merged.names == whole.names

    def test_depends_on_every_part_of_a_tensor(self) -> None:
        model = tiny()
        before = self.sample(model)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.view(-1)[-1] += 1.0
            now = self.sample(model)
            assert [n for n in before if before[n] != now[n]] != [], name
            before = now

    @pytest.mark.parametrize(("ranks", "kv_heads"), [(1, 2), (2, 2), (4, 2), (4, 4)])
    def test_of_ranks_is_what_vocabulary_row_and_column_parallel_layers_hold(
        self, ranks: int, kv_heads: int
    ) -> None:
        """Each rank's share, put together by hand."""
        model = tiny(kv_heads, tie=False)
        weights, head = dict(weights_of(model).tensors()), 16
        expected = self.sample(model, ranks=ranks, kv_heads=kv_heads)
        layer = "model.layers.1."
        for rank in range(ranks):
            queries = slice(rank * 64 // ranks, (rank + 1) * 64 // ranks)
            first = rank * kv_heads // ranks
            own = slice(first * head, (first + max(1, kv_heads // ranks)) * head)
            q, k, v = (weights[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv")
            assert expected[f"{layer}self_attn.qkv_proj.weight"][rank] == cpu_checksum(
                torch.cat([q[queries], k[own], v[own]])
            )
            inner = slice(rank * 96 // ranks, (rank + 1) * 96 // ranks)
            gate, up = (weights[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up"))
            assert expected[f"{layer}mlp.gate_up_proj.weight"][rank] == cpu_checksum(
                torch.cat([gate[inner], up[inner]])
            )
            assert expected[f"{layer}mlp.down_proj.weight"][rank] == cpu_checksum(
                weights[f"{layer}mlp.down_proj.weight"][:, inner]
            )
            table = weights["lm_head.weight"]
            padded = torch.zeros(-(-len(table) // 64) * 64, 64)
            padded[: len(table)] = table
            rows = len(padded) // ranks
            assert expected["lm_head.weight"][rank] == cpu_checksum(padded[rank * rows : (rank + 1) * rows])
            assert expected["model.norm.weight"][rank] == cpu_checksum(weights["model.norm.weight"])


class TestFiles:
    @pytest.mark.parametrize("limit", [1, 20_000, 1 << 30])
    def test_are_read_by_the_library(self, tmp_path: Path, limit: int) -> None:
        named = {
            "odd": torch.arange(3, dtype=torch.bfloat16),
            "turned": torch.randn(5, 7).T,
            **dict(weights_of(tiny()).tensors()),
        }
        with WeightFiles(tmp_path, limit) as files:
            files.add_all(iter(named.items()))
        read = {
            name: (file.name, tensor)
            for file in tmp_path.iterdir()
            for name, tensor in load_file(file).items()
        }
        assert {name: file for name, (file, _) in read.items()} == files.weight_map
        assert read.keys() == named.keys() and all(
            torch.equal(read[n][1], t) and read[n][1].dtype == t.dtype for n, t in named.items()
        )
        assert len(list(tmp_path.iterdir())) == {1: len(named), 1 << 30: 1}.get(
            limit, len(set(files.weight_map.values()))
        )

    def test_have_room_for_the_names_of_many_tensors(self, tmp_path: Path) -> None:
        named = {f"{'layer.' * 60}{i}": torch.full((1,), float(i)) for i in range(5000)}
        with WeightFiles(tmp_path, 1 << 30) as files:
            files.add_all(iter(named.items()))
        read = {name: tensor for file in tmp_path.iterdir() for name, tensor in load_file(file).items()}
        assert read.keys() == named.keys() and all(torch.equal(read[n], t) for n, t in named.items())
        assert len(set(files.weight_map.values())) > 1


def test_a_folder_is_what_transformers_would_write(site: Site, tmp_path: Path) -> None:
    disk = site.take("disk", bucket_bytes=100_000)
    version = site.publish()
    files = sorted(disk.folder(version).glob("*.safetensors"))  # type: ignore[attr-defined]
    assert len(files) > 10
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == site.original.keys() and all(
        torch.equal(read[n], p) for n, p in site.model.named_parameters()
    )
    assert len([f for f in disk.folder(version).parent.iterdir() if f.is_dir()]) <= 2  # type: ignore[attr-defined]
