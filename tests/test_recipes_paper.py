"""The paper's tables as sweeps: every number has its runs, every run its set-up, its layout and its
script."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.cluster.footprint import Footprint, footprint_of
from paw_hpc.cluster.submit import Launchable, alike, array_script
from paw_hpc.recipe import PROTOCOLS, ProtocolName, Recipe, load_recipe
from paw_hpc.recipe.protocols import departures
from paw_hpc.recipe.resume import known_verdict
from paw_hpc.study.report import paper
from paw_hpc.study.report.paper import paper_row
from paw_hpc.study.sweep import Sweep, Variant, load_sweep
from tests.recipe_files import CHOICES, RECIPES, ROOT, SWEEPS

PAPER = [path for path in SWEEPS if path.parent == CHOICES.parent]
TABLES = [path for path in PAPER if path.stem != "protocol"]
"""All but the sweep that goes from one protocol to the other."""
HARDWARE = ("name", "policy", "rollout.engine", "megatron")
"""Keys that say where a run computes, or how it is called, and not what it computes."""
BY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
OF_TABLES = pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
BY_NAME = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(tmp_path / "none.yaml"))


@functools.cache
def sweep(path: Path, protocol: str | None = None) -> Sweep:
    return load_sweep(path, [] if protocol is None else [f"protocol={protocol}"])


@functools.cache
def recipe_of(variant: Variant) -> Recipe:
    return load_recipe(variant.base, variant.changes)


@functools.cache
def plans(path: Path, protocol: str | None = None) -> tuple[Footprint, ...]:
    return tuple(footprint_of(recipe_of(variant)) for variant in sweep(path, protocol).variants)


def all_variants(protocol: str | None = None) -> list[Variant]:
    """Of the files as they are, or of all tables by one protocol."""
    return [v for path in (PAPER if protocol is None else TABLES) for v in sweep(path, protocol).variants]


def by_name(stem: str, protocol: str | None = None) -> dict[str, Recipe]:
    return {
        variant.name: recipe_of(variant)
        for variant in sweep(CHOICES.parent / f"{stem}.yaml", protocol).variants
    }


def science(recipe: Recipe) -> dict[str, Any]:
    """What decides the numbers: dotted key -> value."""
    flat: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, dict) else flat.__setitem__(
                prefix + key, value
            )

    walk(recipe.model_dump(mode="json"), "")
    where = {
        k
        for k in flat
        if known_verdict(k) == "free" or any(k == name or k.startswith(f"{name}.") for name in HARDWARE)
    }
    return {k: v for k, v in flat.items() if k == "updates" or k not in where}


class TestCoverage:
    @BY_PROTOCOL
    def test_every_number_of_the_papers_tables_has_its_runs_by_either_protocol(
        self, protocol: ProtocolName
    ) -> None:
        found: dict[str, set[str]] = {"alfworld": set(), "webshop": set(), "search": set()}
        for variant in all_variants(protocol):
            if (row := paper_row(recipe_of(variant))) is not None:
                found[recipe_of(variant).env.name].add(row.label)
        # those two are rows of the main table
        ablations = {f"1.5B GRPO, {arm}" for arm in paper.ABLATION if arm not in ("GRPO", "PaW")}
        alone = {
            f"{size} {algorithm}{arm}"
            for algorithm, size in (name.split(" ", 1) for name in paper.WEBSHOP_SUCCESS)
            for arm in ("", "+PaW")
        }
        assert found["alfworld"] == paper.MAIN.keys() | ablations
        assert found["webshop"] == paper.MAIN.keys() | ablations | alone
        assert found["search"] == paper.SEARCH.keys()

    @OF_TABLES
    @BY_PROTOCOL
    def test_runs_have_their_protocols_set_up_and_seeds(self, path: Path, protocol: ProtocolName) -> None:
        assert sweep(path, protocol).seeds == (0, 1, 2)
        for variant in sweep(path, protocol).variants:
            recipe = recipe_of(variant)
            assert recipe.protocol == protocol and f"-{protocol}-" in variant.name
            assert departures(recipe, protocol) == (), variant.name
            assert recipe.wm.entropy == "full" or variant.name.endswith("entropy-sampled")
            assert recipe.rollout.staleness == 0 and recipe.wm.max_observation_tokens >= 256

    @OF_TABLES
    def test_the_files_themselves_are_the_reference(self, path: Path) -> None:
        assert sweep(path) == sweep(path, "reference")

    def test_tables_have_the_rows_of_the_paper_alone_and_the_others_say_what_they_vary(self) -> None:
        for stem in ("table1", "table2", "table3", "ablation"):
            assert all(paper_row(recipe) is not None for recipe in by_name(stem).values())
        varied = {(recipe.wm.rho, recipe.wm.alpha) for recipe in by_name("sensitivity").values()}
        assert (paper.BEST_RHO, paper.BEST_ALPHA) in varied
        assert all(rho == paper.BEST_RHO or alpha == paper.BEST_ALPHA for rho, alpha in varied)
        assert max(rho for rho, _ in varied) == 1.0 and max(alpha for _, alpha in varied) == 1.0
        assert {recipe.env.name for recipe in by_name("sensitivity").values()} == {"webshop"}
        arms = {name.split("grpo-")[1] for name in by_name("controls")}
        assert arms >= {
            "vanilla",
            "paw",
            "lambda-1",
            "alpha-1",
            "random-0.75",
            "rho-1",
            "ce-0.02",
            "ce-0.05",
            "ce-lambda",
            "shuffled",
        }
        assert arms >= {"shuffled-ce-lambda", "shuffled-ce-0.05", "entropy-sampled", "every-4", "decay"}

    def test_a_name_means_the_same_run_in_every_sweep_and_protocol(self) -> None:
        """So a run that two sweeps share is trained once, and two protocols never share a directory."""
        known: dict[str, Recipe] = {}
        for variant in (*all_variants(), *all_variants("ours")):
            assert known.setdefault(variant.name, recipe_of(variant)) == recipe_of(variant), variant.name
        # and two names, two runs
        assert len({recipe.model_dump_json(exclude={"name"}) for recipe in known.values()}) == len(known)

    def test_single_recipes_are_the_sweeps_runs(self) -> None:
        runs = {variant.name.removesuffix("-vanilla"): recipe_of(variant) for variant in all_variants()}
        single = [path for path in RECIPES if path.name.startswith("qwen")]
        assert len(single) >= 16
        for path in single:
            recipe = load_recipe(path)
            assert science(recipe) == science(runs[recipe.name]), path
            assert recipe.protocol == "reference"

    def test_a_single_run_by_the_other_protocol_is_one_line(self, tmp_path: Path) -> None:
        """Its name, and so its directory, follows."""
        runs = {variant.name.removesuffix("-vanilla"): recipe_of(variant) for variant in all_variants("ours")}
        for path in (path for path in RECIPES if path.name.startswith("qwen")):
            text = path.read_text()
            assert text.count("base: reference.yaml\n") == 1
            other = tmp_path / path.name
            other.write_text(text.replace("base: reference.yaml", f"base: {path.parent / 'ours.yaml'}"))
            recipe = load_recipe(other)
            assert recipe.protocol == "ours" and science(recipe) == science(runs[recipe.name]), path

    def test_the_comparison_of_single_recipes_sees_a_difference(self) -> None:
        runs = by_name("table1")
        one, other = (
            science(runs[f"webshop-reference-qwen2.5-1.5b-grpo-{arm}"]) for arm in ("vanilla", "paw")
        )
        assert {key for key in one if one[key] != other[key]} == {"wm.enabled"}


class TestLayout:
    @BY_NAME
    @pytest.mark.parametrize("protocol", [None, "ours"])
    def test_every_run_fits_its_gpus_and_has_an_estimated_time(
        self, path: Path, protocol: str | None
    ) -> None:
        if protocol is not None and path not in TABLES:
            pytest.skip("it goes from one protocol to the other")
        for plan in plans(path, protocol):
            assert plan.layout.gpus >= 2 and plan.layout.nodes == 1
            assert plan.trainer is not None and plan.server is not None and plan.time is not None
            assert (
                plan.server.requests
                >= plan.recipe.rollout.groups * plan.recipe.rollout.group_size / plan.layout.own_servers / 8
            )  # no starving cache

    @BY_NAME
    def test_a_sweep_is_launched_whole(self, path: Path, tmp_path: Path) -> None:
        """Every run with every seed is one task of exactly one array; arrays differ in what they ask Slurm
        for; scripts are shell."""
        found = sweep(path)
        launches = [
            Launchable.of(
                recipe_of(variant).model_copy(update={"seed": seed}), tmp_path / f"{variant.name}-s{seed}"
            )
            for variant in found.variants
            for seed in found.seeds
        ]
        arrays = alike(launches)
        assert sorted(one.run for tasks in arrays for one in tasks) == sorted(one.run for one in launches)
        scripts = [array_script(tasks, 4, tmp_path) for tasks in arrays]
        for tasks, text in zip(arrays, scripts, strict=True):
            assert f"#SBATCH --array=0-{len(tasks) - 1}%4" in text.splitlines()
            assert f"#SBATCH --gpus-per-node={tasks[0].layout.gpus_per_node}" in text.splitlines()
            assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        assert len({re.search(r"--gpus-per-node=(\d+)", text)[1] for text in scripts}) == len(scripts)  # type: ignore[index]


class TestCommands:
    def invoke(self, *arguments: str | Path) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    def test_dry_run_prints_an_array_per_allocation_and_writes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = self.invoke("launch", ROOT / "paper" / "table1.yaml", "--array", "--dry-run")
        assert (
            text.count("#!/bin/bash") == 2
            and text.count("task 0: runs/") == 2
            and text.count("task 23: runs/") == 2
        )
        assert list(tmp_path.iterdir()) == []

    @BY_NAME
    @pytest.mark.parametrize("protocol", [None, "ours"])
    def test_every_sweep_can_be_planned_and_launched_dry(
        self, path: Path, protocol: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if protocol is not None and path not in TABLES:
            pytest.skip("it goes from one protocol to the other")
        monkeypatch.chdir(tmp_path)
        words = ["--words", f"protocol={protocol}"] if protocol else []
        names = [variant.name for variant in sweep(path, protocol).variants]
        planned = self.invoke("plan", path, *words)
        assert [line.split()[0] for line in planned.splitlines()[1 : 1 + len(names)]] == names
        launched = self.invoke("launch", path, "--array", "--dry-run", *words)
        assert sorted(re.findall(r"task \d+: runs/(\S+)", launched)) == sorted(
            f"{name}-s{seed}" for name in names for seed in (0, 1, 2)
        )
        assert list(tmp_path.iterdir()) == []

    def test_a_table_by_the_other_protocol_is_one_option(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        ours = self.invoke(
            "launch",
            ROOT / "paper" / "table1.yaml",
            "--array",
            "--dry-run",
            "--words",
            "protocol=ours",
            "--seeds",
            "0",
        )
        reference = self.invoke(
            "launch", ROOT / "paper" / "table1.yaml", "--array", "--dry-run", "--seeds", "0"
        )
        runs = [set(re.findall(r"task \d+: runs/(\S+)", text)) for text in (ours, reference)]
        assert len(runs[0]) == len(runs[1]) == 16 and not runs[0] & runs[1]
        assert {run.replace("-ours-", "-reference-") for run in runs[0]} == runs[1]

    def test_only_and_seeds_choose_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        text = self.invoke(
            "launch",
            ROOT / "paper" / "table1.yaml",
            "--array",
            "--dry-run",
            "--only",
            "webshop-*-1.5b-grpo-*",
            "--seeds",
            "5-6",
        )
        assert re.findall(r"task \d: runs/(\S+)", text) == [
            f"webshop-reference-qwen2.5-1.5b-grpo-{arm}-s{seed}"
            for arm in ("vanilla", "paw")
            for seed in (5, 6)
        ]
        nothing = CliRunner().invoke(
            app, ["launch", str(ROOT / "paper" / "table1.yaml"), "--dry-run", "--only", "*-70b-*"]
        )
        assert nothing.exit_code != 0 and "no run of" in str(nothing.exception)

    def test_the_plan_of_a_sweep_is_a_line_per_run(self) -> None:
        text = self.invoke("plan", ROOT / "paper" / "table3.yaml", "cluster.gpu=H200")
        assert sum(line.startswith("webshop-") for line in text.splitlines()) == 10 and "1 x 8 H200" in text
        assert (
            re.search(r"table3: 10 runs x 3 seeds, [\d,]+ GPU hours, estimated", text)
            and "assumed: episodes last" in text
        )

    def test_the_users_file_wins_over_the_sweep_and_loses_to_the_command_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = tmp_path / "cluster.yaml"
        own.write_text("cpus_per_node: 7\npartition: mine\n")
        monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(own))
        text = self.invoke(
            "launch", ROOT / "paper" / "ablation.yaml", "--array", "--dry-run", "cluster.partition=theirs"
        )
        assert (
            "#SBATCH --cpus-per-task=7" in text
            and "#SBATCH --partition=theirs" in text
            and "#SBATCH --gpus-per-node=2" in text
        )
