"""A world-model loss from outside: the focal loss (Lin et al. 2017), which turns away from tokens that are
predicted well already."""

from __future__ import annotations

import torch

from paw_hpc.recipe import WorldModelSection
from paw_hpc.recipe.doors import WORLD_MODEL_LOSSES, WorldModelLoss, read_options
from paw_hpc.recipe.section import NonNegative, Section


class Options(Section):
    """`wm.options`."""

    gamma: NonNegative = 2.0
    """How fast the weight of a token falls as its probability rises; 0 is cross-entropy."""


def focal(logp: torch.Tensor, wm: WorldModelSection) -> torch.Tensor:
    """-(1 - p)^gamma log p, float[R] -> float[R]."""
    gamma = read_options(Options, wm.options).gamma
    return -((1.0 - logp.exp()).clamp(min=0.0) ** gamma) * logp


WORLD_MODEL_LOSSES.add("focal", WorldModelLoss(loss=focal, options=Options))
