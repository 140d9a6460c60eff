"""Where arms stand to the two protocols: what they may be put beside, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.recipe import PROTOCOLS
from paw_hpc.recipe.protocols import Standing, standing
from paw_hpc.study.report.paper import Beside, beside, judged_otherwise, paper_row
from paw_hpc.study.report.runs import Arm, PanelKey


def known_of(arm: Arm, key: PanelKey) -> Beside | None:
    """The paper's row that the arm's evaluations of a panel may stand beside (see `paper.beside`)."""
    return None if arm.outside else beside(arm.recipe, (e.judged_by for e in arm.last(key)))


def protocol_notes(arms: Sequence[Arm]) -> list[str]:
    """Which protocol each arm follows, and in which keys it departs from both; arms of which the same is to
    be said together. Of arms that the paper reports, or that say a protocol."""
    said: dict[str, list[str]] = {}
    for arm in (arm for arm in arms if not arm.outside):
        if paper_row(arm.recipe) is not None or arm.recipe.protocol is not None:
            found = standing(arm.recipe)
            for line in (*_standing_lines(found), *_judging_lines(arm, found)):
                said.setdefault(line, []).append(arm.label)
    return [f"{', '.join(labels)}: {line}" for line, labels in said.items()]


def _standing_lines(found: Standing) -> list[str]:
    named, lines = found.named, []
    if named is None:
        lines.append(
            "not put beside the paper's numbers, because the recipe names no protocol (key `protocol`), "
            "and its keys are those of none."
        )
    elif found.departures[named]:  # only where the recipe says it
        lines.append(
            f"the recipe says `protocol: {named}`, and its keys disagree: "
            f"{'; '.join(found.departures[named])}."
        )
    else:
        lines.append(
            f"protocol {named}, in every key" + ("." if found.said else "; the recipe does not say so.")
        )
    return lines + [
        f"departs from {name}: {'; '.join(found.departures[name])}."
        for name in PROTOCOLS
        if name != named and found.departures[name]
    ]


def _judging_lines(arm: Arm, found: Standing) -> list[str]:
    """Of evaluations that were not judged by the set-up which the runs were trained by."""
    judged: dict[str, set[str]] = {}
    for evaluation in (e for run in arm.runs for e in run.evaluations):
        for said in judged_otherwise(found, [evaluation.judged_by]):
            judged.setdefault(said, set()).add(evaluation.panel)
    return [f"judged by {said} on {', '.join(sorted(panels))}." for said, panels in sorted(judged.items())]
