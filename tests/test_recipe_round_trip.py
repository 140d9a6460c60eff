"""load(dump(recipe)) == recipe, whatever texts a recipe holds; and `${...}` is a shell's in `cluster`,
another key's elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from paw_hpc.cluster.settings import load_for_cluster
from paw_hpc.recipe import dump_recipe, load_recipe, parse_recipe
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.errors import RecipeError
from tests.recipe_values import KEYS, NASTY, random_recipe, set_key, together

SETUP = [
    "module load cuda/${CUDA:-12.4}",
    "export PATH=${HOME}/bin:$PATH",
    "echo ${#names[@]} ${name} \\${x} '${'",
]


def there_and_back(recipe, folder: Path):  # type: ignore[no-untyped-def]
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(path)


def test_a_recipe_comes_back_from_its_dump(tmp_path: Path) -> None:
    drawn: set[str] = set()
    for seed in range(len(KEYS)):
        recipe, chosen = random_recipe(seed)
        assert there_and_back(recipe, tmp_path) == recipe, f"seed {seed}"
        drawn |= chosen
    assert drawn == set(KEYS), f"never drawn: {sorted(set(KEYS) - drawn)}"


@pytest.mark.parametrize(
    "key", ["model.path", "rollout.stop", "cluster.setup", "cluster.environment", "rollout.fleet.arguments"]
)
@pytest.mark.parametrize("text", NASTY)
def test_any_text_comes_back(key: str, text: str, tmp_path: Path) -> None:
    value = {"model.path": text, "cluster.environment": {"A": text}}.get(key, [text, text])
    recipe = parse_recipe(set_key(together(key), key, value))
    assert there_and_back(recipe, tmp_path) == recipe


def test_shell_variables_need_no_escaping_wherever_they_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "cluster.yaml"
    user.write_text("setup: ['" + SETUP[0] + "']\nenvironment: {X: '${Y}'}\n")
    monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(user))
    base, path = tmp_path / "base.yaml", tmp_path / "r.yaml"
    base.write_text(
        "name: r\nmodel: {path: m}\ncluster: {environment: {X: '${X}', Z: '${Z}'}, setup: [a, b]}\n"
    )
    path.write_text(
        "base: base.yaml\ncluster:\n  partition: p\n  setup:\n"
        + "".join(f"  - {line}\n" for line in SETUP[:2])
    )
    recipe = load_recipe(path)
    assert (
        list(recipe.cluster.setup) == SETUP[:2]
        and recipe.cluster.environment == {"X": "${X}", "Z": "${Z}"}
        and recipe.cluster.partition == "p"
    )
    recipe = load_recipe(path, [f'cluster.setup=["{SETUP[1]}"]', "cluster.environment.N=${N}"])
    assert recipe.cluster.setup == (SETUP[1],) and recipe.cluster.environment == {
        "X": "${X}",
        "Z": "${Z}",
        "N": "${N}",
    }
    recipe = load_for_cluster(path)
    assert recipe.cluster.setup == (SETUP[0],) and recipe.cluster.environment == {"X": "${Y}", "Z": "${Z}"}


def test_a_stored_run_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {path: m}\nname: small-${seed}\nseed: 3\nrollout: {stop: ['\\${x}']}\ncluster: {setup: "
        "['echo ${HOME}']}\n"
    )
    run = RunDirectory(tmp_path / "run")
    run.open(load_recipe(path), "test")
    stored = run.recipe()
    assert (stored.name, stored.rollout.stop, stored.cluster.setup) == (
        "small-3",
        ("${x}",),
        ("echo ${HOME}",),
    )
    assert stored == load_recipe(path)
    run.open(stored, "test")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${HOME}", "Interpolation key 'HOME' not found"),
        ("${HOME:-x}", "Unsupported interpolation type HOME"),
        ("${", "no viable"),
    ],
)
def test_elsewhere_an_unknown_one_is_refused_with_a_hint(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{path: m}}\nrollout: {{stop: ['{text}']}}\n")
    with pytest.raises(RecipeError, match=r"write \\\$\{\.\.\.\} for the characters themselves") as refused:
        load_recipe(path)
    assert said in str(refused.value)
