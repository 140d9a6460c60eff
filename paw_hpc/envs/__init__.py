"""The environments: ALFWorld, WebShop, search QA, and those of plugins; for the trainer of this package, and
for any other (docs/environments.md).

What other programs use is named here and stays as it is: `Environments` (one call after the other) and
`AsyncEnvironments` (coroutines) open the tasks of a benchmark, and `write_outcomes` keeps how they ended, for
`paw report`. `paw_hpc.envs.gym` has the same as a Gymnasium environment. Each name is imported when it is
first asked for, and none of them imports torch or transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState, Panel, Task
    from paw_hpc.envs.blocking import Batch, Environments, Episode
    from paw_hpc.envs.outcomes import Outcome, Outcomes, read_outcomes, write_outcomes
    from paw_hpc.envs.sessions import AsyncBatch, AsyncEnvironments, AsyncEpisode

__all__ = [
    "AsyncBatch",
    "AsyncEnvironments",
    "AsyncEpisode",
    "Batch",
    "EnvironmentFailure",
    "EnvironmentState",
    "Environments",
    "Episode",
    "Outcome",
    "Outcomes",
    "Panel",
    "Task",
    "read_outcomes",
    "write_outcomes",
]

_MODULES = {
    "base": ("EnvironmentFailure", "EnvironmentState", "Panel", "Task"),
    "blocking": ("Batch", "Environments", "Episode"),
    "outcomes": ("Outcome", "Outcomes", "read_outcomes", "write_outcomes"),
    "sessions": ("AsyncBatch", "AsyncEnvironments", "AsyncEpisode"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A name of the interface, imported when it is asked for: the workers of environments import this
    package, too, and need none of it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
