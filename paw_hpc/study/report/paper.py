"""The paper's results (arXiv 2606.02388v1, tables 1 to 3), and which of them a recipe is to be held
against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paw_hpc.recipe import QUESTION_SETS, TASK_TYPES, Recipe, WorldModelSection
from paw_hpc.recipe.protocols import Standing, standing

Measured = tuple[float, float]
"""(mean, standard deviation over 3 seeds), percent."""

ALFWORLD_COLUMNS = ("Pick", "Look", "Clean", "Heat", "Cool", "Pick2", "All")
SEARCH_COLUMNS = ("NQ", "Tri", "Pop", "Hot", "2Wiki", "MuS", "Bam", "Avg")
COLUMN_OF = dict(
    zip((*TASK_TYPES, *QUESTION_SETS), (*ALFWORLD_COLUMNS[:-1], *SEARCH_COLUMNS[:-1]), strict=True)
)
"""Task type, or set of questions, -> the paper's column."""
WEBSHOP_COLUMNS = ("Score", "Succ")

MAIN: dict[str, tuple[Measured, ...]] = {
    "1.5B GRPO": (
        (86.5, 4.3),
        (46.3, 8.4),
        (79.0, 3.2),
        (70.2, 2.5),
        (69.1, 8.0),
        (47.8, 5.8),
        (70.0, 4.2),
        (75.6, 3.8),
        (60.6, 4.6),
    ),
    "1.5B GRPO+PaW": (
        (87.8, 3.6),
        (59.3, 8.9),
        (84.5, 1.7),
        (73.7, 4.3),
        (75.4, 8.4),
        (69.6, 3.5),
        (77.9, 2.7),
        (83.8, 2.1),
        (68.6, 2.9),
    ),
    "1.5B GiGPO": (
        (95.3, 2.2),
        (84.3, 4.6),
        (87.7, 1.2),
        (92.6, 7.0),
        (79.8, 1.4),
        (82.3, 6.1),
        (87.6, 1.6),
        (83.2, 1.9),
        (66.2, 3.4),
    ),
    "1.5B GiGPO+PaW": (
        (95.3, 4.5),
        (83.3, 4.5),
        (91.8, 6.0),
        (89.5, 4.3),
        (89.1, 0.3),
        (84.5, 5.8),
        (90.4, 1.3),
        (87.7, 1.7),
        (75.3, 3.2),
    ),
    "7B GRPO": (
        (90.8, 5.1),
        (66.1, 6.7),
        (89.3, 5.4),
        (74.7, 6.9),
        (72.5, 5.4),
        (64.7, 7.3),
        (77.6, 5.2),
        (75.4, 2.7),
        (66.5, 3.6),
    ),
    "7B GRPO+PaW": (
        (90.4, 6.8),
        (80.7, 7.4),
        (86.8, 6.8),
        (82.9, 8.6),
        (76.5, 2.6),
        (67.3, 3.7),
        (80.6, 3.1),
        (84.5, 2.3),
        (70.5, 2.9),
    ),
    "7B GiGPO": (
        (97.7, 1.6),
        (82.7, 7.9),
        (98.8, 1.6),
        (83.7, 7.2),
        (89.3, 8.2),
        (79.2, 6.6),
        (90.8, 1.3),
        (85.0, 2.9),
        (73.8, 3.2),
    ),
    "7B GiGPO+PaW": (
        (98.2, 1.0),
        (85.6, 6.2),
        (98.6, 1.1),
        (84.5, 7.6),
        (91.5, 7.2),
        (84.3, 6.8),
        (91.8, 1.2),
        (87.6, 2.4),
        (76.7, 2.7),
    ),
}
"""ALFWorld success per task type and over all, then WebShop score and success. Qwen2.5-1.5B-Instruct and
7B-Instruct."""

