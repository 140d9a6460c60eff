"""Two updates on real ALFWorld experience, world-model loss included: in every layout the weights become
those of the one-process backend, up to rounding in float32. The cases are in `update_cases`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paw_hpc.build import Machinery
from paw_hpc.loop import tasks_of
from paw_hpc.rollout.event_loop import EventLoop
from tests.policy import update_cases as cases
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates' worth of episodes by the shipped policy, on the official games where they are at hand, and
    what one process makes of them."""
    made = tmp_path_factory.mktemp("updates")
    recipe = cases.recipe()
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        tasks = machinery.benchmark.tasks("train")
        groups = [
            machinery.collect(tasks_of(tasks, recipe, update), recipe.rollout.group_size, update)[0]
            for update in range(2)
        ]
    torch.save(groups, made / cases.EXPERIENCE)
    for arm in cases.ARMS:
        cases.write_expected(made, arm)
    return made


def _run(world: int, folder: Path, *chosen) -> None:
    run_ranks(world, chosen, folder, timeout_s=300.0)


def test_two_ranks_that_share_the_model(folder: Path) -> None:
    _run(
        2,
        folder,
        cases.the_world_model_loss_counts,
        cases.tensor_parallel,
        cases.sequence_parallel_with_recomputation,
        cases.pipeline_parallel,
        cases.any_micro_batch,
        cases.critic,
        cases.critic_of_tokens,
        cases.chains,
    )


def test_two_ranks_that_share_the_data(folder: Path) -> None:
    _run(
        2,
        folder,
        cases.replicas,
        cases.replicas_that_overlap_communication,
        cases.without_distributed_optimizer,
        cases.fewer_samples_than_replicas,
        cases.replicas_of_a_critic_of_tokens,
        cases.chains_of_replicas,
        cases.what_has_no_gradient_is_left_out,
        cases.a_wrong_gradient_is_seen,
        cases.a_loss_that_is_no_number_is_skipped_by_all,
    )


def test_two_ranks_that_share_the_tokens(folder: Path) -> None:
    _run(
        2,
        folder,
        cases.context_parallel,
        cases.context_parallel_with_few_samples,
        cases.beginnings_computed_once,
        cases.a_wrong_exchange_is_seen,
    )


def test_four_ranks_that_share_the_tokens(folder: Path) -> None:
    _run(
        4,
        folder,
        cases.context_and_tensor_parallel,
        cases.context_and_pipeline_parallel,
        cases.replicas_of_context_parallel_ranks,
        cases.four_context_parallel_ranks,
    )


def test_four_ranks(folder: Path) -> None:
    _run(
        4,
        folder,
        cases.tensor_and_pipeline_parallel,
        cases.replicas_of_tensor_parallel_ranks,
        cases.replicas_of_interleaved_pipelines,
    )
