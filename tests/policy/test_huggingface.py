"""The one-process policy against plain transformers and autograd, and the invariants of an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from paw_hpc.experience import Batch, Pool, Scores
from paw_hpc.objective.plan import pack, plan
from paw_hpc.objective.policy_loss import make_row_loss
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.trainer import NO_IDS
from paw_hpc.system.errors import CheckpointError
from tests.factories import random_pool
from tests.policy.models import MODELS, model_folder, policy_from

SMOOTH = {"optimizer.eps": 1e-2, "optimizer.lr": 1e-2}
"""AdamW divides by a gradient's own size: with its usual eps a rounding error of 1e-9 in a gradient of 1e-9
is a full step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pool() -> Pool:
    return random_pool(3)


def planned(policy: HuggingFacePolicy, pool: Pool) -> Batch:
    return plan(pool, policy.score(pool), policy.recipe, update=0).batch


def weights(policy: HuggingFacePolicy) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in policy.model.parameters()])


def full_scores(
    model: PreTrainedModel, batch: Batch, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logp, entropy) of every row from full logits, one sample at a time."""
    logp, entropy = [], []
    for n in range(len(batch)):
        start, end = int(batch.cu_seqlens[n]), int(batch.cu_seqlens[n + 1])
        rows = slice(int(batch.row_cu[n]), int(batch.row_cu[n + 1]))
        logits = (
            model(input_ids=batch.tokens[None, start:end]).logits[0, batch.row_position[rows] - start]
            / temperature
        )
        all_logp = logits.log_softmax(-1)
        logp.append(all_logp.gather(-1, batch.row_target[rows, None])[:, 0])
        entropy.append(-(all_logp.exp() * all_logp).sum(-1))
    return torch.cat(logp), torch.cat(entropy)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_scores_are_those_of_the_full_softmax(name: str, pool: Pool, tmp_path: Path) -> None:
    policy = policy_from(
        model_folder(tmp_path, name),
        **{"rollout.temperature": 0.7, "optimizer.max_tokens_per_micro_batch": 100},
    )
    own = AutoModelForCausalLM.from_pretrained(tmp_path)
    logp, entropy = full_scores(own, pack(pool, [NO_IDS] * len(pool)), 0.7)
    scores = policy.score(pool)
    torch.testing.assert_close(scores.old_logp, logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy, rtol=1e-5, atol=1e-5)
    assert (
        scores.ref_logp is not None
        and torch.equal(scores.ref_logp, scores.old_logp)
        and scores.values is None
    )


def test_scores_that_are_known_are_completed_and_not_touched(folder: str, pool: Pool) -> None:
    policy = policy_from(folder, **{"algorithm.name": "ppo"})
    scores = policy.score(pool)
    old_logp, entropy = scores.old_logp + 1.0, scores.entropy + 1.0
    completed = policy.complete_scores(Scores(old_logp, entropy), pool)
    assert completed.old_logp is old_logp and completed.entropy is entropy
    for a, b in ((completed.ref_logp, scores.ref_logp), (completed.values, scores.values)):
        assert a is not None and b is not None and torch.equal(a, b)
    plain = policy_from(folder, **{"algorithm.kl_coefficient": 0.0}).complete_scores(
        Scores(old_logp, entropy), pool
    )
    assert plain.ref_logp is None and plain.values is None


@torch.no_grad()
def test_appended_observations_leave_action_log_probs_unchanged(folder: str, pool: Pool) -> None:
    policy = policy_from(folder)
    bare, appended = (
        pack(pool, [NO_IDS] * len(pool)),
        pack(pool, [t.observation_ids for t in pool.transitions]),
    )
    before, after = policy._rows("policy", bare), policy._rows("policy", appended)
    action = appended.row_kind == 0
    assert appended.num_rows > bare.num_rows
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b[action], a, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_plain_autograd_over_full_logits(folder: str, pool: Pool) -> None:
    """With the KL term, an entropy bonus and world-model rows; a linear step shows the gradient in the
    weights."""
    policy = policy_from(
        folder, **{"algorithm.entropy_bonus": 0.1, "optimizer.max_tokens_per_micro_batch": 64}
    )
    own = AutoModelForCausalLM.from_pretrained(folder)
    batch = planned(policy, pool)
    assert bool((batch.row_kind == 1).any())
    batch.streams["old_logp"] -= 0.1
    batch.streams["ref_logp"] += 0.3
    logp, entropy = full_scores(own, batch, 1.0)
    loss = make_row_loss(batch, policy.recipe)(logp, entropy, torch.arange(batch.num_rows)).sum()
    loss.backward()
    summed = policy._accumulate("policy", batch, [])
    torch.testing.assert_close(summed, loss.detach(), rtol=1e-5, atol=1e-6)
    for (name, ours), (_, reference) in zip(
        policy.model.named_parameters(), own.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            ours.grad, reference.grad, rtol=1e-4, atol=2e-6 * float(reference.grad.abs().max()), msg=name
        )


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """Those that the machine's speed and memory leave alone."""
    return {k: v for k, v in metrics.items() if k != "seconds" and not k.startswith("system/")}


