"""A plugin with one entry for every door, whose only option is `beta`."""

from __future__ import annotations

from paw_hpc.objective.credit import grpo
from paw_hpc.recipe.doors import (
    ALGORITHMS,
    BENCHMARKS,
    ENGINES,
    WORLD_MODEL_LOSSES,
    Algorithm,
    Benchmark,
    Engine,
    WorldModelLoss,
)
from paw_hpc.recipe.section import Section
from paw_hpc.system.registry import lazily


class Options(Section):
    beta: float = 1.0


ALGORITHMS.add("plugged", Algorithm(estimate=grpo, smallest_group=2, options=Options))
WORLD_MODEL_LOSSES.add("plugged", WorldModelLoss(loss=lambda logp, wm: -logp, options=Options))
BENCHMARKS.add("plugged", Benchmark(make=lazily("nowhere:Nothing"), panels=("test",), options=Options))
ENGINES.add("plugged", Engine(make=lazily("nowhere:nothing"), options=Options))
