"""Which benchmark a recipe plays. Each is imported only where it is played: their data and packages are optional."""

from __future__ import annotations

from paw_hpc.envs.base import Benchmark
from paw_hpc.recipe import EnvSection


def make_benchmark(env: EnvSection) -> Benchmark:
    """The benchmark of a recipe's `env` section; nothing is loaded or started yet."""
    if env.name == "webshop":
        from paw_hpc.envs.webshop.benchmark import Webshop

        return Webshop(env)
    if env.name == "search":
        from paw_hpc.envs.search.benchmark import SearchQA

        return SearchQA(env)
    from paw_hpc.envs.alfworld.benchmark import Alfworld

    return Alfworld(env)
