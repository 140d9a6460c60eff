"""What a report says in numbers, for programs (`paw report --json`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from paw_hpc.evaluation.results import EvaluationResult
from paw_hpc.study.report import compare
from paw_hpc.study.report.runs import Arm, PanelKey


def arms_data(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Every arm with its runs and their evaluations (without the single episodes, which are in the runs)."""
    return [
        {
            "label": arm.label,
            "runs": [
                {
                    "path": str(run.path),
                    "seed": run.recipe.seed,
                    "updates": len(run.metrics),
                    "wanted_updates": None if run.outside else run.recipe.updates,
                    "evaluations": [
                        evaluation_data(e) | ({"seconds": None} if run.outside else {})
                        for e in run.evaluations
                    ],
                }
                for run in arm.runs
            ],
        }
        for arm in arms
    ]


def evaluation_data(result: EvaluationResult) -> dict[str, Any]:
    """The fields of `EvaluationResult` but for its episodes."""
    found = asdict(result)
    found["episodes"] = len(result.episodes)
    return found


def differences_data(arms: Sequence[Arm], keys: Sequence[PanelKey]) -> list[dict[str, Any]]:
    """Every paired difference between arms, per panel: fields of `PairedDifference`, in shares and not in
    points."""
    return [
        {"panel": compare.panel_name(key), "arm": of.label, "against": against.label} | asdict(difference)
        for key in keys
        for _, difference, of, against in compare.comparisons([arm for arm in arms if arm.last(key)], key)
    ]
