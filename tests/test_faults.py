"""What people ran into: a status that says nothing failed, a path that holds in one folder alone, work done
before its result can be kept."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paw_hpc.cli import main as cli
from paw_hpc.evaluation import panel as evaluation
from paw_hpc.evaluation.results import write_evaluation
from paw_hpc.policy.loading import WARM_START
from paw_hpc.recipe import dump_recipe, load_recipe, parse_recipe
from paw_hpc.study import quickstart
from paw_hpc.study.report import write_report
from paw_hpc.system import storage
from paw_hpc.system.errors import RecipeError, StorageError
from paw_hpc.system.extras import EXTRAS
from paw_hpc.system.storage import check_writable, write_atomically
from tests.missing import COMMAND, WITHOUT
from tests.report.synthetic import draw, recipe, training_metrics, write_run
from tests.report.synthetic import evaluation as played


def run_paw(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["paw", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


# ---------------------------------------------------------------------------------- failed runs have a status


@pytest.mark.parametrize(("finished", "status"), [(True, 0), (False, 1)])
def test_a_quickstart_that_ended_early_has_a_status(
    monkeypatch: pytest.MonkeyPatch, finished: bool, status: int
) -> None:
    monkeypatch.setattr(quickstart, "run", lambda *_: finished)
    assert run_paw(monkeypatch, "quickstart") == status


# ---------------------------------------------------------------------------- a stored recipe finds its model


def test_a_recipe_names_folders_whole_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for key in ("path", "tokenizer"):
        typed = parse_recipe({"model": {"path": "warm-start", key: "models/mine"}})
        (tmp_path / "stored.yaml").write_text(dump_recipe(typed))
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            stored = load_recipe(tmp_path / "stored.yaml")
        assert getattr(stored.model, key) == str(tmp_path / "models" / "mine") and stored == typed


@pytest.mark.parametrize("name", ["warm-start", "Qwen/Qwen2.5-1.5B-Instruct", "runs/still-to-be-made"])
def test_names_that_are_no_folder_stay_as_they_are(name: str) -> None:
    assert parse_recipe({"model": {"path": name}}).model.path == name


# ------------------------------------------------------------------------------ places that cannot be written


def test_an_evaluation_looks_at_its_place_before_it_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "Machinery", lambda *_: pytest.fail("it began to play"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.*: a (part of this path is a file|file stands)"):
        evaluation.evaluate_path(str(WARM_START), panel="valid_seen", out=tmp_path / "file")


def test_a_report_looks_at_its_place_before_it_draws(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a",
        recipe("a"),
        training_metrics(0, 3, gain=0.1, wm=True),
        [played(draw(0, 4, 0.5), update=3)],
    )
    (tmp_path / "out").write_text("")
    with pytest.raises(
        StorageError, match=r"out: a file stands where a folder must be; change that, or name another place"
    ):
        write_report([tmp_path / "a"], tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_what_a_disk_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuses)
    with pytest.raises(StorageError, match=rf"{re.escape(str(tmp_path))}.*{said}"):
        check_writable(tmp_path)
    (tmp_path / "old").write_text("old")
    monkeypatch.setattr(storage.os, "replace", refuses)
    with pytest.raises(StorageError, match=said):
        write_atomically(tmp_path / "old", "new")
    assert (tmp_path / "old").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["old"]


def test_other_errors_are_not_taken_for_the_disks() -> None:
    with pytest.raises(OSError, match="Interrupted"), storage.storage_errors(Path("x")):
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))


def test_evaluations_written_elsewhere_do_not_spoil_a_folder_of_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(
        tmp_path / "a",
        recipe("a"),
        training_metrics(0, 3, gain=0.1, wm=True),
        [played(draw(0, 4, 0.5), update=3)],
    )
    write_evaluation(tmp_path / "kept-by-out", played(draw(0, 4, 0.5), update=9))
    report = write_report([tmp_path])
    assert report.markdown.is_file() and "kept-by-out: left out" in caplog.text


# ------------------------------------------------------------------------------------- one line, no traceback


@pytest.mark.parametrize(
    "module",
    ["bm25s", "nltk", "rapidfuzz", "aiohttp", "httpx", "faiss", "uvicorn", "textworld", "numba.core"],
)
def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    def lacking(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(quickstart, "run", lacking)
    assert run_paw(monkeypatch, "quickstart", "quickstart") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and module.split(".")[0] in said and "pip install 'paw-hpc[" in said


def test_a_module_that_no_extra_brings_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'paw_hpc.gone'", name="paw_hpc.gone")

    monkeypatch.setattr(quickstart, "run", broken)
    monkeypatch.setattr(sys, "argv", ["paw", "quickstart"])
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_the_table_of_packages_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = {"faiss": "faiss-cpu", "Stemmer": "PyStemmer", "megatron": "megatron-core"}
    for module, extra in EXTRAS.items():
        required = " ".join(project["optional-dependencies"][extra.name])
        assert re.search(rf"(^| ){re.escape(names.get(module, module))}\b", required), (module, extra.name)


def without(modules: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (WITHOUT + COMMAND).format(missing=sorted(modules), arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("benchmark", "name"), [("alfworld", "quickstart"), ("webshop", "webshop/quickstart")]
)
def test_a_run_needs_the_extras_of_what_it_uses_alone(tmp_path: Path, benchmark: str, name: str) -> None:
    """Training in process, evaluated and reported, where every other optional package is missing."""
    core = {
        "httpx",
        "accelerate",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "tensorboard",
    }  # what training itself is made of, and what that brings or imports where it is installed
    others = {module for module, extra in EXTRAS.items() if extra.name != benchmark} - core
    small = [
        "updates=1",
        "rollout.groups=1",
        "rollout.group_size=2",
        "env.max_steps=2",
        "wm.enabled=true",
        "env.train_games=1",
    ]
    start = ["model.path=warm-start", "rollout.max_prompt_tokens=4096"]
    run = str(tmp_path / "run")
    for arguments in (["train", name, *small, *start, "--run-dir", run], ["report", run]):
        ended = without(others, *arguments)
        assert ended.returncode == 0, ended.stderr
    assert "aiohttp" in others
    refused = without(
        others,
        "train",
        name,
        *small,
        *start,
        "rollout.engine=sglang",
        "algorithm.old_logp=recompute",
        "--run-dir",
        str(tmp_path / "served"),
    )
    assert (
        refused.returncode == 2
        and "pip install 'paw-hpc[sglang]'" in refused.stderr
        and refused.stderr.count("paw: ") == 1
    ), refused.stderr


@pytest.mark.parametrize("betas", [[1, 1], [0.9, 1.0], [1.0, 0.9]])
def test_moments_that_never_move_are_refused(betas: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.betas\.[01]: Input should be less than 1"):
        parse_recipe({"model": {"path": "p"}, "optimizer": {"betas": betas}})


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_temperature_is_a_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert run_paw(monkeypatch, "eval", "x", "--panel", "valid_seen", "--temperature", value) == 2
    said = capsys.readouterr().err
    assert "--temperature" in said and "Traceback" not in said