PROMPTING: dict[str, tuple[float, float, float]] = {
    "Qwen2.5-1.5B": (4.1, 23.1, 5.2),
    "Qwen2.5-1.5B ReAct": (12.8, 40.1, 11.3),
    "Qwen2.5-1.5B Reflexion": (21.8, 55.8, 21.9),
    "Qwen2.5-7B": (14.8, 26.4, 7.8),
    "Qwen2.5-7B ReAct": (31.2, 46.2, 19.5),
    "Qwen2.5-7B Reflexion": (42.7, 58.1, 28.8),
    "GPT-4o": (48.0, 31.8, 23.7),
    "Gemini-2.5-Pro": (60.3, 42.5, 35.9),
}
"""Without training: ALFWorld all, WebShop score, WebShop success."""

SEARCH: dict[str, tuple[float, ...]] = {
    "3B GRPO": (44.9, 60.9, 46.1, 37.9, 39.5, 13.7, 64.1, 43.9),
    "3B GRPO+PaW": (45.8, 61.2, 47.5, 39.4, 40.1, 14.4, 65.2, 44.8),
    "3B GiGPO": (42.5, 58.5, 46.3, 35.2, 34.4, 11.8, 60.0, 41.2),
    "3B GiGPO+PaW": (46.2, 61.8, 46.7, 37.6, 38.0, 13.9, 64.9, 44.2),
    "7B GRPO": (47.9, 63.9, 47.8, 43.9, 43.6, 18.3, 69.6, 47.9),
    "7B GRPO+PaW": (48.9, 64.9, 48.5, 44.9, 45.1, 18.9, 70.1, 48.8),
    "7B GiGPO": (46.1, 64.4, 46.0, 40.2, 41.2, 16.4, 68.9, 45.8),
    "7B GiGPO+PaW": (46.5, 66.0, 47.2, 42.2, 42.8, 18.6, 69.5, 47.5),
}
"""Search QA success (NQ, TriviaQA, PopQA, HotpotQA, 2Wiki, MuSiQue, Bamboogle, average). Qwen2.5-3B-Instruct
and 7B-Instruct."""

WEBSHOP_SUCCESS: dict[str, tuple[float, float]] = {
    "PPO 1.5B": (59.1, 65.2),
    "RLOO 1.5B": (56.7, 61.2),
    "GRPO Qwen3-1.7B": (45.4, 54.2),
    "GRPO Llama3.2-3B": (4.0, 62.2),
    "GRPO Qwen2.5-14B": (74.7, 77.1),
}
"""WebShop success, vanilla and with PaW."""

ABLATION: dict[str, tuple[float, float]] = {
    "GRPO": (70.0, 60.6),
    "PaW": (77.9, 68.6),
    "lambda_g = 1": (75.5, 67.0),
    "CE instead of clipped MAE": (68.5, 57.2),
}
"""1.5B, GRPO: ALFWorld and WebShop success."""

OVERHEAD_S = 10.7
STEP_S = 505.0
OVERHEAD_SHARE = 0.021
PEAK_MEMORY_GB = 2.4
MEAN_MEMORY_GB = 2.2
"""What PaW adds to one GRPO step (ALFWorld, 1.5B): seconds of about STEP_S and their share of it, and memory,
at its peak and on average."""
BEST_RHO = 0.2
BEST_ALPHA = 0.75
"""Of the sensitivity study (WebShop), whose other values the paper shows in a figure only."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """What the paper reports for a recipe's arm on its benchmark."""

    label: str
    columns: dict[str, Measured | tuple[float]]
    """Column -> (mean, std), or (mean,) where the paper gives no deviation; percent."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A run and the paper's row that it may stand beside, under the name of its protocol."""

    row: PaperRow
    standing: Standing
    judged_by: tuple[str, ...] = ()
    """How its evaluations were judged, where not by the run's own set-up: `reference`, `reference, except
    KEY: ...`."""

    @property
    def protocol(self) -> str:
        """`reference`, `reference but for 2 keys`, `ours, judged by reference`."""
        assert self.standing.named is not None
        trained = _but_for(self.standing.named, len(self.standing.departures[self.standing.named]))
        return ", judged by ".join(
            (trained, *(_but_for(name, len(keys)) for name, keys in map(_of_judging, self.judged_by)))
        )

    @property
    def departs(self) -> bool:
        """Whether it was trained or judged by another set-up than that which the paper's numbers most likely
        come from."""
        return self.standing.departures["reference"] != () or any(
            said != "reference" for said in self.judged_by
        )


