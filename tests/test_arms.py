"""Every arm of recipes/paper/choices.yaml against PaW, on the same experience: what differs is what is meant
to differ, and nothing else does."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from paw_hpc.experience import ACTION, OBSERVATION, Batch, Pool
from paw_hpc.objective.plan import Plan, plan
from paw_hpc.recipe import Recipe
from tests.factories import random_groups, random_pool, random_scores, tiny_recipe
from tests.objective.rows import attach_logp, identical, row_losses
from tests.recipe_files import CHOICES

ARMS: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CHOICES))["arm"]  # type: ignore[index,call-overload,assignment]
UPDATES = 9
EXPECTED: dict[str, set[str]] = {
    "paw": set(),
    "vanilla": {"selection"},  # no observation is trained on at all
    "lambda-1": {"weights"},
    "ce-lambda": {"loss"},
    "rho-0.05": {"loss"},
    "rho-0.1": {"loss"},
    "rho-0.4": {"loss"},
    "rho-0.8": {"loss"},
    "rho-1": {"loss"},
    # Which observations are trained on; their weights follow from their number in the group (eq. 11), lambda
    # stays.
    "alpha-0.25": {"selection"},
    "alpha-0.5": {"selection"},
    "alpha-1": {"selection"},
    "random-0.75": {"selection"},
    "entropy-sampled": {"selection"},
    "ce-0.02": {"loss", "weights"},
    "ce-0.05": {"loss", "weights"},
    "echo-0.01": {"loss", "weights", "selection"},
    "echo-0.02": {"loss", "weights", "selection"},
    "echo-0.05": {"loss", "weights", "selection"},
    "shuffled": {"targets"},
    "shuffled-ce-lambda": {"targets", "loss"},
    "shuffled-ce-0.05": {"targets", "loss", "weights"},
    "every-4": set(),  # in the updates that have the world-model loss; see below for the others
    "decay": set(),  # in the first update; see below for the others
}


@pytest.fixture(scope="module")
def pool() -> Pool:
    # Every group fails somewhere, so that each lambda is above 0 and each selected transition is trained on.
    return random_pool(20, groups=6, success=0.3, observation=(4, 8), vocabulary=1000)


def recipe(arm: str, **more: Any) -> Recipe:
    flat = {f"wm.{key}": value for key, value in ARMS[arm]["wm"].items()}
    assert set(ARMS[arm]) == {"wm"}, f"{arm} sets more than the world-model loss"
    return tiny_recipe(**flat, **more, updates=UPDATES)


def planned(pool: Pool, arm: str, update: int = 0, **more: Any) -> Plan:
    return plan(pool, random_scores(pool), recipe(arm, **more), update)


def samples(batch: Batch) -> torch.Tensor:
    """int64[R]: the sample of each row."""
    return torch.repeat_interleave(torch.arange(len(batch)), batch.row_cu[1:] - batch.row_cu[:-1])


def targets(batch: Batch) -> dict[int, tuple[int, ...]]:
    """Transition -> the observation that it is trained on."""
    found: dict[int, list[int]] = {}
    for sample, kind, target in zip(
        samples(batch).tolist(), batch.row_kind.tolist(), batch.row_target.tolist(), strict=True
    ):
        if kind == OBSERVATION:
            found.setdefault(sample, []).append(target)
    return {sample: tuple(ids) for sample, ids in found.items()}


def observation_weights(batch: Batch) -> dict[int, float]:
    """Transition -> its weight: the sum over its observation's rows."""
    total = torch.zeros(len(batch), dtype=torch.float64)
    total.index_add_(0, samples(batch), (batch.streams["weight"] * (batch.row_kind == OBSERVATION)).double())
    return {n: float(w) for n, w in enumerate(total) if w}


def share_of_group(batch: Batch, pool: Pool) -> dict[int, float]:
    """Transition -> its weight times the number of its group's trained transitions: lambda_g / |G|, whatever
    was selected."""
    weights = observation_weights(batch)
    count = Counter(int(pool.group[n]) for n in weights)
    return {n: w * count[int(pool.group[n])] for n, w in weights.items()}