def test_an_update_is_the_same_for_any_micro_batch_sample_order_and_packing(folder: str, pool: Pool) -> None:
    found = []
    for max_tokens, seed in ((100_000, None), (1, None), (90, 0), (400, 1)):
        policy = policy_from(folder, **SMOOTH, **{"optimizer.max_tokens_per_micro_batch": max_tokens})
        start, batch = weights(policy), planned(policy, pool)
        if seed is not None:
            batch = batch.take(torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)))
        metrics = policy.update(batch, 0)
        found.append((weights(policy), metrics))
    (expected, reference), *others = found
    assert (expected - start).abs().max() > 1e-4  # it did learn
    for changed, metrics in others:
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-6)
        same = lasting(metrics)
        assert same == pytest.approx({k: reference[k] for k in same}, rel=1e-4, abs=1e-7)


def test_that_invariance_would_notice_one_wrong_weight(folder: str, pool: Pool) -> None:
    found = []
    for factor in (1.0, 1.5):
        policy = policy_from(folder, **SMOOTH)
        batch = planned(policy, pool)
        batch.streams["weight"][: int(batch.row_cu[1])] *= factor
        policy.update(batch, 0)
        found.append(weights(policy))
    assert (found[0] - found[1]).abs().max() > 1e-5


def test_an_update_tells_the_log_probs_that_its_pass_saw(folder: str, pool: Pool) -> None:
    """Of every row in its place, in any micro-batches; with several steps, those of the first epoch; and the
    update is the same."""
    policy = policy_from(
        folder,
        **{"rollout.temperature": 0.7, "optimizer.epochs": 2, "optimizer.max_tokens_per_micro_batch": 90},
    )
    other, batch = (
        policy_from(folder, **{"rollout.temperature": 0.7, "optimizer.epochs": 2}),
        planned(policy, pool),
    )
    with torch.no_grad():
        expected, _ = full_scores(AutoModelForCausalLM.from_pretrained(folder), batch, 0.7)
    rows = torch.full((batch.num_rows,), torch.nan)
    policy.update(batch, 0, rows)
    other.update(batch, 0)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(policy), weights(other), rtol=0, atol=1e-3)
    again = torch.full((batch.num_rows,), torch.nan)
    policy.update(batch, 1, again)
    assert (again - rows).abs().max() > 1e-3, "the control: another policy says other things"
    small = policy_from(folder, **{"rollout.temperature": 0.7, "optimizer.mini_batch": 8})
    small.update(batch, 0, again.fill_(torch.nan))
    assert bool(again.isfinite().all()) and (again - expected).abs().max() > 1e-6, (
        "later mini-batches see a policy that has moved"
    )


