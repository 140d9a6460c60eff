"""The launchers of this package, as entries of their door (see recipe/doors.py). Light: what they need is
imported when they are used."""

from paw_hpc.recipe.doors import Launcher
from paw_hpc.system.registry import lazily

SLURM = Launcher(
    ready=lazily("paw_hpc.cluster.batch:ready"),
    check=lazily("paw_hpc.cluster.batch:check"),
    script=lazily("paw_hpc.cluster.batch:script"),
    array_script=lazily("paw_hpc.cluster.batch:array_script"),
    submit=lazily("paw_hpc.cluster.batch:submit"),
    states=lazily("paw_hpc.cluster.batch:states"),
    cancel=lazily("paw_hpc.cluster.slurm:cancel"),
    several_nodes=True,
)
ALLOCATION = Launcher(
    ready=lazily("paw_hpc.cluster.here:in_allocation"),
    script=lazily("paw_hpc.cluster.here:script"),
    run=lazily("paw_hpc.cluster.here:run_in_allocation"),
    several_nodes=True,
)
LOCAL = Launcher(
    script=lazily("paw_hpc.cluster.here:script"),
    run=lazily("paw_hpc.cluster.here:run_locally"),
    several_nodes=True,
)
