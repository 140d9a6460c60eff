"""Fixed panels: the tasks on which a policy is judged, the same on every machine, in every run.

A panel is a whole split, or a seeded part of one: `valid_seen:40@0` is 40 of its tasks chosen by seed 0, in
proportion to its task types. Nothing is drawn with replacement, and the choice depends on task ids alone, so
no order of files and no number of workers can change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paw_hpc.envs.base import Task
from paw_hpc.envs.sampling import proportional_shares
from paw_hpc.recipe import split_panel_name
from paw_hpc.system.errors import DataError
from paw_hpc.system.seeding import derive_seed


def parse_name(name: str, benchmark: str = "alfworld") -> tuple[str, int | None, int]:
    """(split, number of tasks or None for all, seed). Raises DataError."""
    try:
        return split_panel_name(name, benchmark)
    except ValueError as error:
        raise DataError(f"panel '{name}': {error}") from None


def sub_panel(tasks: Sequence[Task], count: int, seed: int, name: str = "sub-panel") -> list[Task]:
    """`count` of the tasks, in proportion to their types (largest remainders), chosen by a hash of seed and
    task id; sorted by id.

    Raises:
        DataError: fewer than `count` tasks.
    """
    if count > len(tasks):
        raise DataError(
            f"panel {name}: {count} games asked for, {len(tasks)} there; ask for at most {len(tasks)}"
        )
    tasks, chosen = list(tasks), list[Task]()
    sizes = Counter(task.task_type for task in tasks)
    for task_type, share in proportional_shares(sizes, count).items():
        of_type = [task for task in tasks if task.task_type == task_type]
        chosen += sorted(
            of_type, key=lambda task: (derive_seed(seed, f"panel/{task.task_id}"), task.task_id)
        )[:share]
    return sorted(chosen, key=lambda task: task.task_id)
