"""Search QA as an entry of the benchmarks' door."""

from paw_hpc.recipe import QUESTION_SETS
from paw_hpc.recipe.doors import Benchmark
from paw_hpc.system.registry import lazily

ENTRY = Benchmark(
    make=lazily("paw_hpc.envs.search.benchmark:SearchQA"),
    panels=("test", "in_domain", "out_of_domain", *QUESTION_SETS),
    variables=("task", "step", "steps_taken", "max_steps", "history"),
    example=lazily("paw_hpc.envs.search.example:example"),
    lessons=lazily("paw_hpc.envs.search.teacher:lessons"),
    admits=lazily("paw_hpc.envs.search.protocol:admits"),
)
