"""What comes with the package: named without a path, listed, copied whole, and inside a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from paw_hpc.recipe import load_recipe
from paw_hpc.recipe.shipped import copy, find_shipped, recipe_path, shipped_files
from paw_hpc.study.sweep import load_sweep
from paw_hpc.system.errors import RecipeError, UserError
from tests.recipe_files import RECIPES, ROOT, SWEEPS

CHECKOUT = ROOT.parent


def paw(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paw_hpc.cli.main", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True
    )


def test_every_file_is_listed_with_its_kind_and_what_it_is() -> None:
    files = shipped_files()
    kinds = {
        kind: sorted(file.path for file in files if file.kind == kind)
        for kind in ("recipe", "sweep", "choices", "batch")
    }
    assert kinds["recipe"] == RECIPES and kinds["sweep"] == SWEEPS
    choices = ("miniature/conversation-choices", "miniature/protocol-choices", "paper/choices")
    assert kinds["choices"] == [ROOT / f"{name}.yaml" for name in choices]
    assert kinds["batch"] == sorted((CHECKOUT / "slurm").glob("*.sbatch"))
    assert all(file.about and "\n" not in file.about for file in files), [
        file.name for file in files if not file.about
    ]
    assert find_shipped("quickstart").about.startswith("The main job of `make run`")


def test_a_name_stands_for_a_path_and_a_file_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        recipe_path(Path("paper/table1"))
        == recipe_path(Path("paper/table1.yaml"))
        == ROOT / "paper/table1.yaml"
    )
    Path("quickstart").touch()
    assert recipe_path(Path("quickstart")) == Path("quickstart")
    with pytest.raises(
        RecipeError, match=r"alfworld/referense: no such recipe file.*did you mean 'alfworld/reference'"
    ):
        recipe_path(Path("alfworld/referense"))
    with pytest.raises(RecipeError, match=r"zzz: no such recipe file.*`paw recipes list`"):
        recipe_path(Path("zzz"))


@pytest.mark.parametrize("name", ["search/qwen2.5-3b-gigpo-paw", "quickstart-megatron", "miniature/alfworld"])
def test_a_copy_of_a_recipe_is_whole(name: str, tmp_path: Path) -> None:
    first, *others = copy(find_shipped(name), tmp_path / "mine")
    assert load_recipe(first) == load_recipe(find_shipped(name).path) and others
    others[0].unlink()
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(first)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_copy_of_a_sweep_is_whole(path: Path, tmp_path: Path) -> None:
    copied = load_sweep(copy(find_shipped(path.relative_to(ROOT).as_posix()), tmp_path)[0])
    for variant, original in zip(copied.variants, load_sweep(path).variants, strict=True):
        assert load_recipe(variant.base, variant.changes) == load_recipe(original.base, original.changes)
        assert variant.base.resolve().is_relative_to(tmp_path)


def test_a_file_that_was_changed_is_not_written_over(tmp_path: Path) -> None:
    file = find_shipped("slurm/train.sbatch")
    [copied] = copy(file, tmp_path)
    assert copied == tmp_path / "train.sbatch" and copy(file, tmp_path) == [copied]
    copied.write_text("mine")
    with pytest.raises(UserError, match=r"train\.sbatch: is there already, and differs"):
        copy(file, tmp_path)
    copy(file, tmp_path, replace=True)
    assert copied.read_text() == file.path.read_text()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, unpacked where no checkout is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("paw_hpc", "recipes", "slurm"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
    ):
        shutil.copy(CHECKOUT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=300)
    shutil.rmtree(source)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_has_everything(unpacked: Path) -> None:
    package = unpacked / "paw_hpc"
    for folder in (
        "recipes",
        "envs/prompts",
        "envs/alfworld/shipped_games",
        "policy/shipped",
        "rollout/sglang/cpu_shim",
    ):
        source = CHECKOUT / folder if folder == "recipes" else CHECKOUT / "paw_hpc" / folder
        wanted = {
            path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"
        }
        assert wanted == {
            path.relative_to(package / folder) for path in (package / folder).rglob("*") if path.is_file()
        }
    assert all((package / file).is_file() for file in ("py.typed", "cluster/job.sh.j2", "slurm/train.sbatch"))
    [licence] = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in licence.read_text()


def test_the_wheels_recipes_are_found_by_name_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(unpacked), "HOME": str(tmp_path)}
    listed = paw("recipes", "list", cwd=tmp_path, **environment)
    assert (
        listed.returncode == 0
        and "alfworld/reference" in listed.stdout
        and "slurm/train.sbatch" in listed.stdout
    ), listed.stderr
    planned = paw("plan", "quickstart", "webshop/quickstart", cwd=tmp_path, **environment)
    assert planned.returncode == 0 and "0.82M parameters" in planned.stdout, planned.stderr
    shown = paw(
        "recipes", "show", "alfworld/qwen2.5-1.5b-grpo-paw", "--resolved", cwd=tmp_path, **environment
    )
    assert shown.returncode == 0 and "Qwen/Qwen2.5-1.5B-Instruct" in shown.stdout, shown.stderr
    copied = paw("recipes", "copy", "paper/table1", "mine", cwd=tmp_path, **environment)
    assert copied.stdout.strip() == "mine/paper/table1.yaml", copied.stderr
    again = paw(
        "plan", "mine/paper/table1.yaml", "--only", "webshop-*-1.5b-grpo-paw", cwd=tmp_path, **environment
    )
    assert again.returncode == 0, again.stderr
    refused = paw("recipes", "show", "paper/table1", "--resolved", cwd=tmp_path, **environment)
    assert refused.returncode == 2 and "paper/table1 is a sweep" in refused.stderr
