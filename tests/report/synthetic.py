"""Run directories in the real format, written through the real writers, with made-up numbers that a test can
compute again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paw_hpc.evaluation.results import EvaluatedEpisode, EvaluationResult, write_evaluation
from paw_hpc.recipe import TASK_TYPES, Recipe, parse_recipe
from paw_hpc.run.metrics import MetricsWriter, RunDirectory


def recipe(name: str, *, seed: int = 0, wm: bool = True, **changes: Any) -> Recipe:
    return parse_recipe(
        {"name": name, "seed": seed, "updates": 60, "model": {"path": "tiny"}, "wm": {"enabled": wm}}
        | changes
    )


def training_metrics(seed: int, updates: int, *, gain: float, wm: bool) -> list[dict[str, float]]:
    """Noisy curves of plausible shape; `gain` is how far success rises."""
    rng = np.random.default_rng(seed)
    out = []
    for u in range(updates):
        done = u / max(1, updates - 1)
        success = float(np.clip(0.4 + gain * done + rng.normal(0, 0.07), 0, 1))
        metrics = {
            "train/success": success,
            "train/episodes": 48.0,
            "train/invalid": max(0.0, 0.3 - 0.2 * done + rng.normal(0, 0.02)),
            "train/response_tokens": 6.0 + rng.normal(0, 0.3) + done,
            "wm/observation_ce": 1.1 - (0.5 if wm else -0.1) * done + rng.normal(0, 0.03),
            "time/collect_s": 3.0 + rng.normal(0, 0.2),
            "time/score_s": 0.4,
            "time/plan_s": 0.05,
            "time/train_s": 1.2 + 0.3 * wm,
            "time/publish_s": 0.1,
        }
        if wm:
            metrics |= {
                "train/lambda": 1 - success,
                "wm/loss": 0.3 * (1 - 0.5 * done) + rng.normal(0, 0.01),
                "wm/clipped_token_ratio": 0.6 + 0.2 * done + rng.normal(0, 0.01),
            }
        metrics["time/update_s"] = sum(v for k, v in metrics.items() if k.startswith("time/")) + 0.2
        out.append(metrics)
    return out


def episodes(outcomes: list[list[bool]]) -> list[EvaluatedEpisode]:
    """outcomes[game][repeat]; games go round the six task types."""
    return [
        EvaluatedEpisode(f"valid/{i:03d}", TASK_TYPES[i % 6], repeat, i, won, float(won), 10, 1, 10.0 * won)
        for i, of_game in enumerate(outcomes)
        for repeat, won in enumerate(of_game)
    ]


def evaluation(
    outcomes: list[list[bool]],
    *,
    update: int,
    ce: float | None = None,
    panel: str = "valid_seen",
    checksum: str = "abc",
) -> EvaluationResult:
    return EvaluationResult.of_episodes(
        episodes(outcomes),
        label=f"{panel}-u{update}",
        panel=panel,
        panel_checksum=checksum,
        temperature=0.4,
        update=update,
        seconds=12.0,
        observation_ce=ce,
        observation_tokens=None if ce is None else 5000,
        observation_ce_interval=None if ce is None else (ce - 0.05, ce + 0.05),
    )


def draw(seed: int, games: int, rate: float, repeats: int = 1) -> list[list[bool]]:
    rng = np.random.default_rng(seed)
    return [
        [bool(x) for x in rng.random(repeats) < np.clip(rng.normal(rate, 0.2), 0, 1)] for _ in range(games)
    ]


def write_run(
    path: Path, of: Recipe, metrics: list[dict[str, float]], evaluations: list[EvaluationResult]
) -> Path:
    run = RunDirectory(path)
    run.open(of, "paw train recipe.yaml")
    with MetricsWriter(run) as writer:
        for update, values in enumerate(metrics):
            writer.write(update, values)
    for result in evaluations:
        write_evaluation(path, result)
    return path