def same_actions(a: Batch, b: Batch) -> bool:
    """Everything that RL learns from: targets of action rows, their places in their samples, and all streams
    of rows and samples."""
    if (
        a.streams.keys() != b.streams.keys()
        or a.sample_streams.keys() != b.sample_streams.keys()
        or len(a) != len(b)
    ):
        return False
    parts = []
    for batch in (a, b):
        rows = batch.row_kind == ACTION
        sample = samples(batch)
        place = batch.row_position - batch.cu_seqlens[sample]
        # PPO's: what the critic learns, and where
        of_samples = [batch.sample_streams[name] for name in sorted(batch.sample_streams)]
        of_samples += (
            [batch.value_position - batch.cu_seqlens[:-1]] if batch.value_position is not None else []
        )
        of_rows = [batch.streams[name][rows] for name in sorted(batch.streams)]
        parts.append([sample[rows], place[rows], batch.row_target[rows], *of_rows, *of_samples])
    return all(torch.equal(x, y) for x, y in zip(*parts, strict=True))


def differences(pool: Pool, one: Plan, other: Plan, losses: tuple[Recipe, Recipe]) -> set[str]:
    """In which of the streams two plans of the same pool differ. Action rows must never."""
    a, b = one.batch, other.batch
    assert same_actions(a, b)
    assert torch.equal(one.advantage, other.advantage)
    found: set[str] = set()
    of_a, of_b = targets(a), targets(b)
    if of_a.keys() != of_b.keys():
        found.add("selection")
    common = sorted(of_a.keys() & of_b.keys())
    if any(of_a[n] != of_b[n] for n in common):
        found.add("targets")
    shares = share_of_group(a, pool), share_of_group(b, pool)
    if any(not math.isclose(shares[0][n], shares[1][n], rel_tol=1e-5) for n in common):
        found.add("weights")
    copy = attach_logp(plan(pool, random_scores(pool), recipe("paw"), 0).batch)
    ours, theirs = (row_losses(copy, each) for each in losses)
    action = copy.row_kind == ACTION
    assert torch.equal(ours[action], theirs[action])
    if not torch.equal(ours, theirs):
        found.add("loss")
    return found


def test_every_arm_has_its_expectation() -> None:
    assert EXPECTED.keys() == ARMS.keys()


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_from_paw_in_the_intended_streams_alone(pool: Pool, arm: str) -> None:
    paw, other = planned(pool, "paw"), planned(pool, arm)
    assert differences(pool, paw, other, (recipe("paw"), recipe(arm))) == EXPECTED[arm]
    if not EXPECTED[arm] - {"loss"}:
        assert identical(paw.batch, other.batch)  # not only the same numbers: the same batch, bit for bit


@pytest.mark.parametrize("algorithm", ["gigpo", "rloo", "ppo"])
@pytest.mark.parametrize("arm", ARMS)
def test_and_so_it_is_with_every_algorithm(pool: Pool, arm: str, algorithm: str) -> None:
    name = {"algorithm.name": algorithm}
    paw, other = planned(pool, "paw", **name), planned(pool, arm, **name)
    assert differences(pool, paw, other, (recipe("paw", **name), recipe(arm, **name))) == EXPECTED[arm]


def test_the_comparison_sees_each_stream(pool: Pool) -> None:
    """The negative control of the test above: with one number of one stream changed, it finds that stream, or
    refuses."""
    paw = planned(pool, "paw")

    def touched(change: str) -> set[str]:
        other = planned(pool, "paw")
        batch, rows = other.batch, (other.batch.row_kind == OBSERVATION).nonzero().flatten()
        if change == "targets":
            batch.row_target[rows[5]] += 1
        elif change == "weights":
            batch.streams["weight"][rows[5]] *= 1.01
        else:
            batch.streams[change][(batch.row_kind == ACTION).nonzero().flatten()[3]] += 0.01
        return differences(pool, paw, other, (recipe("paw"), recipe("paw")))

    assert touched("targets") == {"targets"} and touched("weights") == {"weights"}
    for stream in ("weight", "advantage", "old_logp", "ref_logp"):
        with pytest.raises(AssertionError):
            touched(stream)


