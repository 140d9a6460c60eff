"""Tables: arms on a panel, per task type, beside the paper, their paired differences, and what training
looked like."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.evaluation.results import EvaluationResult
from paw_hpc.evaluation.statistics import PairedDifference, paired_over_seeds
from paw_hpc.recipe import IN_DOMAIN_SETS, QUESTION_SETS
from paw_hpc.study.report.cells import (
    ABSENT,
    WINDOW,
    ce_cell,
    deviation_cell,
    ends_cell,
    episodes_cell,
    mean_cell,
    paper_cell,
    rate_cell,
    size_cell,
    success_cell,
)
from paw_hpc.study.report.document import TableBlock
from paw_hpc.study.report.measures import PHASES, mean_of_sets, phase_seconds, pooled_score, rate
from paw_hpc.study.report.paper import COLUMN_OF, paper_row
from paw_hpc.study.report.runs import (
    Arm,
    Outcomes,
    PanelKey,
    controls_of,
    elsewhere_of,
    outcomes_of,
    reference_of,
    task_types,
)
from paw_hpc.study.report.standings import known_of

ALPHA = 0.05
"""Of the test beside each interval (95 %)."""


def panel_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock:
    """One row per arm, and one for the policy before training: success, the benchmark's score where it has
    one, observation cross-entropy, and what they are measured on."""
    scored = any(e.scored for arm in arms for e in (*arm.start(key), *arm.last(key)))

    def measured(outcomes: Outcomes, found: Sequence[EvaluationResult]) -> tuple[str, ...]:
        score = [rate_cell(pooled_score(found))] if scored else []
        return success_cell(outcomes), deviation_cell(outcomes), *score, ce_cell(found), size_cell(outcomes)

    header = (
        "arm",
        "updates",
        "success % [95 %]",
        "± seeds",
        *(["score % [95 %]"] if scored else []),
        "observation CE",
        "n",
        "episodes trained on",
    )
    rows = [
        (name, "0", *measured(outcomes_of(list(enumerate(found))), found), ABSENT)
        for name, found in starts(arms, key)
    ]
    for arm in arms:
        found = arm.last(key)
        if found:
            updates = " / ".join(str(u) for u in sorted({e.update for e in found}))
            rows.append((arm.label, updates, *measured(arm.outcomes(key), found), episodes_cell(arm)))
    title = ", ".join(filter(None, (panel_name(key), f"{panel_games(arms, key)} games", key[3])))
    return TableBlock(title, header, tuple(rows))


def type_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock:
    """Success per task type, each arm's paper row below it, with the arm's protocol, where the paper has one
    and the protocol a name."""
    types = task_types(arms, key)
    games = {
        name: max(
            e.per_task_type[name].games for arm in arms for e in arm.last(key) if name in e.per_task_type
        )
        for name in types
    }
    score = ["Score"] if any(e.scored for arm in arms for e in arm.last(key)) else []
    average = ["Avg"] if len(set(types) & set(QUESTION_SETS)) > 1 else []
    rows = []
    for arm in arms:
        found = arm.last(key)
        if not found:
            continue
        row = (
            arm.title,
            *(rate_cell(rate(arm.outcomes(key, name))) for name in types),
            success_cell(arm.outcomes(key)),
        )
        rows.append(
            (
                *row,
                *(rate_cell(mean_of_sets(found)) for _ in average),
                *(rate_cell(pooled_score(found)) for _ in score),
            )
        )
        if known := known_of(arm, key):
            columns = (*(COLUMN_OF.get(name, name) for name in types), "All", *average, *score)
            rows.append(
                (
                    f"paper: {known.row.label} (above: {known.protocol})",
                    *(paper_cell(known.row.columns.get(column)) for column in columns),
                )
            )
    header = (
        "success %",
        *(f"{column_name(name)} ({games[name]})" for name in types),
        "All",
        *average,
        *score,
    )
    return TableBlock("By task type (games)", header, tuple(rows))


def column_name(task_type: str) -> str:
    """The paper's name of a task type; the sets of search QA that are trained on are marked."""
    return COLUMN_OF.get(task_type, task_type) + ("*" if task_type in IN_DOMAIN_SETS else "")


