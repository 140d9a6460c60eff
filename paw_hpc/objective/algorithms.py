"""The algorithms and world-model losses of this package, as entries of their doors (see recipe/doors.py).
Light: torch is imported when they work."""

from paw_hpc.recipe.doors import Algorithm, WorldModelLoss
from paw_hpc.system.registry import lazily

GRPO = Algorithm(estimate=lazily("paw_hpc.objective.credit:grpo"), smallest_group=2)
GIGPO = Algorithm(estimate=lazily("paw_hpc.objective.credit:gigpo"), smallest_group=2)
RLOO = Algorithm(estimate=lazily("paw_hpc.objective.credit:rloo"), smallest_group=2)
PPO = Algorithm(
    estimate=lazily("paw_hpc.objective.credit:ppo"), values=lambda section: section.ppo_advantages
)

CLIPPED_MAE = WorldModelLoss(loss=lambda logp, wm: _losses().clipped_mae(logp, wm.rho))
MAE = WorldModelLoss(loss=lambda logp, wm: _losses().mae(logp))
CROSS_ENTROPY = WorldModelLoss(loss=lambda logp, wm: _losses().cross_entropy(logp))


def _losses():  # type: ignore[no-untyped-def]
    from paw_hpc.objective import world_model

    return world_model
