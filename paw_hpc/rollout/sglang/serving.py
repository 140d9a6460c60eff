"""A run's SGLang servers with everything that belongs to them: engine, publisher, and the folder they live
in."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.recipe import FleetSection, Recipe
from paw_hpc.rollout.engines.stopping import StopStrings
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.engine import SGLangEngine
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.process import Launch, make_launch
from paw_hpc.rollout.sglang.publish.buckets import Weights
from paw_hpc.rollout.sglang.publish.fleet_publisher import FleetPublisher
from paw_hpc.rollout.sglang.publish.paths import BroadcastPath, DiskPath, PublishPath, TensorPath
from paw_hpc.rollout.sglang.publish.pipeline_stages import StagedBroadcast, Stages
from paw_hpc.rollout.sglang.publish.traversal import Ended, FollowingPublisher, Order
from paw_hpc.system import distributed
from paw_hpc.system.keys import INHERITED_KEY, new_key, read_key


class Serving:
    """Starts the servers of a recipe (in the background: the first publication waits for them). `close` ends
    what this started.

    Args:
        workspace: where servers log, and where weights are exchanged on disk: seen by all of them under this
            name. None: a temporary folder.
        config, tokenizer: of the model.
        weights: the trainer's.
        bucket_bytes: what the publisher may use of `rollout.publish.bucket_mib`.
        stages: where pipeline stages send for themselves.

    Raises:
        RecipeError: no such interpreter for SGLang.
        UserError: the file with the servers' key cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        loop: EventLoop,
        workspace: Path | None,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        weights: Weights,
        bucket_bytes: int,
        stages: Stages | None = None,
    ):
        rollout = recipe.rollout
        self._loop = loop
        self._temporary = None if workspace is not None else Path(tempfile.mkdtemp(prefix="paw-servers-"))
        folder = workspace / "servers" if workspace is not None else self._temporary
        assert folder is not None
        settings = _fleet_of_job(rollout.fleet)
        self._launch: Launch | None = None
        if settings.addresses:
            key = None if settings.key_file is None else read_key(settings.key_file, "rollout.fleet.key_file")
        else:
            key = new_key()
            self._launch = make_launch(recipe, folder, config, tokenizer, key)
        self.fleet = Fleet(settings, self._launch, key)
        self.engine = SGLangEngine(
            self.fleet, _ends(config, tokenizer), StopStrings(tokenizer, rollout.stop), config.vocab_size
        )
        self.publisher = FleetPublisher(
            loop,
            self.fleet,
            _path(recipe, loop, folder, config, bucket_bytes, stages, key),
            weights,
            rollout.publish,
            dtype=getattr(torch, recipe.model.dtype),
            kv_heads=config.num_key_value_heads,
            give_order=None if distributed.size() == 1 else _broadcast,
            longest=(rollout.max_prompt_tokens, rollout.max_response_tokens),
        )
        loop.run(self.fleet.start())

    def collected(self) -> dict[str, float]:
        """An update's episodes are complete: servers on the trainer's GPUs give them up. What the engine says
        of them, under public names."""
        if self.fleet.settings.colocated:
            self.publisher.release_memory()
        return self.engine.drain_metrics()

    def close(self) -> None:
        self.publisher.close()
        self._loop.run(self.fleet.close())
        if self._launch is not None:
            self._launch.forget_key()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _fleet_of_job(settings: FleetSection) -> FleetSection:
    """Servers that the surrounding job has started beside the trainer (see cluster/supervise.py) stand in for
    those of the recipe."""
    started = os.environ.get("PAW_SERVERS")
    if not started:
        return settings
    return settings.model_copy(
        update={"addresses": tuple(started.split(",")), "key_file": os.environ.get(INHERITED_KEY)}
    )


def _ends(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a response (one or several in the configuration, one of the tokenizer)."""
    configured = config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)


def _broadcast(order: Order) -> None:
    distributed.broadcast(order)


def _receive() -> Order:
    return distributed.broadcast(Ended())  # what the first process says in its place


def following(
    recipe: Recipe, loop: EventLoop, weights: Weights, bucket_bytes: int, stages: Stages | None = None
) -> FollowingPublisher:
    """The publisher of the processes that have no servers (arguments as for `Serving`)."""
    sender = (
        None
        if stages is None
        else StagedBroadcast(loop, bucket_bytes, recipe.rollout.publish.timeout_s, stages)
    )
    return FollowingPublisher(weights, _receive, sender)


def _path(
    recipe: Recipe,
    loop: EventLoop,
    folder: Path,
    config: PreTrainedConfig,
    bucket_bytes: int,
    stages: Stages | None,
    key: str | None,
) -> PublishPath:
    settings = recipe.rollout.publish
    if settings.path == "disk":
        return DiskPath(loop, folder / "weights", config, bucket_bytes, settings.timeout_s)
    if settings.path == "tensor":
        return TensorPath(loop, bucket_bytes, settings.timeout_s)
    if stages is not None:
        return StagedBroadcast(loop, bucket_bytes, settings.timeout_s, stages, key)
    return BroadcastPath(loop, bucket_bytes, settings.timeout_s)
