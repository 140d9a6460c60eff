"""WebShop as an entry of the benchmarks' door."""

from paw_hpc.recipe.doors import Benchmark
from paw_hpc.system.registry import lazily

ENTRY = Benchmark(
    make=lazily("paw_hpc.envs.webshop.benchmark:Webshop"),
    panels=("test", "train"),
    variables=(
        "task",
        "step",
        "steps_taken",
        "max_steps",
        "history",
        "observation",
        "actions",
        "options_left_out",
    ),
    example=lazily("paw_hpc.envs.webshop.example:example"),
    lessons=lazily("paw_hpc.envs.webshop.teacher:lessons"),
    admits=lazily("paw_hpc.envs.webshop.game:admits"),
    noise=True,
)