def test_mini_batches_and_epochs_are_optimizer_steps(folder: str, pool: Pool) -> None:
    policy = policy_from(folder, **{"optimizer.epochs": 2, "optimizer.mini_batch": 8})
    batch = planned(policy, pool)
    metrics = policy.update(batch, 0)
    assert metrics["steps"] == 2 * -(-len(batch) // 8) and metrics["skipped_steps"] == 0
    assert metrics["tokens"] == 2 * batch.num_tokens and metrics["rows"] == 2 * batch.num_rows
    assert metrics["approx_kl"] > 0  # later steps see a policy that has moved


def test_metrics_of_one_step_are_those_of_the_policy_before_it(folder: str, pool: Pool) -> None:
    policy = policy_from(folder)
    batch = planned(policy, pool)
    logp, entropy = (x.detach().double() for x in policy._rows("policy", batch))
    action, observation = batch.row_kind == 0, batch.row_kind == 1
    metrics = policy.update(batch, 0)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-9) and metrics["ratio_clip_fraction"] == 0
    assert metrics["entropy"] == pytest.approx(float(entropy[action].mean()), rel=1e-5)
    assert metrics["observation_ce"] == pytest.approx(float(-logp[observation].mean()), rel=1e-5)
    assert metrics["grad_norm"] > 0 and metrics["lr"] == 1e-3


def state_difference(a: Any, b: Any) -> list[str]:
    """Paths at which two nested states are not bit-equal."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else ["tensor"]
    if isinstance(a, dict):
        return [f"{k}/{p}" for k in a.keys() | b.keys() for p in state_difference(a[k], b[k])]
    if isinstance(a, list):
        return [p for x, y in zip(a, b, strict=True) for p in state_difference(x, y)]
    return [] if a == b else [f"{a} != {b}"]


@pytest.mark.parametrize(
    "options", [{}, {"algorithm.name": "ppo"}, {"model.dtype": "bfloat16"}], ids=["grpo", "ppo", "bfloat16"]
)
def test_a_resumed_policy_continues_bit_for_bit(folder: str, options: dict[str, Any]) -> None:
    options = {**options, "optimizer.mini_batch": 10, "optimizer.warmup_updates": 3}
    pools = [random_pool(seed) for seed in range(4)]

    def go_on(policy: HuggingFacePolicy, updates: range) -> list[dict[str, float]]:
        metrics = [
            policy.update(plan(pools[u], policy.score(pools[u]), policy.recipe, u).batch, u) for u in updates
        ]
        return [lasting(m) for m in metrics]

    straight = policy_from(folder, **options)
    go_on(straight, range(2))
    saved = straight.state()
    resumed = policy_from(folder, **options)
    resumed.load_state(saved)
    assert go_on(straight, range(2, 4)) == go_on(resumed, range(2, 4))
    assert not state_difference(straight.state(), resumed.state())
    assert state_difference(saved, straight.state())  # a snapshot: what was saved did not move along
    scores, again = straight.score(pools[0]), resumed.score(pools[0])
    assert (
        scores.ref_logp is not None
        and again.ref_logp is not None
        and torch.equal(scores.ref_logp, again.ref_logp)
    )
    # the initial policy still
    assert torch.equal(scores.ref_logp, policy_from(folder, **options).score(pools[0]).old_logp)
    assert not torch.allclose(scores.ref_logp, scores.old_logp)


def test_states_of_other_models_are_refused_and_change_nothing(folder: str, tmp_path: Path) -> None:
    policy = policy_from(folder)
    before = policy.state()
    others = {
        "lm_head": policy_from(
            model_folder(tmp_path / "untied", "qwen2 untied"), **{"algorithm.kl_coefficient": 0.0}
        ),
        "critic": policy_from(folder, **{"algorithm.name": "ppo"}),
        "began with": policy_from(model_folder(tmp_path / "other", seed=1)),
    }
    for reason, other in others.items():
        state = other.state() | (
            {"initial_fingerprint": policy.initial_fingerprint} if reason == "lm_head" else {}
        )
        with pytest.raises(CheckpointError, match=reason):
            policy.load_state(state)
    torn = policy.state()
    torn["policy"]["weights"]["model.norm.weight"] = torch.ones(7)
    with pytest.raises(CheckpointError, match=r"model.norm.weight is \(7,\)"):
        policy.load_state(torn)
    assert not state_difference(before, policy.state())


@pytest.mark.parametrize(
    "stream,value", [("weight", float("nan")), ("weight", float("inf")), ("old_logp", float("nan"))]
)
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(
    folder: str, pool: Pool, stream: str, value: float
) -> None:
    policy, clean = policy_from(folder), policy_from(folder)
    good = planned(clean, pool)
    bad = planned(policy, pool)
    bad.streams[stream][5] = value
    before = policy.state()
    metrics = policy.update(bad, 0)
    assert metrics["skipped_steps"] == 1 and metrics["steps"] == 0
    assert not state_difference(before, policy.state())
    clean.update(good, 0)
    assert policy.update(good, 0)["skipped_steps"] == 0
    assert torch.equal(weights(policy), weights(clean))


def test_only_the_mini_batch_that_is_not_finite_is_skipped(folder: str, pool: Pool) -> None:
    policy = policy_from(folder, **{"optimizer.mini_batch": 8})
    batch = planned(policy, pool)
    batch.streams["weight"][5] = float("nan")
    metrics = policy.update(batch, 0)
    assert metrics["skipped_steps"] == 1 and metrics["steps"] == -(-len(batch) // 8) - 1
    assert torch.isfinite(weights(policy)).all() and metrics["grad_norm"] > 0


def test_gradients_are_clipped_to_the_norm_of_the_recipe(folder: str, pool: Pool) -> None:
    """Without momentum's and AdamW's own scaling (huge eps) the step is linear in the clipped gradient."""
    moved = {}
    for clip in (1e9, 1e-3):
        policy = policy_from(
            folder,
            **{
                "optimizer.clip_grad": clip,
                "optimizer.eps": 1e6,
                "optimizer.lr": 1e5,
                "optimizer.weight_decay": 0.0,
            },
        )
        start = weights(policy)
        norm = policy.update(planned(policy, pool), 0)["grad_norm"]
        moved[clip] = float((weights(policy) - start).norm())
    assert norm > 2e-3 and moved[1e-3] / moved[1e9] == pytest.approx(1e-3 / norm, rel=1e-3)


def test_warm_up_is_linear_over_updates_and_vectors_do_not_decay(folder: str, pool: Pool) -> None:
    policy = policy_from(
        folder, **{"optimizer.warmup_updates": 4, "optimizer.lr": 0.1, "optimizer.weight_decay": 0.5}
    )
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    batch = planned(policy, pool)
    batch.streams["weight"].zero_()
    rates = [policy.update(batch, update)["lr"] for update in (0, 1, 3, 9)]
    assert rates == pytest.approx([0.025, 0.05, 0.1, 0.1])
    decayed = torch.tensor([1 - 0.5 * rate for rate in rates]).prod()
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), start[name] * (decayed if parameter.ndim == 2 else 1.0), msg=name
        )


def test_warm_up_as_a_share_of_the_run(folder: str) -> None:
    rates = [
        policy_from(
            folder, updates=30, **{"optimizer.warmup_share": 0.1, "optimizer.lr": 0.3}
        ).optimizer.learning_rate(u)
        for u in range(4)
    ]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])
    # A share that is short of a whole number in floating point only (0.29 * 100 = 28.999999999999996), and
    # one of less than an update.
    assert [
        policy_from(folder, updates=100, **{"optimizer.warmup_share": s}).optimizer.warmup_updates
        for s in (0.29, 0.001)
    ] == [29, 0]


def test_gradient_checkpointing_changes_memory_only(folder: str, pool: Pool) -> None:
    found = []
    for checkpointing in (False, True):
        policy = policy_from(
            folder, **SMOOTH, **{"model.gradient_checkpointing": checkpointing, "algorithm.name": "ppo"}
        )
        policy.update(planned(policy, pool), 0)
        assert policy.critic is not None
        found.append(
            torch.cat([weights(policy), *(p.detach().flatten() for p in policy.critic.parameters())])
        )
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-7)


def test_bfloat16_keeps_what_its_steps_would_round_away(folder: str, pool: Pool) -> None:
    """Steps of 1e-5 are far below bfloat16's resolution at most weights; the float32 masters add them up."""
    policy = policy_from(folder, **{"model.dtype": "bfloat16", "optimizer.lr": 1e-5})
    start = policy.state()["policy"]["weights"]
    batch = planned(policy, pool)
    for update in range(5):
        assert policy.update(batch, update)["skipped_steps"] == 0
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    end = policy.state()["policy"]["weights"]
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter.detach(), end[name].bfloat16())
    moved = torch.cat([(end[n] - start[n]).abs().flatten() for n in end])
    assert float(moved.max()) < 1e-4 and float((moved > 2e-5).float().mean()) > 0.5
    full = policy_from(folder)
    error = (
        (policy_from(folder, **{"model.dtype": "bfloat16"}).score(pool).old_logp - full.score(pool).old_logp)
        .abs()
        .max()
    )
    assert 0 < float(error) < 0.2


def test_world_model_rows_teach_observations_and_their_absence_does_not(folder: str, pool: Pool) -> None:
    found = {}
    for enabled in (True, False):
        policy = policy_from(
            folder,
            **{
                "wm.enabled": enabled,
                "wm.coefficient": "constant",
                "wm.loss": "cross_entropy",
                "optimizer.lr": 3e-3,
            },
        )
        before = policy.observation_cross_entropy(pool)
        for update in range(8):
            policy.update(planned(policy, pool), update)
        after = policy.observation_cross_entropy(pool)
        assert (
            before["observation_tokens"]
            == after["observation_tokens"]
            == sum(len(t.observation_ids) for t in pool.transitions)
        )
        found[enabled] = after["observation_cross_entropy"] - before["observation_cross_entropy"]
    assert found[True] < -0.5 and found[False] > -0.1


@torch.no_grad()
def test_observation_cross_entropy_is_that_of_full_logits(folder: str, pool: Pool) -> None:
    batch = pack(pool, [t.observation_ids for t in pool.transitions])
    logp, _ = full_scores(AutoModelForCausalLM.from_pretrained(folder), batch, 1.0)
    expected = -float(logp[batch.row_kind == 1].double().mean())
    policy = policy_from(folder)
    assert policy.observation_cross_entropy(pool)["observation_cross_entropy"] == pytest.approx(
        expected, rel=1e-5
    )
    silent = random_pool(0, observation=(0, 0))
    assert policy.observation_cross_entropy(silent) == {"observation_tokens": 0.0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2 tied", "qwen2 untied"])
@torch.no_grad()
def test_an_exported_folder_is_the_same_policy(name: str, dtype: str, pool: Pool, tmp_path: Path) -> None:
    policy = policy_from(model_folder(tmp_path / "start", name), **{"model.dtype": dtype})
    with torch.enable_grad():
        policy.update(planned(policy, pool), 0)
    policy.export(tmp_path / "export")
    again = policy_from(str(tmp_path / "export"), **{"model.dtype": dtype})
    assert torch.equal(again.score(pool).old_logp, policy.score(pool).old_logp)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert own.dtype == getattr(torch, dtype) and own.config._attn_implementation == "sdpa"
    for (key, a), (_, b) in zip(own.named_parameters(), policy.model.named_parameters(), strict=True):
        assert torch.equal(a, b), key
    # Not AutoTokenizer: for this architecture it would put Qwen's own class in place of the folder's
    # word-level one.
    for tokenizer in (again.tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path / "export")):
        assert tokenizer("w3 w7 w1")["input_ids"] == [3, 7, 1] and tokenizer.eos_token_id == 1
