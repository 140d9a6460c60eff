"""The noise diagnostic: which tokens are noise, and which share of each loss's gradient goes to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from paw_hpc.evaluation.noise import NoiseShares, noise_shares, noisy_tokens
from paw_hpc.evaluation.results import read_evaluations, write_evaluation
from paw_hpc.study.report import write_report
from tests.report.synthetic import draw, evaluation, recipe, training_metrics, write_run


def test_ids_and_brands_are_noise() -> None:
    text = "B09R9YCM6R [SEP] ACME Slim Fit NIKEs $18.5 [SEP] USB"
    words, at = text.split(" "), 0
    offsets = []
    for word in words:
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    assert dict(zip(words, noisy_tokens(text, offsets).tolist(), strict=True)) == {
        "B09R9YCM6R": True, "[SEP]": False, "ACME": True, "Slim": False, "Fit": False, "NIKEs": True, "$18.5": False, "USB": False
    }  # fmt: skip


def test_a_token_that_touches_an_id_is_noise() -> None:
    text = "to B09R9YCM6R."
    assert noisy_tokens(text, [(0, 2), (2, 5), (5, 9), (9, 13), (13, 14), (4, 4)]).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_shares_by_hand() -> None:
    """Two noisy tokens of p = 0.1, one plain one of 0.5 and one of 0.9."""
    logp = [np.log(np.array([0.1, 0.5], np.float32)), np.log(np.array([0.1, 0.9], np.float32))]
    shares = noise_shares(logp, [np.array([True, False]), np.array([True, False])], rho=0.2)
    assert shares is not None
    assert (shares.transitions, shares.tokens, shares.token_share) == (2, 4, 0.5)
    assert shares.cross_entropy == pytest.approx(1.8 / 2.4)
    assert shares.mae == pytest.approx(0.18 / (0.18 + 0.25 + 0.09))
    assert shares.clipped_mae == pytest.approx(1.0)


def test_mae_spends_less_on_what_cannot_be_predicted_than_cross_entropy() -> None:
    """And a loss that sees a certain model has nothing to share out."""
    logp = np.log(np.r_[np.full(50, 0.01), np.full(50, 0.6)]).astype(np.float32)
    noisy = np.arange(100) < 50
    shares = noise_shares([logp], [noisy], rho=0.2)
    assert shares is not None and shares.mae < 0.1 < 0.5 < shares.cross_entropy
    certain = noise_shares([np.zeros(3, np.float32)], [np.ones(3, bool)], 0.2)
    assert certain is not None and (certain.cross_entropy, certain.mae) == (0.0, 0.0)
    assert noise_shares([], [], 0.2) is None


def test_the_report_shows_what_was_measured(tmp_path: Path) -> None:
    shares = NoiseShares(100, 12345, 0.2, 0.391, 0.052, 0.113)
    result = dataclasses.replace(evaluation(draw(0, 12, 0.5), update=5), noise=shares)
    run = write_run(tmp_path / "run", recipe("shop"), training_metrics(0, 5, gain=0.1, wm=True), [result])
    assert read_evaluations(run) == [result]
    report = write_report([run])
    assert (
        any(path.name == "noise-1.png" for path in report.figures)
        and (run / "report" / "noise-1.png").stat().st_size > 5000
    )
    text = report.markdown.read_text()
    assert "12,345" in text and "39.1" in text and "5.2" in text
    write_evaluation(run, dataclasses.replace(result, noise=None))
    (run / "report" / "noise-1.png").unlink()
    assert (
        not any(path.name == "noise-1.png" for path in write_report([run]).figures)
        and not (run / "report" / "noise-1.png").exists()
    )
