"""The paths of a GPU without one: no tensor of another device or dtype comes in, and the host waits only
where a reason stands here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATHS = ["head", "triton_head", "grpo_paw", "ppo", "megatron", "generation", "publication"]
ALLOWED = {
    "policy/packed.py:use_packed_attention": "once, when a policy is made: whether packing changes what "
    "the model says",
    "policy/fingerprint.py:fingerprint": "once, when a policy is made: weights are hashed on the host",
    "policy/backend.py:rows_from_device": "once per pass over a pool: what all its micro-batches found",
    "policy/optimizer.py:step": "once per optimizer step: a step that is not finite must not be made",
    "objective/policy_loss.py:finalize": "once per update: its metrics, in one transfer",
    "policy/optimizer.py:state": "a checkpoint's weights",
    "policy/optimizer.py:_copied": "a checkpoint's moments",
    "policy/megatron/optimizer.py:step": "once per optimizer step; Megatron-core's own norm without its "
    "fused kernels reads tensor by tensor",
    "policy/megatron/policy.py:_gathered": "once per update: metrics that ranks exchange over the host",
    "rollout/engines/decoder.py:sample": "once per decoding step: the sampled ids decide what runs on",
}
ONCE_PER_PASS = {
    "policy/backend.py:rows_from_device": {"grpo_paw": 3, "ppo": 4, "megatron": 2},
    "objective/policy_loss.py:finalize": {"grpo_paw": 1, "ppo": 1},
}
"""Scores, reference, diagnosis; with PPO values and no reference; Megatron's scores and reference: however
many micro-batches there are."""


def run(path: str, *dtypes: str, fault: str = "none") -> dict[str, Any]:
    """dtype -> the error and the waits of a path."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.fake_gpu.program", path, fault, *dtypes],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    _, mark, result = found.stdout.partition("FOUND ")
    assert mark, found.stdout[-2000:] + found.stderr[-4000:]
    return json.loads(result)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_gpu_stays_on_it(path: str) -> None:
    for dtype, found in run(path, "float32", "bfloat16").items():
        assert found["error"] is None, f"{dtype}: {found['error'][-4000:]}"
        assert not found["waits"].keys() - ALLOWED.keys(), (
            f"{dtype}: the host waits for the device in a place without a reason"
        )
        for place, counts in ONCE_PER_PASS.items():
            assert found["waits"].get(place) == counts.get(path), (
                f"{dtype}: {place} waits {found['waits'].get(place)} times"
            )


def test_a_tensor_of_the_wrong_device_is_found() -> None:
    found = run("grpo_paw", "bfloat16", fault="device")["bfloat16"]
    assert "FakeTensorDeviceMismatchError" in (found["error"] or "") or "two different devices" in (
        found["error"] or ""
    )


def test_a_read_that_nobody_needs_is_found() -> None:
    found = run("grpo_paw", "bfloat16", fault="wait")["bfloat16"]
    assert found["error"] is None and found["waits"].keys() - ALLOWED.keys() == {
        "kernels/head.py:_differentiate"
    }
