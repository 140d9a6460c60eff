"""What stands in examples/ works as it stands: each is one file that touches nothing of the package, and is
trained with, or submitted."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from paw_hpc import loop
from paw_hpc.recipe import load_recipe
from paw_hpc.recipe.doors import ALGORITHMS, BENCHMARKS, ENGINES, LAUNCHERS, WORLD_MODEL_LOSSES
from paw_hpc.run.metrics import read_metrics

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOORS = {
    "number_game": BENCHMARKS,
    "reinforce_pp": ALGORITHMS,
    "focal_loss": WORLD_MODEL_LOSSES,
    "pbs": LAUNCHERS,
    "token_server": ENGINES,
}


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def trained(example: str, run: Path, *overrides: str) -> list[dict[str, float]]:
    recipe = load_recipe(EXAMPLES / example / "recipe.yaml", overrides)
    assert loop.train(recipe, run, command="test").updates == recipe.updates
    return read_metrics(run / "metrics.jsonl")


@pytest.mark.parametrize("example", DOORS)
def test_is_one_file_of_less_than_150_lines(example: str) -> None:
    [file] = (EXAMPLES / example).glob("*.py")
    assert len(file.read_text(encoding="utf-8").splitlines()) < 150
    assert {path.name for path in (EXAMPLES / example).iterdir() if path.name != "__pycache__"} == {
        file.name,
        "recipe.yaml",
    }


@pytest.mark.parametrize("example", DOORS)
def test_nothing_of_the_package_knows_it(example: str) -> None:
    named = {"number_game", "reinforce_pp", "focal", "pbs", "token_server"}
    known = subprocess.run(
        ["git", "grep", "-lwE", "|".join(named), "--", "paw_hpc", "recipes"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    assert not known, known


def test_a_dense_reward_reaches_training(tmp_path: Path) -> None:
    lines = trained("number_game", tmp_path, "rollout.group_size=8")
    returns = [line["train/return"] for line in lines]
    assert any(0 < value < 10 for value in returns), f"no guess that only came closer was paid for: {returns}"
    assert any(line["train/success"] == 0 and line["train/return"] > 0 for line in lines) or any(
        value % 10 for value in returns
    )


def test_an_algorithm_and_its_option(tmp_path: Path) -> None:
    lines = trained("reinforce_pp", tmp_path / "a", "updates=1", "rollout.group_size=8", "env.max_steps=6")
    assert lines[0]["policy/steps"] == 1
    bare = trained(
        "reinforce_pp",
        tmp_path / "b",
        "updates=1",
        "rollout.group_size=8",
        "env.max_steps=6",
        "algorithm.options.baseline=false",
    )
    assert bare[0]["train/return"] == lines[0]["train/return"], "the same episodes"


def test_a_loss(tmp_path: Path) -> None:
    with_focal = trained("focal_loss", tmp_path / "focal", "updates=1")[0]
    cross = trained("focal_loss", tmp_path / "ce", "updates=1", "wm.options.gamma=0")[0]
    assert (
        cross["wm/loss"] == pytest.approx(cross["wm/observation_ce"], rel=0.5)
        and 0 < with_focal["wm/loss"] < cross["wm/loss"]
    )


def test_an_engine_of_somebody_else(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("httpx")
    from tests.examples.completions import CompletionsServer

    server = CompletionsServer(load_recipe(EXAMPLES / "token_server" / "recipe.yaml"))
    try:
        lines = trained("token_server", tmp_path, "updates=2", f"rollout.options.url={server.url}")
    finally:
        server.close()
    assert len(server.folders) == 3 and server.tokens == sum(
        line["rollout/generated_tokens"] for line in lines
    )
    assert all(line["train/behaviour_gap_mean"] < 1e-3 for line in lines), (
        "it does not play with the weights that are trained"
    )


@pytest.fixture
def pretended_pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """qsub runs the script in the background, qstat and qdel look after it; what they were asked is in
    calls.txt."""
    folder = tmp_path / "pbs"
    folder.mkdir()
    programs = {
        "qsub": 'bash "$1" > out.log 2>&1 & echo $! > pid; echo 7.head',
        "qstat": 'test -f pid || { echo "Unknown Job Id $3" >&2; exit 153; }; kill -0 $(cat pid) 2>&1 && '
        's=R || s=F; echo "  job_state = $s"',
        "qdel": "kill -TERM $(cat pid) || true",
    }
    for name, body in programs.items():
        file = folder / name
        file.write_text(
            f'#!/bin/bash\necho "{name} $*" >> {folder}/calls.txt\nwhere=$PWD; cd {folder}; {body}\n'
        )
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def paw(*words: str) -> str:
    from paw_hpc.cli.main import app

    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def test_a_launcher_of_another_scheduler(
    tmp_path: Path, pretended_pbs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe, run = str(EXAMPLES / "pbs" / "recipe.yaml"), tmp_path / "run"
    words = ("launch", recipe, "updates=2", "--executor", "pbs", "--run-dir", str(run))
    shown = paw(*words, "--dry-run")
    assert (
        "#PBS -l walltime=01:30:00" in shown
        and "#PBS -q workq" in shown
        and not (pretended_pbs / "calls.txt").exists()
    )
    assert "job 7.head" in paw(*words)
    assert (run / "cluster" / "submission.sh").read_text() == shown
    assert json.loads((run / "cluster" / "submitted.json").read_text())["executor"] == "pbs"
    assert "7.head" in paw("status", str(run))
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((pretended_pbs / "pid").read_text())).wait(300)
    assert len(read_metrics(run / "metrics.jsonl")) == 2, (pretended_pbs / "out.log").read_text()
    assert "finished" in paw("status", str(run)) and "2/2" in paw("status", str(run))
    paw("cancel", str(run))
    assert (pretended_pbs / "calls.txt").read_text().splitlines()[-1] == "qdel 7.head"


def test_a_launcher_runs_jobs_of_one_node(tmp_path: Path, pretended_pbs: Path) -> None:
    from paw_hpc.cli.main import app

    several = ("policy.backend=megatron", "cluster.trainer_nodes=2")
    done = CliRunner().invoke(
        app,
        [
            "launch",
            str(EXAMPLES / "pbs" / "recipe.yaml"),
            *several,
            "--executor",
            "pbs",
            "--run-dir",
            str(tmp_path / "r"),
        ],
    )
    assert (
        done.exit_code
        and "runs jobs of one" in str(done.exception)
        and not (pretended_pbs / "calls.txt").exists()
    )
