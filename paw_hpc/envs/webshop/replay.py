"""Transcripts of the original environment, played again here: the measure of parity.

A transcript file is JSON lines (gzip or plain), one episode each: `goal_index` (place in the global order)
and `steps`. The first step has the observation after the reset and what was available; every later one an
`action`, and the observation, available actions, reward and done flag that it led to.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paw_hpc.envs.webshop.catalogue import Catalogue
from paw_hpc.envs.webshop.game import Game
from paw_hpc.envs.webshop.goals import GoalKind
from paw_hpc.envs.webshop.reward import Tagger
from paw_hpc.system.errors import DataError

FIELDS = ("observation", "available", "reward", "done")
SHOWN_DIFFERENCES = 5


@dataclass(slots=True)
class ReplayReport:
    """Matches and comparisons per field, over all steps."""

    episodes: int = 0
    matched: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))
    compared: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))
    differences: list[str] = field(default_factory=list)
    """The first few, in words."""

    @property
    def exact(self) -> bool:
        """Whether something was compared and all of it matched."""
        return self.compared["observation"] > 0 and self.matched == self.compared

    def add(self, name: str, theirs: Any, ours: Any, where: str) -> None:
        self.compared[name] += 1
        if theirs == ours:
            self.matched[name] += 1
        elif len(self.differences) < SHOWN_DIFFERENCES:
            self.differences.append(
                f"{where}, {name}: recorded {_excerpt(theirs, ours)}, here {_excerpt(ours, theirs)}"
            )


def replay(path: Path, catalogue: Catalogue, tagger: Tagger, kind: GoalKind = "synthetic") -> ReplayReport:
    """Play every episode of a file again.

    Raises:
        DataError: missing, truncated or foreign file, or a goal that this catalogue does not have.
    """
    report, goals = ReplayReport(), catalogue.goals(kind)
    for number, episode in enumerate(_episodes(path), 1):
        where = f"{path}:{number}"
        try:
            goal, steps = int(episode["goal_index"]), episode["steps"]
            if not 0 <= goal < len(goals):
                raise DataError(f"{where}: goal {goal} of {len(goals)}: recorded on another catalogue")
            game = Game(catalogue, goals[goal], tagger)
            for place, step in enumerate(steps):
                outcome = game.step(step["action"]) if place else (game.observation, 0.0, False)
                _compare(report, step, outcome, game, f"{where}, step {place}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not an episode of WebShop ({type(error).__name__}: {error})") from None
        report.episodes += 1
    return report


def _compare(
    report: ReplayReport, step: dict[str, Any], outcome: tuple[str, float, bool], game: Game, where: str
) -> None:
    observation, reward, done = outcome
    available = {
        "has_search_bar": game.available.has_search_bar,
        "clickables": list(game.available.clickables),
    }
    ours = {"observation": observation, "available": available, "reward": reward, "done": done}
    for name in FIELDS:
        if name in step:
            report.add(name, step[name], ours[name], where)


def _episodes(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: truncated, or no transcript file ({error})") from None


def _excerpt(text: Any, other: Any) -> str:
    """Where two values part."""
    a, b = json.dumps(text, ensure_ascii=False), json.dumps(other, ensure_ascii=False)
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return ("..." if at > 20 else "") + a[max(0, at - 20) : at + 60]
