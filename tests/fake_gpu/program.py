"""One path of a GPU on a device without memory, and the places where the host waits for it, as JSON (see
`test_fake_gpu`).

A program of its own: the device stays known to a process for good, and PyTorch's threads for it do not end in
order.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from paw_hpc.kernels import linear_logprob_entropy, linear_row_loss, logits_logprob_entropy, triton_rows
from paw_hpc.objective import policy_loss
from paw_hpc.objective.plan import plan
from paw_hpc.policy import huggingface, throughput
from paw_hpc.rollout.engines import decoder as decoding
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.graphs import DecodingSteps, Recorded
from paw_hpc.rollout.sglang.publish.buckets import weights_of
from tests.factories import random_pool, tiny_recipe
from tests.fake_gpu import device
from tests.policy.models import VOCABULARY, model_folder, random_model, word_tokenizer

GPU = torch.device(device.NAME)


def made(dtype: str, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=getattr(torch, dtype), device=GPU).requires_grad_()


def ids(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.int64, device=GPU)


# -------------------------------------------------------------------------------------------------- the paths


def head(dtype: str) -> None:
    """Both passes of the reference, and logits that exist already."""
    hidden, weight, target = made(dtype, 9, 8), made(dtype, 40, 8), ids(9)
    linear_row_loss(
        hidden, weight, target, lambda logp, entropy, rows: logp + entropy, chunk_rows=4, backend="reference"
    ).loss.backward()
    logp, entropy = linear_logprob_entropy(hidden, weight, target, backend="reference", chunk_rows=4)
    (logp.sum() + entropy.sum()).backward()
    logp, entropy = logits_logprob_entropy(made(dtype, 9, 40), target, backend="reference")
    (logp.sum() + entropy.sum()).backward()


def triton_head(dtype: str) -> None:
    """The Triton path around its two kernels, whose launches do nothing; into `main_grad`, as in training."""
    hidden, weight, target = made(dtype, 9, 8), made(dtype, 40, 8), ids(9)
    weight.main_grad = torch.zeros(40, 8, device=GPU)  # type: ignore[attr-defined]
    linear_row_loss(
        hidden, weight, target, lambda logp, entropy, rows: logp + entropy, chunk_rows=4
    ).loss.backward()
    with torch.no_grad():
        linear_logprob_entropy(hidden, weight, target, chunk_rows=4)


def policy(dtype: str, **dotted: Any) -> None:
    """Scores, plan, update, diagnosis, state and its return, for one arm."""
    recipe = tiny_recipe(
        **{"optimizer.max_tokens_per_micro_batch": 60, "optimizer.mini_batch": 8, "model.dtype": dtype}
        | dotted
    )
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe.model_copy(
            update={
                "model": recipe.model.model_copy(
                    update={"path": model_folder(folder), "tiny": None, "tokenizer": None}
                )
            }
        )
        learner = huggingface.HuggingFacePolicy(recipe, device=GPU)
    pool = random_pool(0, vocabulary=VOCABULARY)
    scores = learner.score(pool)
    learner.update(plan(pool, scores, recipe, 0).batch, 0)
    learner.observation_cross_entropy(pool)
    learner.load_state(learner.state())


def megatron(dtype: str) -> None:
    """As `grpo_paw`, by Megatron-core on one rank, without state (its checkpoints are files)."""
    from paw_hpc.policy.megatron import shim
    from paw_hpc.policy.megatron.policy import MegatronPolicy
    from paw_hpc.system import distributed

    shim.STAND_IN = GPU
    with shim.megatron():
        from megatron.core.distributed import param_and_grad_buffer as buffers
        from megatron.core.pipeline_parallel import schedules

    def alone(tensor: Any, *_: Any, **__: Any) -> None:
        """One rank has nothing to exchange, and gloo no word for this device."""

    torch.distributed.all_reduce = alone
    buffers._ParamAndGradBucketGroup.start_grad_sync = buffers._ParamAndGradBucketGroup.finish_grad_sync = (
        alone
    )
    buffers._ParamAndGradBucketGroup.start_param_sync = alone

    def in_shapes(*arguments: Any, backward: Callable[..., None] = schedules.custom_backward) -> None:
        with device.MODE:
            backward(*arguments)

    schedules.custom_backward = in_shapes  # it calls the engine of autograd past PyTorch's own door

    words = {
        "policy.backend": "megatron",
        "wm.enabled": True,
        "algorithm.kl_coefficient": 0.01,
        "model.dtype": dtype,
        "megatron.reference_on_cpu": False,
        "policy.share_prefixes": True,
    }
    with tempfile.TemporaryDirectory() as folder, distributed.joined(gpu=False, timeout_s=60.0):
        recipe = tiny_recipe(
            **{"optimizer.max_tokens_per_micro_batch": 60, "optimizer.mini_batch": 8} | words
        )
        recipe = recipe.model_copy(
            update={
                "model": recipe.model.model_copy(
                    update={"path": model_folder(folder), "tiny": None, "tokenizer": None}
                )
            }
        )
        learner = MegatronPolicy(recipe, device=GPU)
        pool = random_pool(0, vocabulary=VOCABULARY)
        scores = learner.score(pool)
        learner.update(plan(pool, scores, recipe, 0).batch, 0)
        learner.layout.close()


def grpo_paw(dtype: str) -> None:
    policy(
        dtype,
        **{
            "wm.enabled": True,
            "algorithm.kl_coefficient": 0.01,
            "algorithm.entropy_bonus": 0.001,
            "algorithm.truncated_importance": 2.0,
        },
    )


def ppo(dtype: str) -> None:
    policy(dtype, **{"algorithm.name": "ppo", "wm.enabled": True, "policy.share_prefixes": True})


class _Record(DecodingSteps):
    """Shapes are rounded as on a GPU; what would be recorded is computed."""

    def hidden(self, *arguments: Any) -> torch.Tensor:
        return self._rounded(*arguments)

    def _record(self, cache: Any, tokens: torch.Tensor, positions: torch.Tensor, length: int) -> Recorded:
        class Graph:
            def replay(self) -> None: ...

        return Recorded(
            Graph(), tokens.clone(), positions.clone(), self._compute(cache, tokens, positions, length)
        )  # type: ignore[arg-type]


def generation(dtype: str) -> None:
    """Prompts, steps that are played back, samples that end, slots that move, a cache that grows,
    temperatures and greedy sampling."""
    decoding.DecodingSteps = _Record  # type: ignore[misc,assignment]
    model = random_model("qwen2 tied").to(getattr(torch, dtype))
    huggingface.use_packed_attention(model)
    engine = decoding.Decoder(device.moved(model), word_tokenizer(), 6)
    engine.eos_ids = frozenset()  # every sampled id is 0 here: requests end at their limits
    rng = np.random.default_rng(0)
    for key in range(6):
        prompt = rng.integers(2, VOCABULARY, 5 + 30 * key).astype(np.int32)
        engine.admit([(key, GenerationRequest(key, prompt, key, 0.5 * (key % 3), 3 + 5 * (key % 2)))])
        engine.step()
    while engine.live:
        engine.step()


def publication(dtype: str) -> None:
    """Buckets of the live weights."""
    from paw_hpc.rollout.sglang.publish.buckets import buckets, in_turn

    model = device.moved(random_model("qwen2 tied").to(getattr(torch, dtype)))
    memory = in_turn(2, lambda size, place: torch.empty(size, dtype=torch.uint8, device=place))
    for bucket in buckets(weights_of(model).tensors(), 4096, memory):
        assert all(tensor.device.type == device.NAME for _, tensor in bucket.tensors())


class _NoLaunch:
    """A kernel whose launch does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *tensors, **options: None


