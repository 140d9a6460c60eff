"""ALFWorld's panels: whole validation splits of the release, or seeded parts of them."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.envs.alfworld import games
from paw_hpc.envs.base import Panel, Task
from paw_hpc.envs.panels import parse_name, sub_panel
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system.errors import DataError


def panel(name: str, task_types: Sequence[str] = TASK_TYPES, source: games.GamesSource = "auto") -> Panel:
    """The panel of a name: valid_seen, valid_unseen, valid_train, or SPLIT:N@SEED.

    Args:
        task_types: keep only games of these types (before a part is drawn); the panel's name then says so.

    Raises:
        DataError: unknown name, more games asked for than there are, or official games that are not those of
            the release.
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


def _check_whole(split: str, whole: Sequence[Task]) -> None:
    if games.checksum(whole) != games.OFFICIAL_CHECKSUMS[split]:
        raise DataError(
            f"panel {split}: the {len(whole)} games at hand are not the {games.OFFICIAL_COUNTS[split]} of "
            "the ALFWorld release "
            "(wrong or partial download); run `paw data alfworld verify`, then `paw data alfworld fetch`"
        )


def _full_name(name: str, chosen: Sequence[Task], task_types: Sequence[str]) -> str:
    generated = "generated " if chosen[0].task_id.startswith("generated-") else ""
    kept = [t for t in TASK_TYPES if t in task_types]
    return generated + name + ("" if len(kept) == len(TASK_TYPES) else f" [{', '.join(kept)}]")
