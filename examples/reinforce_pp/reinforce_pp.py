"""An algorithm from outside: REINFORCE++ with a group baseline (arXiv 2501.03262): returns less their group's
mean, whitened over the update."""

from __future__ import annotations

import torch

from paw_hpc.experience import Pool, Scores
from paw_hpc.objective import advantages
from paw_hpc.objective.credit import Estimate
from paw_hpc.recipe import Recipe
from paw_hpc.recipe.doors import ALGORITHMS, Algorithm, read_options
from paw_hpc.recipe.section import Section


class Options(Section):
    """`algorithm.options`."""

    baseline: bool = True
    """Subtract the mean return of the task's group first."""


def estimate(
    pool: Pool, returns: torch.Tensor, invalid: torch.Tensor, scores: Scores, recipe: Recipe
) -> Estimate:
    """Advantages of transitions, float64[N]."""
    options = read_options(Options, recipe.algorithm.options)
    centred = advantages.grpo(returns, pool.group, normalize_std=False) if options.baseline else returns
    return Estimate(advantages.whiten(centred))


ALGORITHMS.add("reinforce_pp", Algorithm(estimate=estimate, smallest_group=2, options=Options))