# --------------------------------------------------------------------------------------------- planted faults


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """A row loss with a constant on the CPU (`device`), or that looks at its own value (`wait`)."""
    right = policy_loss.make_row_loss

    def wrong(batch: Any, recipe: Any) -> Any:
        row_loss = right(batch, recipe)

        def spoiled(logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            if fault == "device":
                return row_loss(logp, entropy, rows) * torch.ones(len(rows))
            return row_loss(logp, entropy, rows) * float(logp.detach().sum())

        return spoiled

    huggingface.make_row_loss = wrong  # type: ignore[assignment]
    yield
    huggingface.make_row_loss = right


PATHS: dict[str, Callable[[str], None]] = {
    "head": head,
    "triton_head": triton_head,
    "grpo_paw": grpo_paw,
    "ppo": ppo,
    "megatron": megatron,
    "generation": generation,
    "publication": publication,
}


def main(name: str, fault: str, dtype: str) -> dict[str, Any]:
    gpu = device.FakeGPU()
    try:
        with gpu, planted(fault) if fault != "none" else nullcontext():
            PATHS[name](dtype)
    except Exception:
        return {"error": traceback.format_exc(), "waits": dict(gpu.waits)}
    return {"error": None, "waits": dict(gpu.waits)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.nn.Module.to = lambda module, place: device.moved(module)  # type: ignore[assignment,method-assign]
    decoding.PREFILL_TOKENS[device.NAME] = 64
    throughput.memory_peak_bytes.__code__ = (lambda device: 0).__code__
    triton_rows._statistics_kernel = triton_rows._dlogits_kernel = _NoLaunch()  # type: ignore[assignment]
    triton_rows._on = lambda tensor: nullcontext()
    path, fault, *dtypes = sys.argv[1:]
    print("FOUND", json.dumps({dtype: main(path, fault, dtype) for dtype in dtypes}), flush=True)
    os._exit(0)