def beside(recipe: Recipe, judged_by: Iterable[str] = ()) -> Beside | None:
    """None where the paper has no such row, and where no protocol can be named: the recipe names none, and
    has the keys of none.

    Args:
        judged_by: of the evaluations that are to stand there (`EvaluationResult.judged_by`).

    Raises:
        DataError: the shipped recipes are missing.
    """
    row = paper_row(recipe)
    found = None if row is None else standing(recipe)
    if row is None or found is None or found.named is None:
        return None
    return Beside(row, found, judged_otherwise(found, judged_by))


def judged_otherwise(of: Standing, judged_by: Iterable[str]) -> tuple[str, ...]:
    """Those of the evaluations' own words that the set-up which the run was trained by does not say
    already."""

    def is_own(said: str) -> bool:
        name, keys = _of_judging(said)
        return name == of.named and set(keys) <= set(of.departures[of.named])

    return tuple(sorted({said for said in judged_by if said and not is_own(said)}))


def _of_judging(said: str) -> tuple[str, tuple[str, ...]]:
    """`reference, except KEY: ...; KEY: ...` -> (protocol, its departures)."""
    name, _, keys = said.partition(", except ")
    return name, tuple(keys.split("; ")) if keys else ()


def _but_for(name: str, count: int) -> str:
    return name + (f" but for {count} key{'s' if count > 1 else ''}" if count else "")


def paper_row(recipe: Recipe) -> PaperRow | None:
    """The paper's row of this recipe's benchmark, model, algorithm and world-model arm; None where the paper
    has none."""
    size, benchmark = _model_size(recipe), recipe.env.name
    arm = _arm(recipe.wm)
    algorithm = {"grpo": "GRPO", "gigpo": "GiGPO", "ppo": "PPO", "rloo": "RLOO"}.get(recipe.algorithm.name)
    if size is None or arm is None or algorithm is None:
        return None
    if arm in ABLATION:
        if (size, algorithm) != ("1.5B", "GRPO") or benchmark == "search":
            return None
        return PaperRow(f"{size} {algorithm}, {arm}", {"All": (ABLATION[arm][benchmark == "webshop"],)})
    label = f"{size} {algorithm}{arm}"
    if benchmark == "search":
        return (
            PaperRow(label, {c: (v,) for c, v in zip(SEARCH_COLUMNS, SEARCH[label], strict=True)})
            if label in SEARCH
            else None
        )
    if label in MAIN:
        numbers = MAIN[label]
        score, success = numbers[len(ALFWORLD_COLUMNS) :]
        if benchmark == "webshop":
            return PaperRow(label, {"All": success, "Score": score})
        return PaperRow(label, dict(zip(ALFWORLD_COLUMNS, numbers, strict=False)))
    alone = WEBSHOP_SUCCESS.get(f"{algorithm} {size}") if benchmark == "webshop" else None
    return PaperRow(label, {"All": (alone[arm == "+PaW"],)}) if alone else None


def _model_size(recipe: Recipe) -> str | None:
    name = (recipe.model.path or "").rstrip("/").rsplit("/", 1)[-1].lower()
    return {
        "qwen2.5-1.5b-instruct": "1.5B",
        "qwen2.5-3b-instruct": "3B",
        "qwen2.5-7b-instruct": "7B",
        "qwen2.5-14b-instruct": "Qwen2.5-14B",
        "qwen3-1.7b": "Qwen3-1.7B",
        "llama-3.2-3b-instruct": "Llama3.2-3B",
    }.get(name)


def _arm(wm: WorldModelSection) -> str | None:
    """ "" vanilla, "+PaW", the name of an ablation, or None for what the paper did not run."""
    if not wm.enabled:
        return ""
    paper = WorldModelSection()
    changed = {
        name for name in WorldModelSection.model_fields if getattr(wm, name) != getattr(paper, name)
    } - {"max_observation_tokens", "entropy"}
    if not changed:
        return "+PaW"
    if wm.coefficient == "constant" and wm.scale == 1.0 and changed == {"coefficient"}:
        return "lambda_g = 1"
    if wm.loss == "cross_entropy" and changed <= {"loss", "rho"}:
        return "CE instead of clipped MAE"
    return None