def difference_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """Paired by game and seed: every arm against the vanilla one (or the first), against its shuffled
    control, against the same arm of another set-up (another protocol, say), and against its own start. None
    where there is no pair."""
    evaluated = [arm for arm in arms if arm.last(key)]
    rows = [
        _difference_row(name, d, paper_effect(of, against))
        for name, d, of, against in comparisons(evaluated, key)
    ]
    for arm in evaluated:
        start, end = arm.start_outcomes(key), arm.outcomes(key)
        if _shared(start, end):
            rows.append(_difference_row(f"{arm.label}: end - start", paired_over_seeds(start, end), None))
    known = any(row[-1] != ABSENT for row in rows)
    header = (
        "paired by game and seed",
        "n",
        "difference, points [95 %]",
        "seeds higher",
        "p",
        "reading",
        "the paper's",
    )
    kept = len(header) if known else len(header) - 1
    return TableBlock("Differences", header[:kept], tuple(row[:kept] for row in rows)) if rows else None


def comparisons(arms: Sequence[Arm], key: PanelKey) -> list[tuple[str, PairedDifference, Arm, Arm]]:
    """(name, difference, arm, what it is compared with) of every pair of arms that says something and shares
    games."""
    pairs = [(arm, reference) for arm in arms if (reference := reference_of(arm, arms))]
    pairs += [
        (arm, control) for arm in arms for control in controls_of(arm, arms) if (arm, control) not in pairs
    ]
    pairs += [
        (arm, other) for arm in arms if (other := elsewhere_of(arm, arms)) and (arm, other) not in pairs
    ]
    found = []
    for arm, against in pairs:
        if _shared(against.outcomes(key), arm.outcomes(key)):
            name = f"{arm.label} - {against.label}"
            found.append((name, paired_over_seeds(against.outcomes(key), arm.outcomes(key)), arm, against))
    return found


def paper_effect(arm: Arm, against: Arm) -> str | None:
    """`+7.9 (1.5B)`: what the paper reports for this difference on this benchmark; where the arms' model is
    none of the paper's, of its smallest. None where the arms differ in their set-up alone, which the paper
    has one of."""
    if arm.outside or against.outside or arm.recipe.wm == against.recipe.wm:
        return None
    for path in (arm.recipe.model.path, "Qwen/Qwen2.5-1.5B-Instruct"):
        rows = [
            paper_row(
                of.recipe.model_copy(update={"model": of.recipe.model.model_copy(update={"path": path})})
            )
            for of in (arm, against)
        ]
        values = [row.columns["All"][0] for row in rows if row is not None and "All" in row.columns]
        if len(values) == 2 and rows[0] is not None:
            return f"{values[0] - values[1]:+.1f} ({rows[0].label.split()[0]})"
    return None


def _shared(a: Outcomes, b: Outcomes) -> bool:
    return bool(
        {task for of_seed in a.values() for task in of_seed}
        & {task for of_seed in b.values() for task in of_seed}
    )


_TRAINING = (
    ("success %", "train/success", 100.0, ".1f"),
    ("invalid %", "train/invalid", 100.0, ".1f"),
    ("response tokens", "train/response_tokens", 1.0, ".1f"),
    ("lambda", "train/lambda", 1.0, ".2f"),
    ("WM loss", "wm/loss", 1.0, ".3f"),
    ("observation CE", "wm/observation_ce", 1.0, ".3f"),
    ("clipped tokens %", "wm/clipped_token_ratio", 100.0, ".1f"),
    ("entropy threshold", "wm/entropy_threshold", 1.0, ".3f"),
)


