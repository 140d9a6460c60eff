"""What the ranks of `test_megatron_update` do: two updates on recorded ALFWorld experience in some layout,
against the one-process backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from paw_hpc.experience import Group, Pool
from paw_hpc.objective.batching import with_gradient
from paw_hpc.objective.packing import pack
from paw_hpc.objective.plan import plan
from paw_hpc.policy.backend import Metrics, Policy
from paw_hpc.policy.convert.transfer import hf_tensors
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.megatron import attention
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.optimizer import TrainedModel
from paw_hpc.policy.megatron.policy import MegatronPolicy
from paw_hpc.recipe import Recipe, parse_recipe
from tests.factories import as_conversations, random_scores

SMOOTH = {"lr": 1e-3, "critic_lr": 1e-3, "eps": 1e-3}
"""AdamW divides a gradient by its own size. With its usual eps, rounding errors alone make a step of full
length in a random direction: of a weight that nothing depends on, or of all of them where a step's whole
gradient is rounding (no advantage, no world-model row, a KL term at its minimum). With an eps of a usual
gradient's size (the norm is clipped to 1, over 0.8M weights) two ways to sum a gradient move every weight
alike, and a weight's way tells how large its gradient was."""
TOLERANCE = 2e-4
"""On each weight, as a share of the longest way that a weight of its tensor went: an error of 1 % in one
tensor's gradient is seen (tested)."""
ROUNDING = 5e-7
"""And this much beside it: weights are of the size of 1 and were added to several times."""
RECIPE: dict[str, Any] = {
    "name": "update",
    "updates": 4,
    "env": {
        "prompt": "compact",
        "max_steps": 4,
        "train_games": 2,
        "workers": 1,
        "task_types": ["pick_and_place_simple"],
    },
    "model": {"path": "warm-start", "device": "cpu"},
    "rollout": {"groups": 2, "group_size": 3, "max_prompt_tokens": 512, "max_response_tokens": 12},
    "algorithm": {"kl_coefficient": 0.01},
    "optimizer": {**SMOOTH, "mini_batch": 15, "max_tokens_per_micro_batch": 1024},
}
EXPERIENCE = "experience.pt"
EXPECTED = "expected-{}.pt"


def recipe(**dotted: Any) -> Recipe:
    """`RECIPE` with other values by dotted path."""
    data: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in RECIPE.items()
    }
    for path, value in dotted.items():
        section, key = path.split(".")
        data.setdefault(section, {})[key] = value
    return parse_recipe(data)


ARMS: dict[str, dict[str, Any]] = {
    "paw": {},
    "ppo": {"algorithm.name": "ppo"},
    "ppo-tokens": {"algorithm.name": "ppo", "algorithm.ppo_advantages": "tokens"},
    "vanilla": {"wm.enabled": False},
    "one-sample": {"optimizer.mini_batch": 1, "optimizer.epochs": 1},
    "rounding": {
        "optimizer.mini_batch": 1,
        "optimizer.epochs": 1,
        "wm.enabled": False,
        "env.invalid_penalty": 0.0,
    },
    "chains": {"optimizer.mini_batch": None},
    "chains-ppo": {"optimizer.mini_batch": None, "algorithm.name": "ppo"},
    "free": {"algorithm.kl_coefficient": 0.0, "env.invalid_penalty": 0.0, "wm.enabled": False},
}
"""`rounding`: the gradient of its first step is nothing but rounding, as no episode is better than another
and the KL term begins at its minimum. `chains`: prompts that go on from one another, which the one process
takes apart and the layouts do not. `free`: nothing moves the policy but advantages, so that some samples do
not."""
OF_WHAT_IS_TRAINED_ON = ("tokens", "rows", "entropy", "approx_kl", "row_logp")
"""Metrics of `free` that differ where samples are left out."""


def experience(folder: Path, arm: str) -> list[list[Group]]:
    """The groups of two updates; of `one-sample` and `rounding`, two transitions of each, and in `rounding`
    none is rewarded."""
    groups: list[list[Group]] = torch.load(folder / EXPERIENCE, weights_only=False)
    if arm in ("one-sample", "rounding"):
        for update in groups:
            del update[1:]
            for episode in update[0].episodes:
                del episode.transitions[1:]
            del update[0].episodes[2:]
    if arm.startswith("chains"):
        for update in groups:
            as_conversations(update)
    for transition in (
        t for update in groups for group in update for episode in group.episodes for t in episode.transitions
    ):
        transition.reward = 0.0 if arm in ("rounding", "free") else transition.reward
    for update in groups if arm == "free" else []:
        update[0].episodes[0].transitions[-1].reward = 10.0  # only the first group has anything to tell
    return groups


