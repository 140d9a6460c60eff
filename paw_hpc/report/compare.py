"""Tables: arms on a panel, per task type, beside the paper, their paired differences, and what training looked like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paw_hpc.recipe import IN_DOMAIN_SETS, QUESTION_SETS
from paw_hpc.report.document import TableBlock
from paw_hpc.report.paper import COLUMN_OF, paper_row
from paw_hpc.report.runs import Arm, PanelKey, by_task, mean_of_sets, pooled, pooled_score, task_types
from paw_hpc.results import EvaluationResult
from paw_hpc.statistics import Interval, PairedDifference, paired_difference

ABSENT = "–"
WINDOW = 10
"""Updates at either end of a run whose mean stands for its start and end (fewer in runs of less than 20)."""


def panel_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock:
    """One row per arm, and one for the policy before training: success, the benchmark's score where it has one, observation cross-entropy, seconds
    per update, episodes."""
    scored = any(e.scored for arm in arms for e in (*arm.start(key), *arm.last(key)))

    def measured(found: Sequence[EvaluationResult]) -> tuple[str, ...]:
        return (success_cell(found), *([_rate_cell(pooled_score(found))] if scored else []), ce_cell(found))

    header = ("arm", "updates", "success % [95 %]", *(["score % [95 %]"] if scored else []), "observation CE", "s/update", "episodes")
    rows = [(name, "0", *measured(found), ABSENT, ABSENT) for name, found in starts(arms, key)]
    for arm in arms:
        found = arm.last(key)
        if found:
            updates = " / ".join(str(u) for u in sorted({e.update for e in found}))
            rows.append((arm.title, updates, *measured(found), _mean_cell(arm, "time/update_s"), _episodes(arm)))
    return TableBlock(f"{panel_name(key)}, {panel_games(arms, key)} games", header, tuple(rows))


def type_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock:
    """Success per task type, each arm's paper row below it where the paper has one."""
    types = task_types(arms, key)
    games = {name: max(e.per_task_type[name].games for arm in arms for e in arm.last(key) if name in e.per_task_type) for name in types}
    score = ["Score"] if any(e.scored for arm in arms for e in arm.last(key)) else []
    average = ["Avg"] if len(set(types) & set(QUESTION_SETS)) > 1 else []
    rows = []
    for arm in arms:
        found = arm.last(key)
        if not found:
            continue
        row = (arm.title, *(_rate_cell(pooled(found, name)) for name in types), success_cell(found))
        rows.append((*row, *(_rate_cell(mean_of_sets(found)) for _ in average), *(_rate_cell(pooled_score(found)) for _ in score)))
        if paper := paper_row(arm.recipe):
            cells = (_paper_cell(paper.columns.get(column)) for column in (*(COLUMN_OF.get(name, name) for name in types), "All", *average, *score))
            rows.append((f"paper: {paper.label}", *cells))
    header = ("success %", *(f"{column_name(name)} ({games[name]})" for name in types), "All", *average, *score)
    return TableBlock("By task type (games)", header, tuple(rows))


def column_name(task_type: str) -> str:
    """The paper's name of a task type; the sets of search QA that are trained on are marked."""
    return COLUMN_OF.get(task_type, task_type) + ("*" if task_type in IN_DOMAIN_SETS else "")


def difference_table(arms: Sequence[Arm], key: PanelKey) -> TableBlock | None:
    """Paired over games: every arm against its own start, and every later arm against the first. None where there is no pair."""
    rows = []
    evaluated = [arm for arm in arms if arm.last(key)]
    for arm in evaluated:
        if start := arm.start(key):
            rows.append(_difference_row(f"{arm.label}: end - start", paired_difference(by_task(start), by_task(arm.last(key)))))
    for arm in evaluated[1:]:
        first = evaluated[0]
        if by_task(first.last(key)).keys() & by_task(arm.last(key)).keys():
            rows.append(_difference_row(f"{arm.label} - {first.label}", paired_difference(by_task(first.last(key)), by_task(arm.last(key)))))
    header = ("paired by game", "games", "difference, points [95 %]", "p", "reading")
    return TableBlock("Differences", header, tuple(rows)) if rows else None


_TRAINING = (
    ("success %", "train/success", 100.0, ".1f"),
    ("invalid %", "train/invalid", 100.0, ".1f"),
    ("response tokens", "train/response_tokens", 1.0, ".1f"),
    ("lambda", "train/lambda", 1.0, ".2f"),
    ("WM loss", "wm/loss", 1.0, ".3f"),
    ("observation CE", "wm/observation_ce", 1.0, ".3f"),
    ("clipped tokens %", "wm/clipped_token_ratio", 100.0, ".1f"),
)


def training_table(arms: Sequence[Arm]) -> TableBlock:
    """Means over the first and the last updates of training, over all runs of an arm."""
    rows = []
    for arm in arms:
        updates = max(len(run.metrics) for run in arm.runs)
        cells = [_ends_cell(arm, metric, factor, form) for _, metric, factor, form in _TRAINING]
        rows.append((arm.title, str(updates), *cells, _mean_cell(arm, "time/update_s")))
    header = ("arm", "updates", *(name for name, *_ in _TRAINING), "s/update")
    return TableBlock(f"Training, first → last updates (means of up to {WINDOW})", header, tuple(rows))


