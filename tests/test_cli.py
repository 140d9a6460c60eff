"""The command line: arguments reach the function behind a command unchanged, errors are one line, nothing
heavy is loaded for help."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import paw_hpc
from paw_hpc.cli import doctor
from paw_hpc.cli import main as cli
from paw_hpc.cli.doctor import Check
from paw_hpc.envs.alfworld import official
from paw_hpc.recipe import dump_recipe, load_recipe, parse_recipe
from paw_hpc.recipe.shipped import shipped_recipes
from paw_hpc.study import quickstart
from paw_hpc.system.errors import TrainingError
from tests.report.synthetic import draw, evaluation, recipe, training_metrics, write_run

PUBLISHED = Path(__file__).parents[1] / "recipes" / "alfworld" / "qwen2.5-1.5b-grpo-paw.yaml"


class Paw:
    """Runs `paw ARGUMENTS` in this process, with modules that only note how they were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(self, module: str, function: str, result: Any = None) -> None:
        def called(*arguments: Any, **options: Any) -> Any:
            self.calls.append((arguments, options))
            if isinstance(result, BaseException):
                raise result
            return result

        fake = ModuleType(f"paw_hpc.{module}")
        setattr(fake, function, called)
        self.monkeypatch.setitem(sys.modules, fake.__name__, fake)
        parent, _, name = fake.__name__.rpartition(".")
        self.monkeypatch.setattr(importlib.import_module(parent), name, fake, raising=False)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """(exit status, standard output, standard error)"""
        self.monkeypatch.setattr(sys, "argv", ["paw", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *self.capsys.readouterr()


@pytest.fixture
def paw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Paw:
    return Paw(monkeypatch, capsys)


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text("name: small\nseed: 3\nmodel: {path: tiny}\n")
    return path


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["status", "runs"], ["launch", str(PUBLISHED), "--dry-run"], ["plan", str(PUBLISHED)]],
    ids=lambda arguments: arguments[0],
)
def test_answers_of_a_login_node_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys\nsys.argv = ['paw', *{arguments}]\nfrom paw_hpc.cli import main as cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'textworld'} & set(sys.modules)\nassert "
        "not heavy, heavy"
    )
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text(dump_recipe(load_recipe(PUBLISHED)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for command in (
        ("train", "eval", "report", "data", "doctor", "warm-start", "quickstart", "study")
        if arguments == ["--help"]
        else ()
    ):
        assert command in done.stdout


def test_the_version(paw: Paw) -> None:
    assert paw("--version") == (0, f"paw_hpc {paw_hpc.__version__}\n", "")


# --- train ---


def test_train_hands_over_the_recipe_the_directory_and_the_exact_command(paw: Paw, recipe_file: Path) -> None:
    paw.stand_in("loop", "train")
    assert paw("train", "r.yaml", "optimizer.lr=2e-6", "wm.alpha=0.5")[0] == 0
    ((loaded, directory), options) = paw.calls[0]
    assert loaded == parse_recipe(
        {
            "name": "small",
            "seed": 3,
            "model": {"path": "tiny"},
            "optimizer": {"lr": 2e-6},
            "wm": {"alpha": 0.5},
        }
    )
    assert directory == Path("runs/small-s3")
    assert options == {
        "command": "paw train r.yaml optimizer.lr=2e-6 wm.alpha=0.5",
        "resume": None,
        "change": (),
    }
    assert paw("train", "r.yaml", "--run-dir", "my run")[0] == 0
    assert paw.calls[1][0][1] == Path("my run") and paw.calls[1][1]["command"].endswith("--run-dir 'my run'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope.yaml"], "nope.yaml: no such recipe file"),
        (["r.yaml", "optimiser.lr=1"], "optimiser: unknown key; did you mean 'optimizer'?"),
        (["r.yaml", "optimizer.lr=fast"], "optimizer.lr"),
        (["r.yaml", "rollout.group_size=1"], "leaves grpo without a baseline"),
    ],
)
def test_a_user_error_is_one_line_and_status_2(
    paw: Paw, recipe_file: Path, arguments: list[str], said: str
) -> None:
    paw.stand_in("loop", "train")
    status, out, err = paw("train", *arguments)
    assert status == 2 and out == "" and paw.calls == []
    assert said in err and err.count("\n") == 1 and err.startswith("paw: ")


