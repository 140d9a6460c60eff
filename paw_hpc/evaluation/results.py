"""Results of evaluations: what `paw eval` measures, as files of a run directory that `paw report` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paw_hpc.envs.outcomes import Outcome
from paw_hpc.evaluation.noise import NoiseShares
from paw_hpc.evaluation.statistics import Interval, cluster_interval, success_interval
from paw_hpc.run import fence
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import checked, read_json
from paw_hpc.system.storage import storage_errors, write_atomically
from paw_hpc.system.text import require_text

EvaluatedEpisode = Outcome
"""One episode of an evaluation; one line of LABEL.jsonl."""


@dataclass(frozen=True, slots=True)
class TypeResult:
    """Success on one task type, with its 95 % interval."""

    games: int
    success: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Prediction:
    """How well the next observations of some transitions are predicted, by the policy and by a copier of the
    previous ones (diagnostics.py)."""

    source: str
    """Whose play: `own`, or `foreign` (the policy before training, on the same games)."""
    split: str
    """`all`, `success` and `failure` (of the episode), or a task type."""
    transitions: int
    tokens: int
    ce: float
    """Nats per token of the true next observation."""
    ce_interval: Interval
    copy_ce: float
    generated: int
    """Transitions whose observation was also generated greedily; the rates below are over these."""
    exact: float | None
    """Share of generated observations that are the true one, token by token."""
    exact_interval: Interval | None
    copy_exact: float | None
    """Share of true ones that equal the previous observation."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One policy on one fixed panel. Build it with `of_episodes`, which derives rates and intervals from the
    episodes."""

    label: str
    """Names the files; one result per label and run."""
    panel: str
    panel_checksum: str
    temperature: float
    repeats: int
    update: int
    """Updates that the policy has had."""
    games: int
    success: float
    interval: Interval
    """95 %, over games (see statistics.success_interval)."""
    per_task_type: dict[str, TypeResult]
    seconds: float
    observation_ce: float | None
    """Mean cross-entropy of true next observations, nats per token; None: not measured."""
    observation_tokens: int | None
    observation_ce_interval: Interval | None
    environment_failures: int
    """Episodes that the environment broke; they are in no rate and not in `episodes`."""
    episodes: tuple[EvaluatedEpisode, ...]
    noise: NoiseShares | None = None
    """WebShop only: where the gradient of each world-model loss would go on pages of search results."""
    predictions: tuple[Prediction, ...] = ()
    """World-model diagnostics; empty: not measured."""
    protocol: str = ""
    """How episodes were played beyond panel and temperature; evaluations are compared only where it is the
    same."""
    judged_by: str = ""
    """Which of the two protocols these rules are (`reference`, `ours`), with the keys in which they depart
    from it; empty: no protocol was named."""

    @property
    def scored(self) -> bool:
        """Whether the benchmark has a score that says more than success."""
        return any(e.score != float(e.success) for e in self.episodes)

    @classmethod
    def of_episodes(
        cls,
        episodes: Sequence[EvaluatedEpisode],
        *,
        label: str,
        panel: str,
        panel_checksum: str,
        temperature: float,
        update: int,
        seconds: float,
        observation_ce: float | None = None,
        observation_tokens: int | None = None,
        observation_ce_interval: Interval | None = None,
        environment_failures: int = 0,
        noise: NoiseShares | None = None,
        predictions: tuple[Prediction, ...] = (),
        protocol: str = "",
        judged_by: str = "",
    ) -> EvaluationResult:
        """Success rate (mean over episodes), interval over games, and both per task type.

        Raises:
            ValueError: no episode.
        """
        if not episodes:
            raise ValueError(f"evaluation {label}: no episode was played")
        types = sorted({e.task_type for e in episodes})
        overall = _rate(episodes)
        return cls(
            label=label,
            panel=panel,
            panel_checksum=panel_checksum,
            temperature=float(temperature),
            repeats=1 + max(e.repeat for e in episodes),
            update=update,
            games=overall.games,
            success=overall.success,
            interval=overall.interval,
            per_task_type={name: _rate([e for e in episodes if e.task_type == name]) for name in types},
            seconds=float(seconds),
            observation_ce=observation_ce,
            observation_tokens=observation_tokens,
            observation_ce_interval=observation_ce_interval,
            environment_failures=environment_failures,
            episodes=tuple(episodes),
            noise=noise,
            predictions=predictions,
            protocol=protocol,
            judged_by=judged_by,
        )


def _rate(episodes: Sequence[EvaluatedEpisode]) -> TypeResult:
    outcomes = [e.success for e in episodes]
    games = [e.task_id for e in episodes]
    return TypeResult(
        games=len(set(games)),
        success=sum(outcomes) / len(outcomes),
        interval=success_interval(outcomes, games),
    )


def mean_score(episodes: Sequence[EvaluatedEpisode]) -> tuple[float, Interval]:
    """The benchmark's own score, mean over episodes in [0, 1], with its 95 % interval over games. Needs an
    episode."""
    scores = [e.score for e in episodes]
    return sum(scores) / len(scores), cluster_interval(scores, [e.task_id for e in episodes])


def write_evaluation(run_directory: str | Path, result: EvaluationResult) -> Path:
    """Write evaluations/LABEL.jsonl, then LABEL.json, which makes the pair whole; an earlier result of the
    same label is replaced. Returns LABEL.json.
    """
    folder = RunDirectory(run_directory).evaluations
    stem = re.sub(r"[^A-Za-z0-9._@+-]", "-", result.label)
    summary, lines = folder / f"{stem}.json", folder / f"{stem}.jsonl"
    fence.check(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        summary.unlink(missing_ok=True)
    rows = []
    for episode in result.episodes:
        row = asdict(episode)
        row["return"] = row.pop("episode_return")
        rows.append(json.dumps(row) + "\n")
    write_atomically(lines, "".join(rows))
    content = asdict(result)
    del content["episodes"]
    write_atomically(summary, json.dumps(content, indent=2) + "\n")
    return summary


def read_evaluations(run_directory: str | Path) -> list[EvaluationResult]:
    """Every whole evaluation of a run, by update, then label. Episodes without their summary (an evaluation
    that was cut short) are left out.

    Raises:
        DataError: a file that is not what `write_evaluation` writes.
    """
    found = []
    for summary in RunDirectory(run_directory).evaluations.glob("*.json"):
        try:
            found.append(_read_evaluation(summary))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{summary}: not an evaluation result ({type(error).__name__}: {error}); remove it and "
                "evaluate again"
            ) from None
    return sorted(found, key=lambda r: (r.update, r.label))


def _read_evaluation(summary: Path) -> EvaluationResult:
    content, episodes = read_json(summary.read_bytes()), []
    for line in summary.with_suffix(".jsonl").read_bytes().splitlines():
        row = read_json(line)
        row["episode_return"] = row.pop("return")
        episodes.append(row)
    require_text(content)
    require_text(episodes)
    return checked(EvaluationResult, content | {"episodes": episodes})
