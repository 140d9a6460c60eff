"""Decoding steps of rounded shapes, played from recordings, sample what steps of exact shapes do; a GPU is
not needed to see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc.policy.cache import SlotCache
from paw_hpc.rollout.engines.graphs import DecodingSteps, Recorded
from tests.rollout.test_local_engine import engine_of, ids, packed_model, requests


class _PlayedAgain:
    """A recording as a CPU can have it: it computes anew from the tensors that a CUDA graph would read."""

    def __init__(self, compute: Callable[[], torch.Tensor], hidden: torch.Tensor) -> None:
        self._compute, self._hidden = compute, hidden

    def replay(self) -> None:
        self._hidden.copy_(self._compute())


class _RecordedOnCPU(DecodingSteps):
    """The path of a GPU, without one: shapes are rounded up, and from the second time on steps are played
    from recordings."""

    recordings = 0

    def hidden(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> torch.Tensor:
        return self._rounded(cache, tokens, positions, length)

    def _record(
        self, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, length: int
    ) -> Recorded:
        tokens, positions, hidden = (
            tokens.clone(),
            positions.clone(),
            self._compute(cache, tokens, positions, length),
        )
        _RecordedOnCPU.recordings += 1
        graph: Any = _PlayedAgain(lambda: self._compute(cache, tokens, positions, length), hidden)
        return Recorded(graph, tokens, positions, hidden)


def test_recorded_steps_sample_what_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples end, slots move and the cache grows while steps are played from recordings of a rounded
    shape."""
    model, asked = (
        packed_model(),
        [replace(r, temperature=0.3 * (r.episode % 4)) for r in requests(9, max_tokens=25)],
    )
    expected = engine_of(model, max_batch=9).generate_batch(asked)
    monkeypatch.setattr("paw_hpc.rollout.engines.decoder.DecodingSteps", _RecordedOnCPU)
    monkeypatch.setattr("paw_hpc.rollout.engines.graphs.SLOTS_STEP", 2)
    monkeypatch.setattr("paw_hpc.rollout.engines.graphs.LENGTH_STEP", 8)
    engine = engine_of(model, max_batch=9)
    for _ in range(2):  # the second time most shapes are known
        found = engine.generate_batch(asked)
        assert ids(found) == ids(expected)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
    assert _RecordedOnCPU.recordings >= 3


def test_a_model_that_cannot_be_recorded_goes_on_one_kernel_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(_RecordedOnCPU):
        def _record(self, *_: object) -> Recorded:
            raise RuntimeError("operation not permitted when stream is capturing")

    model, asked = packed_model(), requests(5, max_tokens=25)
    expected = ids(engine_of(model).generate_batch(asked))
    monkeypatch.setattr("paw_hpc.rollout.engines.decoder.DecodingSteps", Refusing)
    assert ids(engine_of(model).generate_batch(asked)) == expected
    assert caplog.text.count("cannot be recorded") == 1
