"""What gloo ranks do with a pretrained model in `test_megatron`: convert it, score with it and update it in
some layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paw_hpc.experience import Pool
from paw_hpc.objective.plan import plan
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.policy import MegatronPolicy
from paw_hpc.recipe import Recipe, parse_recipe
from tests.factories import random_pool

EXPECTED = "one process.pt"
FOLDER = "folder.txt"
"""Where the model is."""
CLOSE = 1e-5
"""On each weight after an update; the longest way of a weight is a hundred times that, and more (tested)."""


def recipe(folder: Path, **dotted: Any) -> Recipe:
    """PaW on a CPU. AdamW's eps is of a gradient's size, so that a gradient of rounding alone makes no step
    of full length."""
    data: dict[str, Any] = {
        "env": {"prompt": "paper"},
        "model": {"path": str(folder), "device": "cpu"},
        "algorithm": {"kl_coefficient": 0.0},
        "optimizer": {"lr": 1e-2, "eps": 1e-3, "max_tokens_per_micro_batch": 128},
        "rollout": {"groups": 2, "group_size": 2},
    }
    for path, value in dotted.items():
        section, key = path.split(".")
        data.setdefault(section, {})[key] = value
    return parse_recipe(data)


def pool() -> Pool:
    """Some 150 tokens of the whole vocabulary."""
    return random_pool(
        3,
        groups=2,
        members=2,
        max_steps=2,
        vocabulary=49152,
        prompt=(6, 20),
        response=(3, 6),
        observation=(4, 10),
    )


def check(shared: Path, layout: Layout, *, update: bool) -> None:
    """The folder's tensors come back bit for bit; log-probs and entropies, and after an update weights and
    losses, are those of one process."""
    folder, expected = Path((shared / FOLDER).read_text()), torch.load(shared / EXPECTED, weights_only=False)
    sizes = {
        "megatron.tensor_parallel": layout.tensor,
        "megatron.pipeline_parallel": layout.pipeline,
        "policy.backend": "megatron",
    }
    layout.open()
    try:
        policy = MegatronPolicy(recipe(folder, **sizes), layout)
        read = load_file(folder / "model.safetensors")
        back = {name: tensor.clone() for name, tensor in policy.whole_tensors()}
        assert back.keys() == read.keys()
        for name, tensor in read.items():  # 16 bits, which float32 holds exactly
            assert torch.equal(back[name], tensor.float()), name
        experience = pool()
        scores = policy.score(experience)
        for found, theirs in ((scores.old_logp, expected["logp"]), (scores.entropy, expected["entropy"])):
            torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-5)
        if not update:
            return
        metrics = policy.update(plan(experience, scores, policy.recipe, 0).batch, 0)
        for name in ("policy_loss", "wm_loss", "grad_norm"):
            # A norm over 135 million numbers, each a sum of its own order, is 1.01e-5 off over four stages.
            tolerance = 3 * CLOSE if name == "grad_norm" else CLOSE
            assert abs(metrics[name] - expected["metrics"][name]) <= tolerance * max(
                1.0, abs(metrics[name])
            ), (name, metrics[name])
        for name, tensor in policy.whole_tensors():
            assert float((tensor - expected["weights"][name]).abs().max()) <= CLOSE, name
    finally:
        layout.close()


def three_tensor_parallel_ranks(rank: int, shared: Path) -> None:
    """Nine heads, three key heads."""
    check(shared, Layout(tensor=3), update=True)


def three_stages(rank: int, shared: Path) -> None:
    check(shared, Layout(pipeline=3), update=False)


def two_stages(rank: int, shared: Path) -> None:
    check(shared, Layout(pipeline=2), update=False)


def four_stages_of_unlike_size(rank: int, shared: Path) -> None:
    """Seven, eight, eight and seven of thirty layers."""
    check(shared, Layout(pipeline=4), update=True)
