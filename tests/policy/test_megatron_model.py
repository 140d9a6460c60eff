"""Logits and gradients in every layout equal those of `transformers`, in float32, to 1e-5. The cases are in
`megatron_cases`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.policy import megatron_cases as cases
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    cases.write_references(made)
    return made


def _run(world: int, folder: Path, *chosen) -> None:
    run_ranks(world, chosen, folder, timeout_s=300.0)


def test_one_rank(folder: Path) -> None:
    controls = (cases.a_flat_qkv_is_seen, cases.swapped_gate_and_up_are_seen, cases.a_small_error_is_seen)
    _run(1, folder, cases.one_rank, cases.recomputed_activations, *controls)


def test_two_ranks(folder: Path) -> None:
    pipelines = (cases.pipeline_parallel_tied_and_untied, cases.interleaved_pipeline, cases.uneven_pipeline)
    _run(2, folder, cases.tensor_parallel, cases.sequence_parallel, *pipelines, cases.data_parallel)


def test_four_ranks(folder: Path) -> None:
    _run(
        4,
        folder,
        cases.tensor_and_pipeline_parallel,
        cases.all_at_once,
        cases.interleaved_pipeline_of_replicas,
    )