def test_an_error_inside_the_loop_is_one_line_too_and_a_bug_is_not_hidden(
    paw: Paw, recipe_file: Path
) -> None:
    paw.stand_in("loop", "train", TrainingError("update 7: the loss was not finite"))
    assert paw("train", "r.yaml") == (2, "", "paw: update 7: the loss was not finite\n")
    paw.stand_in("loop", "train", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        paw("train", "r.yaml")


def test_ctrl_c_ends_with_130_and_no_traceback(paw: Paw, recipe_file: Path) -> None:
    paw.stand_in("loop", "train", KeyboardInterrupt())
    status, _, err = paw("train", "r.yaml")
    assert status == 130 and "Traceback" not in err


def test_resume_and_fresh_are_handed_over(paw: Paw, recipe_file: Path) -> None:
    paw.stand_in("loop", "train")
    for arguments in (["--resume"], ["--fresh"], []):
        assert paw("train", "r.yaml", *arguments)[0] == 0
    assert [options["resume"] for _, options in paw.calls] == [True, False, None]


# --- the others ---


def test_eval_passes_its_options_and_prints_the_result(paw: Paw) -> None:
    paw.stand_in("evaluation.panel", "evaluate_path", evaluation(draw(0, 12, 0.5), update=3, ce=0.5))
    status, out, _ = paw(
        "eval",
        "runs/x",
        "--panel",
        "valid_seen:40@1",
        "--repeats",
        "2",
        "--temperature",
        "0.7",
        "--workers",
        "4",
    )
    assert status == 0 and "pick_and_place_simple" in out
    by_its_own = {"protocol": None, "benchmark": None, "overrides": ()}
    assert paw.calls == [
        (
            ("runs/x",),
            {"panel": "valid_seen:40@1", "repeats": 2, "temperature": 0.7, "workers": 4, "out": None}
            | by_its_own,
        )
    ]
    paw(
        "eval",
        "m",
        "--panel",
        "test",
        "--protocol",
        "reference",
        "--benchmark",
        "webshop",
        "rollout.engine=sglang",
        "seed=1",
    )
    by_a_protocol = {
        "protocol": "reference",
        "benchmark": "webshop",
        "overrides": ["rollout.engine=sglang", "seed=1"],
    }
    assert (
        paw.calls[1][1]
        == {"panel": "test", "repeats": 1, "temperature": None, "workers": None, "out": None} | by_a_protocol
    )
    assert paw("eval", "m")[0] == 2  # a panel must be chosen
    assert len(paw.calls) == 2


def test_report_writes_and_prints(paw: Paw, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        recipe("a"),
        training_metrics(0, 5, gain=0.1, wm=True),
        [evaluation(draw(0, 12, 0.5), update=5)],
    )
    status, out, _ = paw("report", str(run), "--out", str(tmp_path / "out"))
    assert status == 0 and str(tmp_path / "out/report.html") in out and "valid_seen" in out
    assert (tmp_path / "out/report.html").is_file()
    status, _, err = paw("report", str(tmp_path / "nowhere"))
    assert status == 2 and "no run here" in err and err.count("\n") == 1


def test_warm_start_and_quickstart_hand_over(
    paw: Paw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.yaml", "q.yaml"):
        Path(name).touch()
    paw.stand_in("study.warmstart", "main", Path("runs/w"))
    assert paw("warm-start", "w.yaml", "seed=1", "--out", "x")[:2] == (0, "runs/w\n")
    monkeypatch.setattr(quickstart, "run", lambda *arguments: paw.calls.append((arguments, {})) or True)
    for found in (None, official.Origin("folder", tmp_path)):
        monkeypatch.setattr(official, "find", lambda found=found: found)
        assert paw("quickstart")[0] == 0
    assert paw("quickstart", "q.yaml", "updates=3", "--run-dir", "d")[0] == 0
    # no recipe: the first word is an override
    assert paw("quickstart", "updates=4", "eval.repeats=1")[0] == 0
    assert [call[0] for call in paw.calls] == [
        (Path("w.yaml"), ["seed=1"], Path("x")),
        (shipped_recipes() / "quickstart-generated.yaml", [], Path("runs/quickstart")),
        (shipped_recipes() / "quickstart.yaml", [], Path("runs/quickstart")),
        (Path("q.yaml"), ["updates=3"], Path("d")),
        (shipped_recipes() / "quickstart.yaml", ["updates=4", "eval.repeats=1"], Path("runs/quickstart")),
    ]


def test_study_hands_over_and_says_by_its_status_whether_it_is_complete(
    paw: Paw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").touch()
    paw.stand_in("study.local", "run_sweep", True)
    assert paw("study", "s.yaml")[0] == 0
    paw.stand_in("study.local", "run_sweep", False)
    assert paw("study", "s.yaml", "updates=3", "--run-dir", "d", "--parallel", "4")[0] == 1
    assert paw.calls[0][0] == (Path("s.yaml"), [], Path("runs/study"), 2)
    assert paw.calls[1][0] == (Path("s.yaml"), ["updates=3"], Path("d"), 4)


def test_data_commands(paw: Paw, monkeypatch: pytest.MonkeyPatch) -> None:
    from paw_hpc.envs.alfworld import games
    from paw_hpc.envs.base import Task

    asked = []

    def tasks(split: str, source: str = "auto") -> list[Task]:
        asked.append((split, source))
        return [Task(f"{split}/pick/1", "pick", "x"), Task(f"{split}/pick/2", "pick", "x")]

    monkeypatch.setattr(games, "tasks", tasks)
    assert paw("data", "alfworld", "list", "valid_unseen", "--games", "official")[1].splitlines() == [
        "valid_unseen/pick/1",
        "valid_unseen/pick/2",
    ]
    assert paw("data", "alfworld", "generate")[1].splitlines()[0] == "train: 2 generated games"
    assert asked == [("valid_unseen", "official"), *((split, "generated") for split in games.OFFICIAL_COUNTS)]
    assert paw("data", "alfworld", "list", "--games", "both")[0] == 2
    monkeypatch.setattr(games, "fetch", lambda: Path("games.zip"))
    assert paw("data", "alfworld", "fetch")[1] == "games.zip\n"
    for intact, status in ((True, 0), (False, 1)):
        monkeypatch.setattr(
            games,
            "verify",
            lambda intact=intact: [
                games.SplitReport("train", 3553, 3553, True),
                games.SplitReport("x", 1, 2, intact),
            ],
        )
        assert paw("data", "alfworld", "verify")[0] == status


# --- doctor ---


def printed(checks: list[Check], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    out = StringIO()
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    return doctor.main(Console(file=out, width=160)), out.getvalue()


def test_doctor_fails_only_where_something_required_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, optional = Check("Python", True, "3.11"), Check("GPU", None, "none", "buy one")
    status, text = printed([fine, optional], monkeypatch)
    assert status == 0 and "everything that is required is here" in text and "buy one" in text
    status, text = printed(
        [fine, optional, Check("torch", False, "not installed", "pip install 'x[torch]'")], monkeypatch
    )
    assert status == 1 and "missing: torch" in text and "pip install 'x[torch]'" in text


def test_doctor_sees_this_machine(paw: Paw) -> None:
    import torch

    status, out, _ = paw("doctor")
    checks = {check.name: check for check in doctor.examine()}
    assert (
        checks["torch"].found == torch.__version__
        and checks["Python"].ok
        and int(checks["CPU cores"].found) >= 1
    )
    assert checks["textworld"].ok and checks["alfworld"].ok
    assert status == (1 if any(check.ok is False for check in checks.values()) else 0)
    assert torch.__version__ in out


def test_doctor_says_what_to_do_about_data_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAW_DATA", str(tmp_path / "nowhere"))
    (check,) = [c for c in doctor.examine() if c.name == "ALFWorld games"]
    assert check.ok is False and "nowhere" in check.found and check.advice


@pytest.mark.parametrize(
    ("module", "function", "arguments", "options"),
    [
        ("loop", "train", 2, ("command",)),
        (
            "evaluation.panel",
            "evaluate_path",
            1,
            ("panel", "repeats", "temperature", "workers", "out", "protocol", "benchmark", "overrides"),
        ),
        ("study.warmstart", "main", 3, ()),
        ("study.quickstart", "run", 3, ()),
        ("study.local", "run_sweep", 4, ()),
    ],
)
def test_the_functions_behind_the_commands_take_what_is_handed_over(
    module: str, function: str, arguments: int, options: tuple[str, ...]
) -> None:
    real = getattr(pytest.importorskip(f"paw_hpc.{module}"), function)
    inspect.signature(real).bind(*range(arguments), **dict.fromkeys(options))
