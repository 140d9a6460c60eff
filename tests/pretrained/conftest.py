"""The pretrained model: out of the cache, where `make setup-pretrained` puts it. Required where
PAW_REQUIRE_PRETRAINED=1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from paw_hpc.experience import Pool, Scores
from paw_hpc.objective.plan import plan
from paw_hpc.policy import fetched
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.recipe import policy_folder
from tests.pretrained import ranks

REQUIRED = os.environ.get("PAW_REQUIRE_PRETRAINED") == "1"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Its folder. Not fetched unless it is required: tests need no network."""
    folder = policy_folder("smollm2")
    assert folder is not None
    if not folder.is_dir():
        if not REQUIRED:
            pytest.skip("SmolLM2 is not in the cache: make setup-pretrained (or paw data model smollm2)")
        fetched.fetch("smollm2")
    return folder


@pytest.fixture(scope="session")
def scored(smollm2: Path) -> tuple[HuggingFacePolicy, Pool, Scores]:
    """The one-process policy before its update, experience, and what it says of it."""
    policy = HuggingFacePolicy(ranks.recipe(smollm2))
    pool = ranks.pool()
    return policy, pool, policy.score(pool)


@pytest.fixture(scope="session")
def expected(
    scored: tuple[HuggingFacePolicy, Pool, Scores], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the scores, and with the weights and metrics after one PaW update in one process.
    `scored`'s policy has changed then."""
    folder = tmp_path_factory.mktemp("expected")
    policy, pool, scores = scored
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    metrics = policy.update(plan(pool, scores, policy.recipe, 0).batch, 0)
    after = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in after.items())
    torch.save(
        {
            "logp": scores.old_logp,
            "entropy": scores.entropy,
            "metrics": metrics,
            "weights": after,
            "moved": moved,
        },
        folder / ranks.EXPECTED,
    )
    with torch.no_grad():  # for whoever comes after
        for name, parameter in policy.model.named_parameters():
            parameter.copy_(before[name])
    return folder
