"""Which ranks play episodes, and how every rank comes to know what all of them played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from paw_hpc.envs.base import Task
from paw_hpc.experience import Group
from paw_hpc.rollout.collector import CollectStats
from paw_hpc.run.signals import EvaluationLeft
from paw_hpc.system import distributed
from paw_hpc.system.errors import UserError

Played = tuple[list[Group], CollectStats]
Play = Callable[[Sequence[Task], int], Played]
"""(tasks, global index of the first one's group) -> what was played."""


@dataclass(frozen=True, slots=True)
class Players:
    """The ranks that have an engine; each plays a run of consecutive groups. Seeds come from a group's global
    index, not from who plays it."""

    ranks: tuple[int, ...] = (0,)
    meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered by every rank while the players play: what the others do meanwhile."""

    @classmethod
    def of(cls, plays: bool) -> Players:
        """A collective: every rank says whether it plays."""
        return cls(tuple(rank for rank, said in enumerate(distributed.gather(plays)) if said))

    def play(self, tasks: Sequence[Task], first_group: int, play: Play) -> Played:
        """All tasks, on all players; the same groups, in the order of tasks, on every rank. A collective.

        Raises:
            UserError: of the first player that met one; the other ranks end with it.
            EvaluationLeft: a player was asked to stop; on every rank.
        """
        if self.ranks == (0,) and distributed.size() == 1:
            return play(tasks, first_group)
        cuts = [len(tasks) * i // len(self.ranks) for i in range(len(self.ranks) + 1)]
        shares = dict(zip(self.ranks, pairwise(cuts), strict=True))
        own: Played | UserError | EvaluationLeft | None = None
        with self.meanwhile():
            if (share := shares.get(distributed.rank())) is not None:
                try:
                    own = play(tasks[share[0] : share[1]], first_group + share[0])
                except (UserError, EvaluationLeft) as error:
                    own = error
        # One after the other and not gathered: experience is large, and all but the players would send
        # padding.
        found = [distributed.broadcast(own, source=player) for player in self.ranks]
        for player, result in zip(self.ranks, found, strict=True):
            if isinstance(result, UserError):
                raise result if player == distributed.rank() else distributed.PeerFailed(2)
        if left := next((result for result in found if isinstance(result, EvaluationLeft)), None):
            raise left
        played = [
            result
            for result in found
            if result is not None and not isinstance(result, (UserError, EvaluationLeft))
        ]
        weights = [after - before for before, after in shares.values()]
        return [group for groups, _ in played for group in groups], merged(
            [stats for _, stats in played], weights
        )


def merged(parts: Sequence[CollectStats], weights: Sequence[int]) -> CollectStats:
    """Facts of all players: counts add up, the slowest player's seconds count, other times are means,
    weighted by what each played."""

    def merge(name: str, values: list[Any]) -> Any:
        if name == "engine":  # what each player's own engine counted
            return {
                key: sum(part.get(key, 0.0) for part in values)
                for key in dict.fromkeys(key for part in values for key in part)
            }
        if isinstance(values[0], dict):
            return {key: value for part in values for key, value in part.items()}
        if name == "seconds":
            return max(values)
        if isinstance(values[0], float):
            return sum(w * v for w, v in zip(weights, values, strict=True)) / max(1, sum(weights))
        return sum(values)

    return CollectStats(
        **{
            field.name: merge(field.name, [getattr(part, field.name) for part in parts])
            for field in fields(CollectStats)
        }
    )
