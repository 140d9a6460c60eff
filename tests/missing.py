"""Programs that run as if some packages were not installed: `(WITHOUT + COMMAND).format(missing=[...],
arguments=[...])`."""

from __future__ import annotations

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
COMMAND = """
sys.argv = ["paw", *{arguments}]
from paw_hpc.cli.main import main
main()
"""