def notes(arms: Sequence[Arm], keys: Sequence[PanelKey]) -> tuple[str, ...]:
    """What a reader must know to read the tables rightly."""
    lines = [
        "Observation CE: cross-entropy of true next observations, nats per token. Episodes: played in training. ± : standard deviation over seeds.",
        "Intervals are over games (Wilson where each game was played once, else a bootstrap of games): they speak of other games and other samples "
        "of these policies, not of training again with another seed.",
        "Differences pair the same games; p is of a two-sided sign-flip permutation test over games, not corrected for the number of comparisons.",
    ]
    if any(arm.recipe.env.name == "search" for arm in arms):
        lines.append(
            "Search QA: success is exact match, score is F1; * marks the sets that are trained on (in domain); All is over questions, Avg over sets."
        )
    for arm in arms:
        paper = paper_row(arm.recipe)
        if paper and paper.deviations:
            lines.append(f"{arm.label} departs from the paper's set-up: {'; '.join(paper.deviations)}.")
    if not any(paper_row(arm.recipe) for arm in arms):
        lines.append(
            "The paper's numbers are left out: no arm here has a model, algorithm and world-model arm that the paper reports on its benchmark."
        )
    for key in keys:
        failures = sum(e.environment_failures for arm in arms for e in arm.last(key))
        if failures:
            lines.append(f"{panel_name(key)}: the environment broke {failures} episodes; they are in no rate.")
    names = [key[0] for key in keys]
    for name in sorted({name for name in names if len({key[1] for key in keys if key[0] == name}) > 1}):
        lines.append(f"Panel {name} means different games in different runs (checksums differ): those are compared separately.")
    return tuple(lines)


def starts(arms: Sequence[Arm], key: PanelKey) -> list[tuple[str, list[EvaluationResult]]]:
    """(name, evaluations) before training; a single entry with one evaluation where all runs started from the same outcomes (one warm start)."""
    of_arm = [(arm.label, _distinct(arm.start(key))) for arm in arms if arm.start(key)]
    together = _distinct([e for _, found in of_arm for e in found])
    if len(together) == 1:
        return [("before training", together)]
    return [(f"before training, {label}", found) for label, found in of_arm]


def _distinct(found: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    seen: list[EvaluationResult] = []
    for result in found:
        if all(by_task([result]) != by_task([other]) for other in seen):
            seen.append(result)
    return seen


def panel_name(key: PanelKey) -> str:
    return f"{key[0]}, temperature {key[2]:g}"


def panel_games(arms: Sequence[Arm], key: PanelKey) -> int:
    return max(e.games for arm in arms for e in arm.last(key))


def success_cell(found: Sequence[EvaluationResult]) -> str:
    """`54.3 [46.0, 62.3]`, and `± std` over seeds where there are several."""
    cell = _rate_cell(pooled(found))
    return cell if len(found) < 2 else f"{cell} ± {100 * float(np.std([e.success for e in found], ddof=1)):.1f}"


def ce_cell(found: Sequence[EvaluationResult]) -> str:
    """`1.234 [1.200, 1.270]` of one evaluation, `1.234 ± 0.020` over seeds."""
    values = [e.observation_ce for e in found if e.observation_ce is not None]
    if not values:
        return ABSENT
    if len(values) > 1:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    interval = next(e.observation_ce_interval for e in found if e.observation_ce is not None)
    return f"{values[0]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def reading(difference: PairedDifference) -> str:
    """What the interval allows to say."""
    if difference.low > 0:
        return "higher"
    return "lower" if difference.high < 0 else "within noise"


def _difference_row(name: str, d: PairedDifference) -> tuple[str, ...]:
    interval = f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    return name, str(d.tasks), f"{100 * d.difference:+.1f} {interval}", "<0.001" if d.p_value < 0.001 else f"{d.p_value:.3f}", reading(d)


def _rate_cell(rate: tuple[float, Interval] | None) -> str:
    if rate is None:
        return ABSENT
    value, (low, high) = rate
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _paper_cell(measured: tuple[float, ...] | None) -> str:
    return ABSENT if measured is None else " ± ".join(f"{x:.1f}" for x in measured)


def _mean_cell(arm: Arm, metric: str) -> str:
    values = np.concatenate([run.series(metric)[1] for run in arm.runs])
    return f"{values.mean():.2f}" if values.size else ABSENT


def _episodes(arm: Arm) -> str:
    counts = [int(run.series("train/episodes")[1].sum()) for run in arm.runs]
    return f"{round(sum(counts) / len(counts)):,}" if any(counts) else ABSENT


def _ends_cell(arm: Arm, metric: str, factor: float, form: str) -> str:
    series = [values for run in arm.runs for _, values in [run.series(metric)] if values.size]
    if not series:
        return ABSENT
    first, last = (np.mean([part.mean() for part in parts]) for parts in zip(*((v[: _window(v)], v[-_window(v) :]) for v in series), strict=True))
    return f"{factor * first:{form}} → {factor * last:{form}}"


def _window(values: np.ndarray) -> int:
    return min(WINDOW, max(1, values.size // 2))
