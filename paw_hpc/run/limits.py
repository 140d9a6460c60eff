"""The limit of open files: an episode is a socket, and a low limit would show as failing episodes in the
middle of an update."""

from __future__ import annotations

import os
import resource

from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import UserError

SPARE = 64
"""Files that a run opens for a moment: checkpoints, metrics, event files, programs that are started."""


def files_of_episodes(recipe: Recipe) -> int:
    """Open files that the episodes of one update, or of a slice of an evaluation, need at most: a socket each
    where they are processes of their own (ALFWorld), one to the retriever (search QA), one to the server that
    generates."""
    rollout = recipe.rollout
    episodes = max(rollout.groups * rollout.group_size, rollout.max_batch, recipe.eval.repeats)
    batches = 1 + (rollout.staleness > 0)
    each = (recipe.env.name in ("alfworld", "search")) + (rollout.engine == "sglang")
    return episodes * batches * each + recipe.env.workers


def allow_open_files(recipe: Recipe) -> None:
    """Raise this process's soft limit of open files to what a run needs. Raises UserError, as
    `allow_files`."""
    rollout = recipe.rollout
    keys = (
        f"rollout.groups={rollout.groups} x rollout.group_size={rollout.group_size}, "
        f"rollout.max_batch={rollout.max_batch}"
    )
    allow_files(files_of_episodes(recipe), "this run", keys)


def allow_files(files: int, who: str, why: str) -> None:
    """Raise this process's soft limit of open files to so many more than are open now.

    Args:
        who, why: for the message: what needs them, and by which keys or options.

    Raises:
        UserError: the hard limit is lower; what is needed, and by which key.
    """
    needed = files + _open_now() + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"this machine allows {hard} open files in a process (ulimit -Hn), and {who} needs about "
            f"{needed}: {why}; raise the limit, or lower these"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_now() -> int:
    """Files that this process has open."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return SPARE
