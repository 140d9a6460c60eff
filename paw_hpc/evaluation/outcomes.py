"""Files of outcomes (`paw_hpc.envs.outcomes`), judged as an evaluation of this package is: whoever played, by
the same statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paw_hpc.envs.outcomes import Outcomes, read_outcomes
from paw_hpc.evaluation.results import EvaluationResult
from paw_hpc.system.errors import DataError


@dataclass(frozen=True, slots=True)
class Player:
    """One training of one player that this package did not run: what its files say."""

    name: str
    seed: int
    benchmark: str
    files: tuple[Path, ...]
    evaluations: tuple[EvaluationResult, ...]


def judge(outcomes: Outcomes) -> EvaluationResult:
    """Success rate and score, all and per task type, with intervals over games. How long it took, nobody has
    said: `seconds` is 0."""
    return EvaluationResult.of_episodes(
        outcomes.episodes,
        label=f"{outcomes.player}-{outcomes.panel}-update-{outcomes.update:05d}-t{outcomes.temperature:g}",
        panel=outcomes.panel,
        panel_checksum=outcomes.panel_checksum,
        temperature=outcomes.temperature,
        update=outcomes.update,
        seconds=0.0,
        environment_failures=outcomes.environment_failures,
        protocol=outcomes.rules,
    )


def read_players(paths: Sequence[Path]) -> list[Player]:
    """The players of files of outcomes, in the order given; each seed of each apart.

    Raises:
        DataError: a file that is none, or two files of the same evaluation.
    """
    found: dict[tuple[str, int], list[tuple[Path, Outcomes]]] = {}
    for path in paths:
        outcomes = read_outcomes(path)
        of_player = found.setdefault((outcomes.player, outcomes.seed), [])
        for other, known in of_player:
            if _place(known) == _place(outcomes):
                raise DataError(
                    f"{path}: {outcomes.player}, seed {outcomes.seed}, on {outcomes.panel} after "
                    f"{outcomes.update} updates is in {other} already; "
                    "another seed of a player has another `seed`, another policy another `player`"
                )
        of_player.append((path, outcomes))
    return [
        Player(
            name,
            seed,
            files[0][1].benchmark,
            tuple(path for path, _ in files),
            tuple(sorted((judge(outcomes) for _, outcomes in files), key=lambda result: result.update)),
        )
        for (name, seed), files in found.items()
    ]


def _place(outcomes: Outcomes) -> tuple[str, str, float, str, int]:
    return outcomes.panel, outcomes.panel_checksum, outcomes.temperature, outcomes.rules, outcomes.update
