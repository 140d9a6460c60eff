"""`paw launch` up to sbatch, and what it makes of Slurm's answers, with a Slurm that only pretends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from paw_hpc.cli import cluster as cli_cluster
from paw_hpc.cli import doctor
from paw_hpc.cluster import batch, slurm
from paw_hpc.cluster.layout import lay_out
from paw_hpc.cluster.settings import load_for_cluster
from paw_hpc.cluster.status import status_of
from paw_hpc.cluster.steps import SlurmMachine
from paw_hpc.cluster.submit import Launchable, array_script, resolve_executor, script, submit, submit_array
from paw_hpc.recipe import load_recipe
from paw_hpc.recipe.doors import LAUNCHERS, JobState
from paw_hpc.run import fence
from paw_hpc.system.errors import RecipeError, UserError
from paw_hpc.system.slurm import RETRY_FOR_S, SlurmError
from tests.cluster.runs import recipe, write
from tests.recipe_files import RECIPES

REPOSITORY = Path(__file__).parents[2]
VERSIONS = REPOSITORY / "containers" / "versions.txt"
FULL = {
    "partition": "gpu",
    "account": "lab",
    "qos": "high",
    "constraint": "h100&ib",
    "exclude": "node[3-5]",
    "gpus_per_node": 0,
    "mem_gb_per_node": 200,
    "exclusive": True,
    "time_min": 300,
    "warn_s": 120,
    "setup": ["module load cuda"],
    "environment": {"HF_HOME": "/scratch/my models"},
    "sbatch": {"reservation": "friday", "comment": "two words"},
}


def launchable(folder: Path, **sections: object) -> Launchable:
    made = recipe(**sections)
    return Launchable.of(made, folder / f"{made.name}-s{made.seed}")


def submitted(fake_slurm: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (fake_slurm / "submitted.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_has_a_script(path: Path, tmp_path: Path) -> None:
    one = Launchable.of(load_recipe(path), tmp_path / "run")
    text = script(one)
    assert f"#SBATCH --nodes={one.layout.nodes}\n" in text and "--requeue" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert not (tmp_path / "run").exists()  # looking changes nothing


def test_every_key_reaches_the_script(tmp_path: Path) -> None:
    text = script(launchable(tmp_path, cluster=FULL))
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --qos=high",
        "#SBATCH --constraint='h100&ib'",
        "#SBATCH --exclude='node[3-5]'",
        "#SBATCH --mem=200G",
        "#SBATCH --exclusive",
        "#SBATCH --time=300",
        "#SBATCH --signal=B:USR2@120",
        "#SBATCH --reservation=friday",
        "#SBATCH --comment='two words'",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "module load cuda",
        "export HF_HOME='/scratch/my models'",
    ):
        assert line in text.splitlines(), text
    # the batch script becomes the supervisor: signals reach it
    assert text.splitlines()[-1].startswith("exec ")


def test_what_a_dry_run_prints_is_what_is_submitted_and_kept(
    fake_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from paw_hpc.cli.main import app

    path, run = write(recipe(), tmp_path / "tiny.yaml"), tmp_path / "run"
    printed = CliRunner().invoke(app, ["launch", str(path), "--run-dir", str(run), "--dry-run"])
    assert printed.exit_code == 0 and not run.exists()
    monkeypatch.setattr("sys.argv", ["paw", "launch", "tiny.yaml"])  # the command that is kept
    launched = CliRunner().invoke(app, ["launch", str(path), "--run-dir", str(run)])
    assert launched.exit_code == 0 and "job 101" in launched.output
    [one] = submitted(fake_slurm)
    assert one["script"] == printed.output == (run / "cluster" / "submission.sh").read_text()
    assert load_recipe(run / "recipe.yaml") == load_recipe(path)
    assert (run / "revision.txt").read_text().startswith("code: ") and (
        run / "command.txt"
    ).read_text() == "paw launch tiny.yaml\n"


def test_an_array_has_a_cap_and_leaves_out_what_is_complete(fake_slurm: Path, tmp_path: Path) -> None:
    launches = [launchable(tmp_path, seed=seed) for seed in range(3)]
    jobs = submit_array(launches, 2, tmp_path / "sweep")
    [one] = submitted(fake_slurm)
    assert {"#SBATCH --array=0-2%2", "#SBATCH --job-name=paw-tiny-3-runs"} <= set(
        str(one["script"]).splitlines()
    )
    assert one["script"] == array_script(launches, 2, tmp_path / "sweep")
    assert [job.job for job in jobs] == ["101_0", "101_1", "101_2"]
    done = launches[1].run / "checkpoints" / "update_000005"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")
    assert [one.finished for one in launches] == [False, True, False]


def test_a_task_of_an_array_is_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bash reads the script: names with blanks and quotes are whole, and set-up comes before the job."""
    monkeypatch.setattr(batch, "JOB", ("echo", "it's"))
    cluster = {"setup": ["set -u", "echo ready"]}
    launches = [launchable(tmp_path / "the user's", seed=seed, cluster=cluster) for seed in range(3)]
    for task, one in enumerate(launches):
        tasks = {"SLURM_ARRAY_TASK_ID": str(task), "PATH": os.environ["PATH"]}
        for text in (array_script(launches, None, tmp_path), script(one)):
            done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=tasks)
            assert done.stdout == f"ready\nit's {one.run}\n", done.stderr
    assert array_script(launches[:1], 4, tmp_path) == script(launches[0]), "an array of one is a job"


