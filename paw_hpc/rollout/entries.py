"""The engines of this package, as entries of their door (see recipe/doors.py). Light: what they need is
imported where one is made."""

from paw_hpc.recipe.doors import Engine
from paw_hpc.system.registry import lazily

LOCAL = Engine(make=lazily("paw_hpc.rollout.engines.made:local"), own_weights=True)
SGLANG = Engine(make=lazily("paw_hpc.rollout.sglang.made:sglang"), starts_servers=True)