def train(policy: Policy, chosen: Recipe, groups: Sequence[Sequence[Group]]) -> list[Metrics]:
    """Score, plan and update, once per list of groups."""
    found = []
    for update, played in enumerate(groups):
        pool = Pool.from_groups(played)
        scores = policy.score(pool)
        planned = plan(pool, scores, chosen, update)
        seen = {
            "logp": float(scores.old_logp.double().mean()),
            "entropy_before": float(scores.entropy.double().mean()),
        }
        if scores.ref_logp is not None:
            seen["ref_logp"] = float(scores.ref_logp.double().mean())
        if scores.values is not None:
            seen["value"] = float(scores.values.double().mean())
        rows = torch.empty(planned.batch.num_rows)
        trained = policy.update(planned.batch, update, rows)
        # Weighted by the place: a row's log-prob in another row's place is seen.
        seen["row_logp"] = float(
            (rows.double() * torch.linspace(1, 3, len(rows), dtype=torch.float64)).mean()
        )
        found.append(planned.metrics | trained | policy.observation_cross_entropy(pool) | seen)
    return found


def write_expected(folder: Path, arm: str) -> None:
    """Weights and metrics of the one-process backend after two updates."""
    policy = HuggingFacePolicy(recipe(**ARMS[arm], **{"policy.merge_turns": False}))
    before = _weights(policy)
    metrics = train(policy, policy.recipe, experience(folder, arm))
    after = _weights(policy)
    found = {"metrics": metrics, "fingerprint": policy.initial_fingerprint}
    for model, weights in after.items():
        found[model] = weights
        found[f"{model} moved"] = {
            name: float((tensor - before[model][name]).abs().max()) for name, tensor in weights.items()
        }
    torch.save(found, folder / EXPECTED.format(arm))


def _weights(policy: HuggingFacePolicy) -> dict[str, dict[str, torch.Tensor]]:
    """Copies, by model and Hugging Face name."""
    found = {"policy": {name: p.detach().clone() for name, p in policy.model.named_parameters()}}
    if policy.critic is not None:
        found["critic"] = {
            f"model.{name}": p.detach().clone() for name, p in policy.critic.body.named_parameters()
        }
        found["critic"]["head"] = policy.critic.head.weight.detach().clone()
    return found


def policy_in(layout: Layout, arm: str, **dotted: Any) -> MegatronPolicy:
    sizes = {
        "policy.backend": "megatron",
        "megatron.tensor_parallel": layout.tensor,
        "megatron.pipeline_parallel": layout.pipeline,
        "megatron.context_parallel": layout.context,
        "megatron.virtual_pipeline": layout.virtual,
        "megatron.sequence_parallel": layout.sequence,
    }
    return MegatronPolicy(recipe(**(sizes | ARMS[arm] | dotted)), layout)


def check(folder: Path, layout: Layout, arm: str = "paw", **dotted: Any) -> None:
    """Weights and metrics after two updates in a layout are those of the one-process backend."""
    expected = torch.load(folder / EXPECTED.format(arm), weights_only=False)
    layout.open()
    try:
        policy = policy_in(layout, arm, **dotted)
        metrics = train(policy, policy.recipe, experience(folder, arm))
        assert policy.initial_fingerprint == expected["fingerprint"]
        same_weights(
            {name: tensor.clone() for name, tensor in policy.whole_tensors()},
            expected,
            "policy",
            f"{layout} {dotted}",
        )
        if policy.critic is not None:
            models = policy.critic.models
            weights = {
                name: tensor.clone() for name, tensor in hf_tensors(models, layout, policy.architecture)
            }
            if layout.last_stage:
                weights["head"] = models[-1].value_head.weight.detach()
            same_weights(weights, expected, "critic", f"{layout} {dotted}")
    finally:
        layout.close()
    for mine, theirs in zip(metrics, expected["metrics"], strict=True):
        for name, value in theirs.items():
            left_out = {"seconds"} | (
                {"tokens", "sequences"}
                if arm.startswith("chains")
                else set(OF_WHAT_IS_TRAINED_ON)
                if arm == "free"
                else set()
            )
            if name not in left_out and not name.startswith("system/"):
                assert abs(mine[name] - value) <= 2e-5 * max(1.0, abs(value)), (
                    f"{layout} {dotted}: {name} is {mine[name]}, not {value}"
                )


