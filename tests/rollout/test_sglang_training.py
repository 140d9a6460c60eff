"""Training with servers, from recipe to metrics: on-policy, one update ahead, and from a policy that two processes share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from paw_hpc import distributed, loop
from paw_hpc.build import Machinery
from paw_hpc.errors import RecipeError, TrainingError
from paw_hpc.metrics import read_metrics
from paw_hpc.policy import checkpoint
from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.recipe import Recipe, load_recipe, parse_recipe
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.publish.paths import BroadcastPath, PublishPath, TensorPath
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
    addresses = f"rollout.fleet.addresses=[{','.join(site.urls)}]"
    loop.train(load_recipe(RECIPE, [*SMALL, addresses, *overrides]), folder, command="test")
    return read_metrics(folder / "metrics.jsonl")


class TestTraining:
    def test_of_the_quickstart_is_on_policy(self, site: Site, tmp_path: Path) -> None:
        first, second = train(site, tmp_path / "run", "algorithm.truncated_importance=2.0")
        for metrics in (first, second):
            assert metrics["train/episodes"] == 6 and metrics["train/behaviour_gap_max"] < 1e-3
            assert metrics["fleet/ready"] == 2 and metrics["fleet/lost"] == metrics["rollout/mixed_version_turns"] == 0
            assert metrics["time/generation_tokens_per_s"] > 0 and 0 <= metrics["time/engine_idle_share"] <= 1
            assert metrics["time/first_token_s"] > 0 and metrics["policy/steps"] == 1

    def test_one_update_ahead_plays_with_older_weights_and_whole_groups(self, site: Site, tmp_path: Path) -> None:
        first, second = train(site, tmp_path / "run", "rollout.staleness=1", "algorithm.truncated_importance=2.0", "optimizer.lr=2e-3")
        assert first["train/behaviour_gap_max"] < 1e-3 < second["train/behaviour_gap_max"], "the second update's episodes began before its weights"
        assert first["train/episodes"] == second["train/episodes"] == 6 and first["train/groups"] == second["train/groups"] == 2

    def test_stops_before_it_trains_on_a_gap_that_is_too_large(self, site: Site, tmp_path: Path) -> None:
        ahead = (
            "rollout.staleness=1",
            "algorithm.truncated_importance=2.0",
            "optimizer.lr=2e-3",
            "rollout.max_logprob_gap=1e-3",
            "checkpoint.every=10",
        )
        with pytest.raises(TrainingError, match=r"update 1: trainer and engine differ by .* rollout\.max_logprob_gap=0\.001.*truncated_importance"):
            train(site, tmp_path / "run", *ahead, "rollout.max_logprob_gap=1e-3")
        assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1
        newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
        assert newest is not None and checkpoint.load(newest)[1]["update"] == 1


# ------------------------------------------------------------------------------------------------------- a policy of two processes


def publishes_its_shards(rank: int, folder: Path) -> None:
    """On each of two tensor-parallel ranks: by every path, the servers come to serve the whole model."""
    data = recipe_for_servers().model_dump(mode="json")
    data["rollout"]["fleet"] |= {"addresses": json.loads((folder / "urls.json").read_text())}
    recipe = parse_recipe(data | {"policy": {"backend": "megatron"}, "megatron": {"tensor_parallel": 2, "timeout_s": 600.0}, "threads": 1})
    with EventLoop() as event_loop, Machinery(recipe, event_loop, folder / "run") as machinery:
        paths: list[PublishPath | None] = [None] * 3
        if machinery.serving is not None:
            disk = machinery.serving.publisher._path
            paths = [disk, BroadcastPath(event_loop, 200_000, 300.0), TensorPath(event_loop, 200_000, 300.0)]
        factor = 1.0
        for version, path in enumerate(paths, 301):
            factor *= 1.02
            with torch.no_grad():
                for chunk in machinery.policy.models:  # type: ignore[attr-defined]
                    for parameter in chunk.parameters():
                        parameter.mul_(1.02)
            if machinery.serving is not None and path is not None:
                machinery.serving.publisher._path = path
            machinery.publisher.publish(version)
            if rank == 0:
                _compare(recipe, machinery, event_loop, factor, version)
            if path is not None:
                path.close()
            distributed.gather(None)


def _compare(recipe: Recipe, machinery: Machinery, event_loop: EventLoop, factor: float, version: int) -> None:
    whole = load_model(recipe, load_tokenizer(recipe.model)).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(factor)
    assert machinery.serving is not None
    prompt = np.arange(5, 60, dtype=np.int32)
    for server in machinery.serving.fleet.servers:
        sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        piece = event_loop.run(server.http.generate(f"{version}-{server.index}", prompt, sampling, 300.0))
        assert piece.ids.tolist() == reference_greedy(whole, prompt, 8) and set(piece.versions.tolist()) == {version}
        assert np.abs(piece.logprobs - reference_logprobs(whole, prompt, piece.ids)).max() < 1e-5


def test_shards_of_two_processes_become_whole_on_the_servers(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    (tmp_path / "urls.json").write_text(json.dumps(site.urls))
    run_ranks(2, [publishes_its_shards], tmp_path, timeout_s=600.0)


# ------------------------------------------------------------------------------------------------------------- without servers


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
        with pytest.raises(RecipeError, match=r"rollout\.publish\.path: tensor needs servers on the trainer's machine"):
            with_rollout(engine="sglang", publish={"path": "tensor"}, fleet={"hosts": ["node7"]})

    def test_servers_that_play_while_their_memory_is_the_trainers(self) -> None:
        with pytest.raises(RecipeError, match=r"rollout\.fleet\.colocated"):
            with_rollout({"truncated_importance": 2.0}, engine="sglang", staleness=1, fleet={"colocated": True})

    def test_no_sglang_where_it_should_be(self, tmp_path: Path) -> None:
        recipe = with_rollout(engine="sglang", fleet={"python": str(tmp_path / "python")})
        with EventLoop() as event_loop, pytest.raises(RecipeError, match=r"rollout\.fleet\.python: no interpreter .*make setup-sglang"):
            Machinery(recipe, event_loop, tmp_path)
