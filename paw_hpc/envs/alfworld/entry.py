"""ALFWorld as an entry of the benchmarks' door."""

from paw_hpc.recipe.doors import Benchmark
from paw_hpc.system.registry import lazily

ENTRY = Benchmark(
    make=lazily("paw_hpc.envs.alfworld.benchmark:Alfworld"),
    panels=("valid_seen", "valid_unseen", "valid_train"),
    variables=("task", "step", "steps_taken", "max_steps", "history", "observation", "opening", "actions"),
    example=lazily("paw_hpc.envs.alfworld.example:example"),
    lessons=lazily("paw_hpc.envs.alfworld.teacher:lessons"),
)