def same_weights(found: dict[str, torch.Tensor], expected: dict[str, Any], model: str, what: str) -> None:
    """Only the last stage has the critic's head."""
    assert found.keys() | ({"head"} if model == "critic" else set()) == expected[model].keys()
    for name, tensor in found.items():
        off, moved = float((tensor - expected[model][name]).abs().max()), expected[f"{model} moved"][name]
        assert off <= TOLERANCE * moved + ROUNDING, (
            f"{model}, {what}: {name} went {moved:.1e} and is off by {off:.1e}"
        )


# -------------------------------------------------------------------------------------------------- two ranks


def tensor_parallel(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2))


def sequence_parallel_with_recomputation(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, sequence=True), **{"megatron.recompute": "full"})


def pipeline_parallel(rank: int, folder: Path) -> None:
    check(folder, Layout(pipeline=2))


def replicas(rank: int, folder: Path) -> None:
    check(folder, Layout(data=2))


def replicas_that_overlap_communication(rank: int, folder: Path) -> None:
    check(
        folder,
        Layout(data=2),
        **{"megatron.overlap_grad_reduce": True, "megatron.overlap_param_gather": True},
    )


def without_distributed_optimizer(rank: int, folder: Path) -> None:
    check(folder, Layout(data=2), **{"megatron.distributed_optimizer": False})


def any_micro_batch(rank: int, folder: Path) -> None:
    for tokens in (1, 100_000):
        check(folder, Layout(tensor=2), **{"optimizer.max_tokens_per_micro_batch": tokens})


def fewer_samples_than_replicas(rank: int, folder: Path) -> None:
    check(folder, Layout(data=2), "one-sample")
    check(folder, Layout(data=2), "rounding")


def what_has_no_gradient_is_left_out(rank: int, folder: Path) -> None:
    """The control counts it."""
    skip = {"policy.skip_zero_gradient": True}
    check(folder, Layout(data=2), "free", **skip)
    chosen = recipe(**ARMS["free"], **skip)
    pool = Pool.from_groups(experience(folder, "free")[0])
    batch = plan(pool, random_scores(pool), chosen, 0).batch
    assert with_gradient(batch, chosen.algorithm).num_sequences < batch.num_sequences


def chains(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, sequence=True), "chains")
    check(folder, Layout(pipeline=2), "chains-ppo")


def chains_of_replicas(rank: int, folder: Path) -> None:
    """The control counts them."""
    check(folder, Layout(data=2), "chains")
    check(folder, Layout(data=2), "chains-ppo")
    pool = Pool.from_groups(experience(folder, "chains")[0])
    assert (
        pack(pool, [t.observation_ids for t in pool.transitions]).num_sequences
        == len(pool.episodes)
        < len(pool)
    )


def beginnings_computed_once(rank: int, folder: Path) -> None:
    """The last one has pieces of tokens that sequences share, and padding behind them."""
    share = {"policy.share_prefixes": True}
    check(folder, Layout(tensor=2, sequence=True), "paw", **share)
    check(folder, Layout(data=2), "ppo", **share, **{"optimizer.max_tokens_per_micro_batch": 300})
    check(folder, Layout(pipeline=2), "chains", **share)
    check(folder, Layout(data=2), "one-sample", **share)
    check(folder, Layout(context=2), "ppo-tokens", **share, **{"optimizer.max_tokens_per_micro_batch": 301})


def context_parallel(rank: int, folder: Path) -> None:
    """Four query and two key heads: each rank has one key head and those that see it."""
    check(folder, Layout(context=2))
    check(folder, Layout(context=2), "chains", **{"optimizer.max_tokens_per_micro_batch": 150})
    check(folder, Layout(context=2), "ppo")
    check(folder, Layout(context=2), "ppo-tokens")


def context_parallel_with_few_samples(rank: int, folder: Path) -> None:
    check(folder, Layout(context=2), "one-sample")
    check(
        folder,
        Layout(context=2),
        "paw",
        **{"optimizer.max_tokens_per_micro_batch": 1, "megatron.recompute": "full"},
    )


def context_and_tensor_parallel(rank: int, folder: Path) -> None:
    """One key head, which both context-parallel ranks have."""
    check(folder, Layout(tensor=2, context=2, sequence=True))
    check(folder, Layout(tensor=2, context=2), "chains-ppo")


