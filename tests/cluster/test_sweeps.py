"""Sweeps: what a file of a few lines stands for, and how `paw launch --array` and `paw plan` take it
whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.recipe import load_recipe
from paw_hpc.study.sweep import is_sweep, load_sweep
from paw_hpc.system.errors import RecipeError


class TestQueue:
    def test_what_is_queued_is_not_submitted_again(
        self, fake_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sweeps share runs: those of one that waits are left out of the other."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(tmp_path / "none.yaml"))
        path = self.two_runs(tmp_path)
        command = ["launch", str(path), "--array", "--seeds", "0"]
        first = CliRunner().invoke(app, [*command, "--only", "*-vanilla"])
        assert first.exit_code == 0 and "job 101" in first.output, first.output + repr(first.exception)
        second = CliRunner().invoke(app, command)
        assert (
            second.exit_code == 0
            and "x-vanilla-s0: in the queue already, job 101" in second.output
            and "x-paw-s0: job 102" in second.output
        )

    def test_runs_of_two_kinds_are_two_arrays(
        self, fake_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(tmp_path / "none.yaml"))
        path = write_sweep(
            tmp_path,
            "x: {x: {base: r.yaml}}\narm: {a: {}, b: {cluster: {time_min: 99}}, c: {wm: {rho: 0.5}}}",
            "{x: x, arm: [a, b, c]}",
        )
        done = CliRunner().invoke(app, ["launch", str(path), "--array", "--seeds", "0,1"])
        assert done.exit_code == 0, done.output + repr(done.exception)
        jobs = dict(
            line.rsplit("/", 1)[1].split(": job ") for line in done.output.splitlines() if ": job " in line
        )
        assert jobs == {
            "x-a-s0": "101_0",
            "x-a-s1": "101_1",
            "x-c-s0": "101_2",
            "x-c-s1": "101_3",
            "x-b-s0": "102_0",
            "x-b-s1": "102_1",
        }
        submitted = (fake_slurm / "submitted.jsonl").read_text().splitlines()
        assert ["--time=99" in line for line in submitted] == [False, True] and [
            "--array=0-3" in line for line in submitted
        ] == [True, False]

    def test_nothing_is_submitted_when_one_of_the_arrays_never_could_be(
        self, fake_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(tmp_path / "none.yaml"))
        path = write_sweep(
            tmp_path,
            "x: {x: {base: r.yaml}}\narm: {a: {}, b: {cluster: {partition: gqu}}}",
            "{x: x, arm: [a, b]}",
        )
        done = CliRunner().invoke(app, ["launch", str(path), "--array"])
        assert isinstance(done.exception, RecipeError) and "gqu" in str(done.exception)
        assert not (fake_slurm / "submitted.jsonl").exists()

    def two_runs(self, folder: Path) -> Path:
        return write_sweep(
            folder,
            "x: {x: {base: r.yaml}}\narm: {vanilla: {wm: {enabled: false}}, paw: {wm: {enabled: true}}}",
            "{x: x, arm: [vanilla, paw]}",
        )


def write_sweep(folder: Path, choices: str, entry: str, name: str = "{x}-{arm}", more: str = "") -> Path:
    (folder / "r.yaml").write_text("model: {path: warm-start}\nenv: {prompt: compact}\nupdates: 5\nseed: 9\n")
    (folder / "choices.yaml").write_text(choices)
    path = folder / "sweep.yaml"
    path.write_text(
        f'sweep: s\nchoices: choices.yaml\nname: "{name}"\nseeds: [0]\nruns:\n  - {entry}\n{more}'
    )
    return path


GOOD = (
    "x: {x: {base: r.yaml}}\narm: {vanilla: {wm: {enabled: false}}, slow: {optimizer: {lr: 1.0e-7}, wm: "
    "{final_scale: 0.0}}}\n"
)


class TestFormat:
    def test_a_sweep_is_the_product_of_its_words(self, tmp_path: Path) -> None:
        path = write_sweep(tmp_path, GOOD, "{x: x, arm: [vanilla, slow]}")
        found = load_sweep(path)
        assert (
            is_sweep(path) and not is_sweep(tmp_path / "r.yaml") and not is_sweep(tmp_path / "missing.yaml")
        )
        assert [variant.name for variant in found.variants] == ["x-vanilla", "x-slow"]
        slow = load_recipe(found.variants[1].base, found.variants[1].changes)
        assert (slow.name, slow.optimizer.lr, slow.wm.final_scale, slow.wm.enabled, slow.seed) == (
            "x-slow",
            1e-7,
            0.0,
            True,
            9,
        )

    @pytest.mark.parametrize(
        ("choices", "entry", "name", "said"),
        [
            (GOOD, "{x: x, arm: vanila}", "{x}-{arm}", "no arm 'vanila' in .*; did you mean 'vanilla'?"),
            (GOOD, "{x: x, arms: vanilla}", "{x}", "no axis 'arms' in .*; did you mean 'arm'?"),
            (GOOD, "{x: x, arm: [vanilla, slow]}", "{x}", "two runs are called 'x'"),
            (GOOD, "{x: x, arm: vanilla}", "{x}-{model}", "'model' is no axis of every run"),
            (GOOD, "{x: x, arm: vanilla}", "{x", "name: .*write it like"),
            (GOOD, "{arm: vanilla}", "{arm}", "none of its words names a recipe"),
            (
                GOOD + "z: {z: {wm: {enabled: true}}}",
                "{x: x, arm: vanilla, z: z}",
                "{x}",
                "wm.enabled is set by arm 'vanilla' and by z 'z'",
            ),
            (GOOD + "z: {z: {base: r.yaml}}", "{x: x, z: z}", "{x}", "base is set by x 'x' and by z 'z'"),
            (GOOD, "{x: x, arm: 7}", "{x}", "runs.0.arm"),
            (GOOD, "{x: x, arm: vanilla, name: [a, b]}", "{x}", "runs: name: a template"),
            (
                "x: {x: {base: '{y}.yaml'}}",
                "{x: x}",
                "{x}",
                "base of x 'x' in .*: 'y' is no axis of every run; those of one are x",
            ),
            ("x: {x: {base: '{x.real}.yaml'}}", "{x: x}", "{x}", "base of x 'x' in .*: 'x.real' is no axis"),
            ("x: {x: {base: '{x!r}.yaml'}}", "{x: x}", "{x}", "base of x 'x' in .*: 'x' is no axis"),
            ("x: {x: {base: '{x.yaml'}}", "{x: x}", "{x}", "base of x 'x' in .*write it like"),
        ],
    )
    def test_what_is_wrong_is_said_with_the_file(
        self, tmp_path: Path, choices: str, entry: str, name: str, said: str
    ) -> None:
        path = write_sweep(tmp_path, choices, entry, name)
        with pytest.raises(RecipeError, match=said) as refused:
            load_sweep(path)
        assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)

    def test_a_base_is_filled_with_the_runs_own_words(self, tmp_path: Path) -> None:
        path = write_sweep(
            tmp_path,
            "x: {x: {base: '{p}/r.yaml'}}\np: {one: {}, two: {}}",
            "{x: x, p: [one, two]}",
            name="{x}-{p}",
        )
        for word, rho in (("one", 0.1), ("two", 0.3)):
            (tmp_path / word).mkdir()
            (tmp_path / word / "r.yaml").write_text(f"base: ../r.yaml\nwm: {{rho: {rho}}}\n")
        found = load_sweep(path)
        assert [(v.name, load_recipe(v.base, v.changes).wm.rho) for v in found.variants] == [
            ("x-one", 0.1),
            ("x-two", 0.3),
        ]

    def test_an_entry_may_name_its_runs_itself(self, tmp_path: Path) -> None:
        more = "  - {x: x, arm: slow, z: z, name: '{x}-{z}-{arm}'}\n"
        path = write_sweep(
            tmp_path, GOOD + "z: {z: {wm: {rho: 0.5}}}", "{x: x, arm: [vanilla, slow]}", more=more
        )
        assert [v.name for v in load_sweep(path).variants] == ["x-vanilla", "x-slow", "x-z-slow"]

    def test_words_of_the_command_line_replace_those_of_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PAW_CLUSTER_CONFIG", str(tmp_path / "none.yaml"))
        path = write_sweep(tmp_path, GOOD, "{x: x, arm: vanilla}")
        assert [v.name for v in load_sweep(path, ["arm=slow"]).variants] == ["x-slow"]
        assert [v.name for v in load_sweep(path, ["arm=slow,vanilla"]).variants] == ["x-slow", "x-vanilla"]
        for words, said in (
            ("arm=slov", "did you mean 'slow'"),
            ("z=z", "--words z: no run has this axis"),
            ("arm", "expected AXIS=WORD"),
        ):
            with pytest.raises(RecipeError, match=said):
                load_sweep(path, [words])
        for command in ("plan", "launch"):
            done = CliRunner().invoke(
                app,
                [
                    command,
                    str(path),
                    "--words",
                    "arm=slow",
                    *(["--dry-run", "--array"] if command == "launch" else []),
                ],
            )
            assert done.exit_code == 0 and "x-slow" in done.output and "x-vanilla" not in done.output, (
                done.output + repr(done.exception)
            )
        done = CliRunner().invoke(
            app, ["launch", str(tmp_path / "r.yaml"), "--dry-run", "--words", "arm=slow"]
        )
        assert "--words" in str(done.exception)

    def test_unknown_keys_and_missing_choices_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="sed: Extra inputs are not permitted"):
            load_sweep(write_sweep(tmp_path, GOOD, "{x: x, arm: vanilla}", more="sed: 1\n"))
        path = write_sweep(tmp_path, GOOD, "{x: x, arm: vanilla}")
        (tmp_path / "choices.yaml").unlink()
        with pytest.raises(RecipeError, match=r"choices.yaml: no such file"):
            load_sweep(path)

    def test_a_word_that_sets_an_unknown_key_is_refused_as_in_a_recipe(self, tmp_path: Path) -> None:
        found = load_sweep(
            write_sweep(tmp_path, GOOD.replace("final_scale", "final_scal"), "{x: x, arm: slow}")
        )
        with pytest.raises(RecipeError, match=r"wm.final_scal: unknown key; did you mean 'wm.final_scale'"):
            load_recipe(found.variants[0].base, found.variants[0].changes)
