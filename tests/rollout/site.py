"""Two real SGLang servers on this machine's CPU, started once for all tests that need them, and a trainer's
model beside them."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from paw_hpc.experience import Floats, Ids
from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import weights_of
from paw_hpc.rollout.sglang.publish.paths import BroadcastPath, DiskPath, PublishPath, TensorPath
from paw_hpc.rollout.sglang.serving import Serving
from paw_hpc.system.keys import write_secret

PYTHON = Path(__file__).parents[2] / ".venv-sglang" / "bin" / "python"
REQUIRED = os.environ.get("PAW_REQUIRE_SGLANG") == "1"
STOP = "desk 2"
PATIENCE_S = 900.0
"""For servers to come back: generous, because tests share machines."""


def recipe_for_servers(**rollout: object) -> Recipe:
    fleet = {
        "servers": 2,
        "python": str(PYTHON),
        "device": "cpu",
        "health_every_s": 2.0,
        "health_timeout_s": 15.0,
        "start_timeout_s": PATIENCE_S,
        "max_restarts": 20,
        "addresses": os.environ.get("PAW_TEST_SERVERS", "").split(),
    }
    return parse_recipe(
        {
            "model": {"path": "warm-start", "device": "cpu"},
            "rollout": {
                "engine": "sglang",
                "fleet": fleet,
                # A stop string makes the servers load the tokenizer; engines of single tests ask for it or
                # not.
                "stop": [STOP],
                "max_prompt_tokens": 512,
                "max_response_tokens": 400,
                "publish": {"timeout_s": 120.0},
                **rollout,
            },
        }
    )


class Site:
    """Servers, and a model whose weights tests change and publish."""

    def __init__(self, folder: Path, recipe: dict[str, object] | None = None):
        self.recipe = recipe_for_servers() if recipe is None else parse_recipe(recipe)
        self.loop = EventLoop()
        self.tokenizer = load_tokenizer(self.recipe.model)
        self.model = load_model(self.recipe, self.tokenizer).eval()
        self.original = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.chat = ChatFormat(self.tokenizer)
        self.folder, self.version = folder, 100
        self.serving = Serving(
            self.recipe, self.loop, folder, self.model.config, self.tokenizer, weights_of(self.model), 1 << 30
        )
        self.fleet, self.engine, self.publisher = (
            self.serving.fleet,
            self.serving.engine,
            self.serving.publisher,
        )
        self.key = self.fleet._key or ""
        self.key_file = folder / "key"
        """For whoever names these servers by their addresses."""
        write_secret(self.key_file, self.key)

    def close(self) -> None:
        self.serving.close()
        self.loop.close()

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.http.url for server in self.fleet.servers)

    def change_weights(self, seed: int, scale: float = 0.02) -> None:
        """The shipped policy with noise; seed 0: as shipped."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * (scale if seed else 0.0)
                parameter.copy_(self.original[name] + noise)

    def publish(self) -> int:
        self.version += 1
        self.publisher.publish(self.version)
        return self.version

    def take(self, path: str, bucket_bytes: int = 1 << 30) -> PublishPath:
        """Publish this way from now on."""
        self.publisher._path.close()
        timeout_s = self.recipe.rollout.publish.timeout_s
        new: PublishPath
        if path == "disk":
            new = DiskPath(self.loop, self.folder / "weights", self.model.config, bucket_bytes, timeout_s)
        else:
            new = (BroadcastPath if path == "broadcast" else TensorPath)(self.loop, bucket_bytes, timeout_s)
        self.publisher._path = new
        return new

    def all_ready(self) -> None:
        """Wait until every server plays with the current weights."""

        async def ready() -> None:
            while any(s.state != "ready" or s.version != self.fleet.version for s in self.fleet.servers):
                await asyncio.sleep(0.2)

        self.loop.run(asyncio.wait_for(ready(), PATIENCE_S), serve=True)

    def prompts(self, count: int, seed: int = 0, length: int = 40) -> list[Ids]:
        """Sentences of the policy's own vocabulary that end where it is its turn."""
        rng = np.random.default_rng(seed)
        words = [w for w in self.tokenizer.get_vocab() if w.isalpha()]
        texts = [" ".join(rng.choice(sorted(words), size=int(rng.integers(5, length)))) for _ in range(count)]
        return [self.chat.prompt([{"role": "user", "content": text}]) for text in texts]

    def play(self, requests: Sequence[GenerationRequest], engine: object = None) -> list[Completion]:
        async def all_turns() -> list[Completion]:
            return list(await asyncio.gather(*((engine or self.engine).generate(r) for r in requests)))  # type: ignore[attr-defined]

        return self.loop.run(all_turns(), serve=True)

    def only(self, server: Server, prompt: Ids, count: int = 8) -> tuple[list[int], list[float]]:
        """Greedy ids and log-probs of one certain server."""
        sampling = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
        piece = self.loop.run(
            server.http.generate(f"only-{server.index}-{self.version}", prompt, sampling, 120.0)
        )
        return piece.ids.tolist(), piece.logprobs.tolist()


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel, prompt: Ids, response: Ids, temperature: float = 1.0
) -> Floats:
    """float64[len(response)] of transformers' own forward pass, in float64: its rounding is not added to the
    server's."""
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
    logits = copy.deepcopy(model).double()(ids[None]).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(1, ids[len(prompt) :, None])[:, 0].numpy()


@torch.no_grad()
def reference_greedy(model: PreTrainedModel, prompt: Ids, count: int) -> list[int]:
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    return model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)[
        0, len(prompt) :
    ].tolist()
