"""How to read a report: what its numbers and intervals are of, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.study.report import predictions
from paw_hpc.study.report.compare import panel_name, paper_effect
from paw_hpc.study.report.paper import paper_row
from paw_hpc.study.report.runs import (
    Arm,
    PanelKey,
)
from paw_hpc.study.report.standings import protocol_notes


def notes(arms: Sequence[Arm], keys: Sequence[PanelKey]) -> tuple[str, ...]:
    """What a reader must know to read the tables rightly."""
    lines = [
        "Observation CE: cross-entropy of true next observations, nats per token.",
        *_interval_notes(arms, keys),
    ]
    if any(e.predictions for arm in arms for run in arm.runs for e in run.evaluations):
        lines.append(predictions.NOTE)
    if any(arm.recipe.env.name == "search" for arm in arms):
        lines.append(
            "Search QA: success is exact match, score is F1; * marks the sets that are trained on (in "
            "domain); All is over questions, Avg over sets."
        )
    lines += protocol_notes(arms)
    if elsewhere := [arm.label for arm in arms if arm.outside]:
        lines.append(
            f"Trained elsewhere, judged by the outcomes that were handed over: {', '.join(elsewhere)}. How "
            "they were trained, and by which rules "
            "they played beside those in the tables' titles, is not known here."
        )
    if not any(paper_row(arm.recipe) for arm in arms if not arm.outside):
        lines.append(
            "The paper's numbers are left out: no arm here has a model, algorithm and world-model arm that "
            "the paper reports on its benchmark."
        )
    if len({arm.recipe.wm.loss for arm in arms if arm.recipe.wm.enabled}) > 1:
        lines.append(
            "WM loss is each arm's own: those of clipped MAE and of cross-entropy are not on one scale; "
            "observation CE is."
        )
    if sum(not arm.outside for arm in arms) > 1:
        lines.append(
            "Throughput is what these runs met, perhaps on machines shared with others and one after the "
            "other; for the overhead of the world model "
            "run benchmarks/throughput.py, which interleaves the two."
        )
    for key in keys:
        failures = sum(e.environment_failures for arm in arms for e in arm.last(key))
        if failures:
            lines.append(
                f"{panel_name(key)}: the environment broke {failures} episodes; they are in no rate."
            )
    names = [key[0] for key in keys]
    for name in sorted({name for name in names if len({key[1] for key in keys if key[0] == name}) > 1}):
        lines.append(
            f"Panel {name} means different games in different runs (checksums differ): those are compared "
            "separately."
        )
    for name in sorted({name for name in names if len({key[3] for key in keys if key[0] == name}) > 1}):
        lines.append(
            f"Panel {name} was played by different rules (see the tables' titles): those are compared "
            "separately."
        )
    return tuple(lines)


def _interval_notes(arms: Sequence[Arm], keys: Sequence[PanelKey]) -> list[str]:
    seeds = {len(arm.outcomes(key)) for arm in arms for key in keys if arm.outcomes(key)}
    lines = []
    if seeds - {1}:
        lines.append(
            "Arms of several seeds: n is seeds × games × episodes per game. Intervals and p are over games "
            "and seeds, both as samples (two-way "
            "random effects, Student's t at Satterthwaite's degrees of freedom): they speak of training "
            "again with other seeds and playing other "
            "games. ± seeds: standard deviation of the seeds' success. Differences pair the same games and "
            "the same seeds."
        )
    if 1 in seeds:
        lines.append(
            "Arms of one seed: intervals are over games (Wilson where each game was played once, else a "
            "bootstrap of games): they speak of other "
            "games and other samples of these policies, not of training again with another seed. "
            "Differences pair the same games; p is of a "
            "two-sided sign-flip permutation test over games."
        )
    lines.append(
        "Higher, lower: the interval leaves out zero, and p < 0.05; with few games the interval alone is "
        "too narrow."
    )
    lines.append(
        "No p is corrected for the number of comparisons. Intervals of score, of Avg and of observation CE "
        "are over games; ± is over seeds."
    )
    if any(paper_effect(arm, against) for arm in arms for against in arms if arm is not against):
        lines.append(
            "The paper's: the difference of its two numbers on this benchmark, and of which model; not a "
            "number to be met by other models."
        )
    return lines
