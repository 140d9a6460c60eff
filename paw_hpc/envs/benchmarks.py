"""Which benchmark a recipe plays. Each is imported only where it is played: their data and packages are
optional."""

from __future__ import annotations

from paw_hpc.envs.base import Benchmark
from paw_hpc.recipe import EnvSection
from paw_hpc.recipe.doors import BENCHMARKS


def make_benchmark(env: EnvSection) -> Benchmark:
    """The benchmark of a recipe's `env` section; nothing is loaded or started yet."""
    made: Benchmark = BENCHMARKS.find(env.name).make(env)
    return made
