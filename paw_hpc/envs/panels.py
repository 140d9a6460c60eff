"""Fixed panels: the games on which a policy is judged, the same on every machine, in every run.

A panel is a whole validation split, or a seeded part of one: `valid_seen:40@0` is 40 of its games chosen by seed 0, in proportion to its task types.
Nothing is drawn with replacement, and the choice depends on task ids alone, so no order of files and no number of workers can change it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paw_hpc.envs.alfworld import games
from paw_hpc.envs.base import Task
from paw_hpc.envs.sampling import proportional_shares
from paw_hpc.errors import DataError
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.seeding import derive_seed

SPLITS = ("valid_seen", "valid_unseen", "valid_train")
_NAME = re.compile(r"(?P<split>\w+)(?::(?P<count>\d+)@(?P<seed>\d+))?")


@dataclass(frozen=True)
class Panel:
    """A fixed list of tasks, sorted by id. `name` says split, part, restriction and kind of games; `checksum` covers ids and contents."""

    name: str
    tasks: tuple[Task, ...]
    checksum: str


def panel(name: str, task_types: Sequence[str] = TASK_TYPES, source: games.GamesSource = "auto") -> Panel:
    """The panel of a name: valid_seen, valid_unseen, valid_train, or SPLIT:N@SEED.

    Args:
        task_types: keep only games of these types (before a part is drawn); the panel's name then says so.

    Raises:
        DataError: unknown name, more games asked for than there are, or official games that are not those of the release.
    """
    split, count, seed = parse_name(name)
    if games.is_official(source):
        _check_whole(split, games.tasks(split, source))
    chosen = games.tasks(split, source, task_types)
    if not chosen:
        raise DataError(f"panel {name}: no game of {', '.join(task_types)} in it")
    if count is not None:
        chosen = sub_panel(chosen, count, seed, name)
    return Panel(_full_name(name, chosen, task_types), tuple(chosen), games.checksum(chosen))


def parse_name(name: str) -> tuple[str, int | None, int]:
    """(split, number of games or None for all, seed). Raises DataError."""
    match = _NAME.fullmatch(name)
    if match is None or match["split"] not in SPLITS or match["count"] == "0":
        raise DataError(f"panel '{name}': no such panel; one of {', '.join(SPLITS)}, or PANEL:N@SEED such as valid_seen:40@0")
    return match["split"], int(match["count"]) if match["count"] else None, int(match["seed"] or 0)


def sub_panel(tasks: Sequence[Task], count: int, seed: int, name: str = "sub-panel") -> list[Task]:
    """`count` of the tasks, in proportion to their types (largest remainders), chosen by a hash of seed and task id; sorted by id.

    Raises:
        DataError: fewer than `count` tasks.
    """
    if count > len(tasks):
        raise DataError(f"panel {name}: {count} games asked for, {len(tasks)} there; ask for at most {len(tasks)}")
    chosen: list[Task] = []
    sizes = Counter(task.task_type for task in tasks)
    for task_type, share in proportional_shares(sizes, count).items():
        of_type = [task for task in tasks if task.task_type == task_type]
        chosen += sorted(of_type, key=lambda task: (derive_seed(seed, f"panel/{task.task_id}"), task.task_id))[:share]
    return sorted(chosen, key=lambda task: task.task_id)


def _check_whole(split: str, whole: Sequence[Task]) -> None:
    if games.checksum(whole) != games.OFFICIAL_CHECKSUMS[split]:
        raise DataError(
            f"panel {split}: the {len(whole)} games at hand are not the {games.OFFICIAL_COUNTS[split]} of the ALFWorld release "
            "(wrong or partial download); run `paw data alfworld verify`, then `paw data alfworld fetch`"
        )


def _full_name(name: str, chosen: Sequence[Task], task_types: Sequence[str]) -> str:
    generated = "generated " if chosen[0].task_id.startswith("generated-") else ""
    kept = [t for t in TASK_TYPES if t in task_types]
    return generated + name + ("" if len(kept) == len(TASK_TYPES) else f" [{', '.join(kept)}]")
