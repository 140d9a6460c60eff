"""What pyproject.toml cannot say: recipes and batch files stand at the top of a checkout, where people edit
them, and in a wheel in the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CARRIED = {"recipes": "**/*.yaml", "slurm": "*.sbatch"}


class BuildWithRecipes(build_py):
    """An editable installation needs no copy: there the package finds the folders beside itself
    (paw_hpc/recipe/shipped.py)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._carried():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._carried())]

    def _carried(self) -> list[tuple[Path, Path]]:
        package = Path(self.build_lib) / "paw_hpc"
        return [
            (path, package / path.relative_to(ROOT))
            for folder, files in CARRIED.items()
            for path in sorted((ROOT / folder).glob(files))
        ]


setup(cmdclass={"build_py": BuildWithRecipes})
