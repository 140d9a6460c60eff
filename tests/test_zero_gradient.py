"""`policy.skip_zero_gradient`: what cannot move the policy is not computed, and the policy moves as it would
have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paw_hpc.experience import OBSERVATION, Batch, Pool
from paw_hpc.objective.batching import with_gradient
from paw_hpc.objective.plan import plan
from paw_hpc.policy import trainer
from tests.factories import as_conversations, random_groups, random_scores, tiny_recipe
from tests.policy.models import model_folder, policy_from

SMOOTH = {"optimizer.eps": 1e-2, "optimizer.lr": 1e-2, "optimizer.max_tokens_per_micro_batch": 90}
FREE = {"algorithm.kl_coefficient": 0.0}
"""Nothing holds every token to a reference."""
ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {"wm.enabled": False},
    "paw": {},
    "mini-batches": {"optimizer.mini_batch": 7, "optimizer.epochs": 2},
    "ppo": {"algorithm.name": "ppo", "wm.enabled": False},
}


def pairs(seed: int = 5, *, chains: bool = False, success: float = 0.85) -> Pool:
    """Eight groups of two: in most of them both win."""
    groups = random_groups(seed, groups=8, members=2, invalid=0.0, success=success)
    return Pool.from_groups(as_conversations(groups, seed, breaks=0.3) if chains else groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


def trained(folder: str, pools: list[Pool], **options: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Weights after an update on each pool, and the updates' metrics."""
    policy, found = policy_from(folder, **SMOOTH, **FREE, **options), []
    for update, pool in enumerate(pools):
        planned = plan(pool, policy.score(pool), policy.recipe, update)
        found.append(policy.update(planned.batch, update))
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()]), found


@pytest.mark.parametrize("chains", [False, True], ids=["samples", "chains"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_policy_moves_as_it_would_have(arm: str, chains: bool, folder: str) -> None:
    pools = [pairs(chains=chains), pairs(6, chains=chains)]
    (all_of_it, every), (part, some) = (
        trained(folder, pools, **ARMS[arm], **{"policy.skip_zero_gradient": skip}) for skip in (False, True)
    )
    torch.testing.assert_close(part, all_of_it, atol=1e-6, rtol=0.0)
    for one, other in zip(some, every, strict=True):
        assert one["zero_gradient_share"] > 0.1 or arm == "ppo"  # whose advantages are those of values
        assert (one["tokens"] < other["tokens"]) == (one["zero_gradient_share"] > 0)
        for name in {
            "policy_loss",
            "ratio_clip_fraction",
            "wm_loss",
            "observation_ce",
            "grad_norm",
            "value_loss",
        } & other.keys():
            assert one[name] == pytest.approx(other[name], abs=2e-6, rel=1e-5), name


def test_one_more_left_out_would_be_noticed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    expected, _ = trained(folder, [pairs()])
    monkeypatch.setattr(
        trainer,
        "with_gradient",
        lambda batch, algorithm: with_gradient(batch, algorithm).take(torch.arange(3)),
    )
    assert (
        float((trained(folder, [pairs()], **{"policy.skip_zero_gradient": True})[0] - expected).abs().max())
        > 1e-4
    )


def test_a_step_is_taken_where_nothing_has_a_gradient(folder: str) -> None:
    pools = [pairs(), pairs(6, success=1.0)]
    (all_of_it, _), (part, some) = (
        trained(folder, pools, **{"wm.enabled": False, "policy.skip_zero_gradient": skip})
        for skip in (False, True)
    )
    assert (
        some[1]["steps"] == 1.0 and some[1]["grad_norm"] == 0.0 and 0.9 < some[1]["zero_gradient_share"] < 1.0
    )
    torch.testing.assert_close(part, all_of_it, atol=1e-6, rtol=0.0)


def planned(**options: Any) -> tuple[Batch, Batch]:
    recipe, pool = tiny_recipe(**(FREE | options)), pairs()
    batch = plan(pool, random_scores(pool), recipe, 0).batch
    return batch, with_gradient(batch, recipe.algorithm)


def test_what_is_left_out() -> None:
    batch, left = planned()
    silent = ~torch.isin(batch.transition, left.transition)
    assert 0 < int(silent.sum()) < len(batch)
    rows = batch.rows_of(silent.nonzero()[:, 0])
    assert not batch.streams["advantage"][rows].any() and not (batch.row_kind[rows] == OBSERVATION).any()


@pytest.mark.parametrize("term", ["algorithm.kl_coefficient", "algorithm.entropy_bonus"])
def test_nothing_is_left_out_where_every_token_has_a_loss(term: str) -> None:
    batch, left = planned(**{term: 0.1})
    assert left is batch