def context_and_pipeline_parallel(rank: int, folder: Path) -> None:
    check(folder, Layout(pipeline=2, context=2), "chains")


def replicas_of_context_parallel_ranks(rank: int, folder: Path) -> None:
    check(folder, Layout(data=2, context=2), "chains", **{"optimizer.max_tokens_per_micro_batch": 150})
    check(folder, Layout(data=2, context=2), "one-sample", **{"megatron.distributed_optimizer": False})


def four_context_parallel_ranks(rank: int, folder: Path) -> None:
    check(folder, Layout(context=4))


def a_wrong_exchange_is_seen(rank: int, folder: Path) -> None:
    """The control: heads come back in another order."""
    right = attention.tokens_for_heads

    def turned(x: torch.Tensor, group: Any) -> torch.Tensor:
        return right(x, group).flip(1)

    with (
        mock.patch.object(attention, "tokens_for_heads", turned),
        pytest.raises(AssertionError, match=r"is off by|, not "),
    ):
        check(folder, Layout(context=2))


def a_wrong_gradient_is_seen(rank: int, folder: Path) -> None:
    """The control: one tensor's gradient is 1 % too large in every step."""
    right = TrainedModel.accumulate
    for wrong in (
        "layers.0.self_attention.linear_qkv.weight",
        "layers.2.mlp.linear_fc2.weight",
        "layers.3.pre_mlp_layernorm.weight",
    ):

        def accumulate(self: TrainedModel, parts: Any, finish: Any, wrong: str = wrong) -> None:
            right(self, parts, finish)
            (parameter,) = (p for name, p in self.models[0].named_parameters() if name.endswith(wrong))
            parameter.main_grad.mul_(1.01)

        with (
            mock.patch.object(TrainedModel, "accumulate", accumulate),
            pytest.raises(AssertionError, match="is off by"),
        ):
            check(folder, Layout(data=2), **{"megatron.distributed_optimizer": False})


def critic(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, sequence=True), "ppo")
    check(folder, Layout(pipeline=2), "ppo")


def critic_of_tokens(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, sequence=True), "ppo-tokens")
    check(folder, Layout(pipeline=2), "ppo-tokens")


def replicas_of_a_critic_of_tokens(rank: int, folder: Path) -> None:
    check(folder, Layout(data=2), "ppo-tokens")


def the_world_model_loss_counts(rank: int, folder: Path) -> None:
    expected = {
        arm: torch.load(folder / EXPECTED.format(arm), weights_only=False) for arm in ("paw", "vanilla")
    }
    for name, moved in expected["paw"]["policy moved"].items():
        difference = float(
            (expected["paw"]["policy"][name] - expected["vanilla"]["policy"][name]).abs().max()
        )
        assert difference > 10 * (TOLERANCE * moved + ROUNDING), (
            f"{name}: an update without it would not be told apart"
        )


def a_loss_that_is_no_number_is_skipped_by_all(rank: int, folder: Path) -> None:
    for layout in (Layout(tensor=2), Layout(pipeline=2), Layout(data=2)):
        layout.open()
        policy = policy_in(layout, "paw", **{"optimizer.mini_batch": None})
        before = {name: tensor.clone() for name, tensor in policy.whole_tensors()}
        pool = Pool.from_groups(experience(folder, "paw")[0])
        batch = plan(pool, policy.score(pool), policy.recipe, 0).batch
        batch.streams["weight"][3] = torch.nan
        metrics = policy.update(batch, 0)
        assert metrics["skipped_steps"] == 1 and metrics["steps"] == 0
        assert all(torch.equal(before[name], tensor) for name, tensor in policy.whole_tensors())
        batch.streams["weight"][3] = 0.0
        assert policy.update(batch, 0)["steps"] == 1, (
            "nothing of the skipped step is left in gradients or moments"
        )
        assert all(tensor.isfinite().all() for _, tensor in policy.whole_tensors())
        layout.close()


# ------------------------------------------------------------------------------------------------- four ranks


def tensor_and_pipeline_parallel(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, pipeline=2))


def replicas_of_tensor_parallel_ranks(rank: int, folder: Path) -> None:
    check(folder, Layout(tensor=2, data=2))


def replicas_of_interleaved_pipelines(rank: int, folder: Path) -> None:
    check(folder, Layout(pipeline=2, virtual=2, data=2), **{"optimizer.max_tokens_per_micro_batch": 400})