def training_table(arms: Sequence[Arm]) -> TableBlock:
    """Means over the first and the last updates of training, over all runs of an arm."""
    rows = []
    for arm in arms:
        updates = max(len(run.metrics) for run in arm.runs)
        cells = [ends_cell(arm, metric, factor, form) for _, metric, factor, form in _TRAINING]
        rows.append((arm.title, str(updates), *cells))
    header = ("arm", "updates", *(name for name, *_ in _TRAINING))
    return TableBlock(f"Training, first → last updates (means of up to {WINDOW})", header, tuple(rows))


_THROUGHPUT = (
    ("trained tokens/s", "system/tokens_per_s", 1.0, ",.0f"),
    ("generated tokens/s", "time/generation_tokens_per_s", 1.0, ",.0f"),
    ("peak GiB", "system/memory_peak_bytes", 2.0**-30, ".2f"),
)


def throughput_table(arms: Sequence[Arm]) -> TableBlock | None:
    """Means over all updates and runs of an arm: seconds per update and phase, rates, and the memory of the
    rank that needed most. None where nothing was logged."""
    phases = [phase for phase in (*PHASES, "other") if any(phase in phase_seconds(arm) for arm in arms)]
    rows = []
    for arm in arms:
        seconds, against = phase_seconds(arm), reference_of(arm, arms)
        ratio = (
            sum(seconds.values()) / whole
            if against and seconds and (whole := sum(phase_seconds(against).values()))
            else None
        )
        cells = [f"{seconds[phase]:.2f}" if phase in seconds else ABSENT for phase in phases]
        rates = [mean_cell(arm, metric, factor, form) for _, metric, factor, form in _THROUGHPUT]
        rows.append(
            (
                arm.title,
                mean_cell(arm, "time/update_s"),
                "1" if ratio is None else f"{ratio:.3f}",
                *cells,
                *rates,
            )
        )
    header = ("seconds", "update", "ratio", *phases, *(name for name, *_ in _THROUGHPUT))
    return TableBlock("Throughput of these runs", header, tuple(rows)) if phases else None


def starts(arms: Sequence[Arm], key: PanelKey) -> list[tuple[str, list[EvaluationResult]]]:
    """(name, evaluations) before training; a single entry with one evaluation where all runs started from the
    same outcomes (one warm start)."""
    of_arm = [(arm.label, _distinct(arm.start(key))) for arm in arms if arm.start(key)]
    together = _distinct([e for _, found in of_arm for e in found])
    if len(together) == 1:
        return [("before training", together)]
    return [(f"before training, {label}", found) for label, found in of_arm]


def _distinct(found: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    seen: list[EvaluationResult] = []
    for result in found:
        if all(outcomes_of([(0, result)]) != outcomes_of([(0, other)]) for other in seen):
            seen.append(result)
    return seen


def panel_name(key: PanelKey) -> str:
    return f"{key[0]}, temperature {key[2]:g}"


def panel_games(arms: Sequence[Arm], key: PanelKey) -> int:
    return max(e.games for arm in arms for e in arm.last(key))


def reading(difference: PairedDifference) -> str:
    """What interval and test allow to say together: a bootstrap of few games is too narrow, and then the
    exact test is not convinced."""
    if difference.p_value >= ALPHA or difference.low <= 0 <= difference.high:
        return "within noise"
    return "higher" if difference.difference > 0 else "lower"


def _difference_row(name: str, d: PairedDifference, paper: str | None) -> tuple[str, ...]:
    interval = f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    higher = ABSENT if d.favourable is None else f"{d.favourable} of {d.seeds}"
    p = "<0.001" if d.p_value < 0.001 else f"{d.p_value:.3f}"
    return (
        name,
        f"{d.seeds} × {d.tasks}",
        f"{100 * d.difference:+.1f} {interval}",
        higher,
        p,
        reading(d),
        paper or ABSENT,
    )