def test_the_environment_of_a_job_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "JOB", ("printenv", "WORDS", "--"))
    text = script(launchable(tmp_path, cluster={"environment": {"WORDS": "a 'b' $HOME"}}))
    assert (
        subprocess.run(["bash", "-c", text.rpartition(" -- ")[0]], capture_output=True, text=True).stdout
        == "a 'b' $HOME\n"
    )


def test_runs_of_an_array_ask_for_the_same_allocation(tmp_path: Path) -> None:
    launches = [launchable(tmp_path, seed=0), launchable(tmp_path, seed=1, cluster={"time_min": 99})]
    with pytest.raises(RecipeError, match="another allocation"):
        array_script(launches, None, tmp_path)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"partition": "gqu"}, "has no 'gqu'; it has gpu, cpu"),
        (
            {"partition": "gpu", "gpus_per_node": 9},
            r"cluster.gpus_per_node: 9 GPUs per node, but partition gpu has 8",
        ),
        ({"partition": "cpu", "gpus_per_node": 1}, "partition cpu has 0"),
        ({"partition": "gpu", "time_min": 3000}, "allows 2880"),
    ],
)
def test_what_slurm_would_never_start_is_refused_first(
    fake_slurm: Path, tmp_path: Path, cluster: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        submit(launchable(tmp_path, cluster=cluster))
    assert not (fake_slurm / "submitted.jsonl").exists()


def test_sbatch_refusing_is_one_line(
    fake_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "partitions", lambda: [slurm.Partition("forbidden", 9, 8, None)])
    with pytest.raises(SlurmError, match="Invalid account") as refused:
        submit(launchable(tmp_path, cluster={"partition": "forbidden"}))
    assert "\n" not in str(refused.value)


def test_without_slurm_there_is_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for executor, said in (("auto", "--executor local"), ("allocation", "salloc")):
        with pytest.raises(UserError, match=said):
            LAUNCHERS.find(resolve_executor(executor)).ready()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert resolve_executor("auto") == "allocation" and resolve_executor("auto", queue=True) == "slurm"
    LAUNCHERS.find("allocation").ready()


def test_states_come_from_squeue_then_sacct(fake_slurm: Path) -> None:
    found = slurm.states(["101", "102", "103_0", "104"])
    assert found["101"] == JobState("PENDING", "", "Priority")
    assert found["102"].state == "FAILED" and found["102"].nodes == "node7"
    assert found["103_0"].state == "CANCELLED" and "104" not in found


def test_status_of_a_waiting_run_says_why(fake_slurm: Path, tmp_path: Path) -> None:
    one = launchable(tmp_path)
    submit(one)
    [row] = status_of([one.run])
    assert (row.job, row.state, row.saved, row.wanted, row.note) == (
        "101",
        "PENDING",
        0,
        5,
        "waits: Priority",
    )


NO_CONTROLLER = """import sys
sys.exit('squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\\nsqueue: error: fetch_config: DNS SRV lookup failed\\n'
         'squeue: error: _establish_config_source: failed to fetch config\\nsqueue: fatal: Could not establish a configuration source')
"""


def test_status_without_a_controller_is_one_line_and_what_the_runs_wrote(
    fake_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = launchable(tmp_path)
    submit(one)
    (fake_slurm / "squeue").write_text(f"#!/usr/bin/env python3\n{NO_CONTROLLER}")
    said: list[str] = []
    [row] = status_of([one.run], said.append)
    assert said == [
        "slurm does not answer (Could not establish a configuration source); shown is what the runs "
        "themselves wrote"
    ]
    assert (row.job, row.state, row.saved, row.wanted) == ("101", "?", 0, 5)
    cli_cluster.status([one.run])
    assert capsys.readouterr().err.strip() == f"paw: {said[0]}"


def test_a_controller_that_is_away_is_not_waited_for(fake_slurm: Path, tmp_path: Path) -> None:
    one = launchable(tmp_path)
    submit(one)
    away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    (fake_slurm / "squeue").write_text(f"#!/usr/bin/env python3\nimport sys; sys.exit('{away}')\n")
    said: list[str] = []
    begun = time.monotonic()
    assert [row.state for row in status_of([one.run], said.append)] == ["?"]
    assert away in said[0] and time.monotonic() - begun < RETRY_FOR_S / 4


def test_a_task_of_an_array_is_named_as_slurm_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {"SLURM_JOB_ID": "4", "SLURM_ARRAY_JOB_ID": "2", "SLURM_ARRAY_TASK_ID": "1"}
    assert slurm.job_name(4, inside) == "2_1"
    assert slurm.job_name(9, inside) == "9" and slurm.job_name(4, {"SLURM_JOB_ID": "4"}) == "4"
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    assert fence._self().startswith("job 2_1 on ")


def test_the_user_file_wins_over_the_recipe_and_loses_to_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        recipe(cluster={"partition": "recipe", "account": "recipe", "qos": "recipe"}), tmp_path / "r.yaml"
    )
    own = tmp_path / "cluster.yaml"
    own.write_text("account: user\nqos: user\nenvironment: {HF_HOME: /models}\nsetup: [module load cuda]\n")
    monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(own))
    c = load_for_cluster(path, ["cluster.qos=line"]).cluster
    assert (c.partition, c.account, c.qos) == ("recipe", "user", "line")
    assert c.environment == {"HF_HOME": "/models"} and c.setup == ("module load cuda",)
    own.write_text("acount: user\n")
    with pytest.raises(RecipeError, match=r"cluster.yaml: acount: unknown key"):
        load_for_cluster(path)