def test_weights_of_the_constant_coefficients_are_the_coefficients(pool: Pool) -> None:
    for arm, coefficient in (
        ("lambda-1", 1.0),
        ("ce-0.02", 0.02),
        ("ce-0.05", 0.05),
        ("shuffled-ce-0.05", 0.05),
    ):
        weights = share_of_group(planned(pool, arm).batch, pool)
        assert weights and all(
            weight == pytest.approx(coefficient / pool.num_groups, rel=1e-5) for weight in weights.values()
        ), arm
    paw = planned(pool, "paw")
    for n, weight in share_of_group(paw.batch, pool).items():
        assert weight == pytest.approx(float(paw.coefficient[pool.group[n]]) / pool.num_groups, rel=1e-5)
    assert 0 < float(paw.coefficient.min()) < 0.9  # else lambda = 1 would be no other arm


def test_echo_gives_every_observation_token_of_the_update_the_same_weight(pool: Pool) -> None:
    for coefficient in (0.01, 0.02, 0.05):
        batch = planned(pool, f"echo-{coefficient:g}").batch
        weights = batch.streams["weight"][batch.row_kind == OBSERVATION]
        tokens = sum(len(t.observation_ids) for t in pool.transitions)
        assert len(weights) == tokens and torch.allclose(
            weights, torch.full((tokens,), coefficient / tokens), rtol=1e-5, atol=0.0
        )


def test_selections_have_their_sizes(pool: Pool) -> None:
    selectable = sum(len(t.observation_ids) > 0 for t in pool.transitions)
    for arm, alpha in (
        ("paw", 0.75),
        ("alpha-0.25", 0.25),
        ("alpha-0.5", 0.5),
        ("alpha-1", 1.0),
        ("random-0.75", 0.75),
        ("entropy-sampled", 0.75),
    ):
        assert len(targets(planned(pool, arm).batch)) == round(alpha * selectable), arm
    paw = set(targets(planned(pool, "paw").batch))
    # the highest entropies are nested
    assert set(targets(planned(pool, "alpha-0.5").batch)) < paw < set(targets(planned(pool, "alpha-1").batch))
    assert not targets(planned(pool, "vanilla").batch)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.startswith("shuffled")])
def test_the_shuffled_control_keeps_token_counts(pool: Pool, arm: str) -> None:
    true_arm = {"shuffled": "paw", "shuffled-ce-lambda": "ce-lambda", "shuffled-ce-0.05": "ce-0.05"}[arm]
    true, shuffled = planned(pool, true_arm).batch, planned(pool, arm).batch
    assert (true.num_tokens, true.num_rows) == (shuffled.num_tokens, shuffled.num_rows)
    # every observation is still learnt from, once
    assert Counter(targets(true).values()) == Counter(targets(shuffled).values())
    assert all(targets(true)[n] != targets(shuffled)[n] for n in targets(true))  # and none where it was seen
    assert observation_weights(true) == pytest.approx(observation_weights(shuffled), rel=1e-5)
    assert targets(planned(pool, arm, update=1).batch) != targets(shuffled)  # a new exchange in every update
    assert targets(planned(pool, arm).batch) == targets(shuffled)  # which repeats


def test_the_shuffled_control_keeps_token_counts_in_other_pools() -> None:
    for seed in range(8):
        other = Pool.from_groups(random_groups(seed, success=0.4, observation=(1, 12)))
        true, shuffled = planned(other, "paw").batch, planned(other, "shuffled").batch
        assert (true.num_tokens, true.num_rows) == (shuffled.num_tokens, shuffled.num_rows), seed


@pytest.mark.parametrize("update", range(UPDATES))
def test_every_fourth_update_is_paws_and_the_others_are_vanilla(pool: Pool, update: int) -> None:
    same = "vanilla" if update % 4 else "paw"
    assert identical(planned(pool, "every-4", update).batch, planned(pool, same, update).batch)


@pytest.mark.parametrize("update", range(UPDATES))
def test_decay_is_a_cosine_to_nothing(pool: Pool, update: int) -> None:
    share = 0.5 * (1 + math.cos(math.pi * update / (UPDATES - 1)))
    paw, decay = planned(pool, "paw", update), planned(pool, "decay", update)
    if update == UPDATES - 1:
        assert identical(decay.batch, planned(pool, "vanilla", update).batch)
        return
    assert targets(decay.batch) == targets(paw.batch) and same_actions(decay.batch, paw.batch)
    for n, weight in observation_weights(paw.batch).items():
        assert observation_weights(decay.batch)[n] == pytest.approx(share * weight, rel=1e-5)
