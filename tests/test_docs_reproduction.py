"""docs/reproduction.md says what the recipes, the planner and the program say; CITATION.cff names this
version and the paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from paw_hpc import __version__
from paw_hpc.cluster.footprint import footprint_of
from paw_hpc.cluster.overview import overview_lines
from paw_hpc.objective.plan import plan
from paw_hpc.recipe import load_recipe
from paw_hpc.run.public_names import public_names
from paw_hpc.study.sweep import load_sweep
from tests.factories import random_pool, random_scores, tiny_recipe
from tests.recipe_files import CHOICES, SWEEPS

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs" / "reproduction.md").read_text()
PAPER = [path for path in SWEEPS if path.parent == CHOICES.parent]


def section(title: str) -> str:
    return DOC.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_estimates_are_those_of_the_planner(path: Path) -> None:
    """When this fails after a change of the estimate: paste `paw plan recipes/paper/NAME.yaml` again."""
    sweep = load_sweep(path)
    lines = overview_lines(
        sweep.name,
        [footprint_of(load_recipe(one.base, one.changes)) for one in sweep.variants],
        len(sweep.seeds),
    )
    shown = [line.removeprefix("    ") for line in section("What it may cost").splitlines()]
    total = next(line for line in lines if line.startswith(f"{sweep.name}:"))
    wanted = lines if sweep.name.startswith("table") else [total]
    assert [line for line in wanted if line not in shown] == []


def test_every_sweep_is_named_with_its_number_of_runs() -> None:
    said = dict(re.findall(r"`recipes/paper/(\w+)\.yaml` \| (\d+) x 3", section("Every table is a sweep")))
    assert said == {path.stem: str(len(load_sweep(path).variants)) for path in PAPER}
    distinct = {one.name for path in PAPER for one in load_sweep(path).variants}
    assert f"{len(distinct)} runs x 3 seeds" in DOC


def test_every_arm_is_described() -> None:
    first_cells = [
        line.split("|")[1] for line in section("Arms and controls").splitlines() if line.startswith("| `")
    ]
    described = {word for cell in first_cells for word in re.findall(r"`([^`]+)`", cell)}
    assert described | {"paw"} == set(OmegaConf.load(CHOICES).arm)


def test_the_metrics_to_look_at_exist() -> None:
    named = set(re.findall(r"`((?:train|wm)/\w+)`", section("How to check a run")))
    pool = random_pool(0)
    planned = plan(pool, random_scores(pool), tiny_recipe(), 0).metrics
    # reported by every backend (tests/policy)
    of_the_policy = {"wm_loss": 0.0, "observation_ce": 0.0, "clipped_token_ratio": 0.0}
    assert named and named <= public_names(planned, of_the_policy).keys()


def test_files_that_are_named_exist() -> None:
    for path in set(
        re.findall(
            r"recipes/[\w./-]+\.yaml|docs/[\w-]+\.md|benchmarks/\w+\.py|tests/\w+\.py|paw_hpc/[\w/]+\.py", DOC
        )
    ):
        assert (ROOT / path).is_file(), path


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation: Any = OmegaConf.load(ROOT / "CITATION.cff")
    assert (
        citation.version == __version__
        and citation["cff-version"] == "1.2.0"
        and citation.license == "Apache-2.0"
    )
    paper = citation.references[0]
    assert (
        paper.identifiers[0].value == "arXiv:2606.02388"
        and paper.title == "Policy and World Modeling Co-Training for Language Agents"
    )
    assert len(paper.authors) == 12