def test_containers_are_flags_of_srun_or_apptainer(tmp_path: Path) -> None:
    for container, expected in (
        ({"image": "/i.sqsh", "mounts": ["/data:/data:ro"]}, "--container-image=/i.sqsh"),
        ({"image": "/i.sif", "runtime": "apptainer"}, "apptainer exec"),
    ):
        made = recipe(cluster={"container": container})
        machine = SlurmMachine(7, ["a"], made.cluster, mounts=[tmp_path])
        line = " ".join([*machine.srun(lay_out(made).trainer), *machine.in_container(["python", "-V"])])
        assert expected in line and f"{tmp_path}:{tmp_path}" in line and line.endswith("python -V")


def test_the_image_has_one_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer and servers join one NCCL group, so both environments need the same; and inside, `paw doctor`
    says what is not as pinned."""
    trainer, server = (
        dict(re.findall(r"^([\w-]+)==(\S+)$", part, re.MULTILINE))
        for part in VERSIONS.read_text().split("[server]")
    )
    assert trainer["torch"] == server["torch"]
    monkeypatch.delenv("PAW_IMAGE", raising=False)
    assert not [check for check in doctor._cluster() if "image" in check.name]
    monkeypatch.setenv("PAW_IMAGE", "cpu")
    assert not [check for check in doctor._cluster() if "image" in check.name]
    monkeypatch.setenv("PAW_IMAGE", "cuda")
    monkeypatch.setattr(doctor, "_version", lambda name: {**trainer, "triton": "1.0"}[name])
    [check] = [check for check in doctor._cluster() if "image" in check.name]
    assert check.ok is None and check.found == f"triton 1.0 (pinned {trainer['triton']})"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:8", 8),
        ("gpu:h100:8(S:0-1)", 8),
        ("(null)", 0),
        ("gpu:a100:4,nvme:1", 4),
        ("gpu", 1),
        ("gpu:a:2,gpu:b:3", 5),
    ],
)
def test_gpus_of_a_partition(gres: str, gpus: int) -> None:
    assert slurm._gpus(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("2-00:00:00", 2880), ("10:00", 10), ("1:30:00", 90), ("0:30", 1)],
)
def test_time_limits(limit: str, minutes: int | None) -> None:
    assert slurm._minutes(limit) == minutes


def test_shell_scripts_are_clean() -> None:
    scripts = [
        *(REPOSITORY / "slurm").rglob("*.sh"),
        *(REPOSITORY / "slurm").glob("*.sbatch"),
        REPOSITORY / ".ci" / "run",
    ]
    scripts.append(REPOSITORY / "tests" / "cluster" / "apptainer")
    scripts += list((REPOSITORY / "containers").glob("*.sh")) if (REPOSITORY / "containers").is_dir() else []
    command = [
        str(Path(os.sys.executable).parent / "shellcheck"),
        "--external-sources",
        "--source-path=SCRIPTDIR",
        *map(str, scripts),
    ]  # type: ignore[attr-defined]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout
