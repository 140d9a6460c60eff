"""Runs the documentation's commands in an empty folder that has the repository's recipes and whatever runs a
command names."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer.main

from paw_hpc.cli import main as cli
from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.referee import judged
from paw_hpc.recipe import load_recipe, split_panel_name
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.shipped import recipe_path
from paw_hpc.study.sweep import load_sweep
from paw_hpc.system.errors import UserError
from tests.docs.commands import Block, Command, named_files, shows
from tests.episodes import made

ROOT = Path(__file__).resolve().parents[2]
STORED = [ROOT / "tests" / "report" / "stored" / name for name in ("vanilla", "paw")]
STATUSES = {"doctor": (0, 1)}
"""What a command may end with where it ends well: this one says by 1 that something is missing here."""


def _redirected(words: list[str]) -> tuple[list[str], str]:
    """(the command, the file that its output goes to or nothing)"""
    at = words.index(">") if ">" in words else len(words)
    return words[:at], "".join(words[at + 1 :])


class Wrong(Exception):
    """What is wrong with a command, beside what the program itself says of it."""


@dataclass(slots=True)
class Understood:
    """A `paw` command as click reads it."""

    path: tuple[str, ...]
    values: dict[str, Any]


def understood(words: list[str], *, named: bool = False) -> Understood:
    """Raises Wrong for an unknown command, option or value. Nothing of it is run. In running text (`named`)
    arguments may be missing."""
    command: Any = typer.main.get_command(cli.app)
    path, rest = list[str](), words[1:]
    while hasattr(command, "commands"):
        if named and rest[:1] == ["BENCHMARK"]:
            rest[0] = BENCHMARKS.names()[0]
        if not rest or rest[0] not in command.commands:
            if rest[:1] in (["--help"], ["--version"]):
                return Understood((*path, rest[0]), {})
            raise Wrong(f"no such command: {' '.join(['paw', *path, *rest[:1]])}")
        path.append(rest.pop(0))
        command = command.commands[path[-1]]
    if named:
        _check_options(path, command, rest)
        return Understood(tuple(path), {})
    try:
        return Understood(tuple(path), command.make_context(" ".join(path), rest).params)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise Wrong(error.format_message()) from None


def _check_options(path: list[str], command: Any, words: list[str]) -> None:
    known = {"--help"}.union(*(option.opts + option.secondary_opts for option in command.params))
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise Wrong(f"paw {' '.join(path)} has no option {word}")


@dataclass(slots=True)
class Runner:
    """`paw` in this process, in a folder of its own."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    problems: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        shutil.copytree(ROOT / "recipes", self.folder / "recipes")
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setenv("XDG_CONFIG_HOME", str(self.folder / "config"))
        self.monkeypatch.setenv("PAW_CACHE", str(self.folder / "cache"))
        self.monkeypatch.delenv("PAW_CLUSTER_CONFIG", raising=False)

    def block(self, block: Block) -> None:
        """Run or check every command of a block; what is wrong with any is added to `problems`."""
        if block.file:
            (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.file).write_text(block.text)
        for path in named_files((block.reason or "").split()):
            if not (ROOT / path).exists():
                self.problems.append(f"line {block.line}: its mark names {path}, which does not exist")
        for command in block.commands:
            try:
                self.check(command, run=block.reason is None)
            except (UserError, Wrong, subprocess.CalledProcessError) as error:
                self.problems.append(f"line {command.line}: {' '.join(command.words)}: {error}")

    def check(self, command: Command, *, run: bool = True) -> None:
        """Raises whatever is wrong with it. Not to be run: only whether it can be understood."""
        words, target = _redirected(command.words)
        with pytest.MonkeyPatch.context() as settings:
            while "=" in words[0]:
                settings.setenv(*words.pop(0).split("=", 1))
            self._check(command, words, target, run)

    def _check(self, command: Command, words: list[str], target: str, run: bool) -> None:
        for path in named_files(words):
            if not (ROOT / path).exists():
                raise Wrong(f"the repository has no {path}")
        if words[0] == "paw":
            how = understood(words)
            if run:
                self._paw(command, words, how, target)
        elif words[0] == "make":
            subprocess.run(
                ["make", "--dry-run", "--directory", str(ROOT), *words[1:]],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        elif run:
            raise Wrong("is neither run nor marked: write <!-- not run: REASON --> above its block")

    def _paw(self, command: Command, words: list[str], how: Understood, target: str) -> None:
        name = " ".join(how.path)
        if name in LOADED and not _refusals(command):
            LOADED[name](how.values)
        elif name in RUN or name in LOADED:  # a training that is shown to be refused is run: it must end so
            dry = ["--dry-run"] if name == "launch" and not how.values["dry_run"] else []
            printed = self._run(command, [*words[1:], *dry], name)
            if target:
                (self.folder / target).write_text(printed)
        else:
            raise Wrong("is neither run nor marked: write <!-- not run: REASON --> above its block")

    def _run(self, command: Command, words: list[str], name: str) -> str:
        status, printed = self.paw(
            *(self._runs(words) if name in ("report", "status", "episodes", "view") else words)
        )
        if status not in ((2,) if _refusals(command) else STATUSES.get(name, (0,))):
            raise Wrong(f"ended with status {status}: {printed[-500:]}")
        if missing := shows(printed, command.shown):
            raise Wrong(f"does not print {missing}; it prints\n{printed}")
        return printed

    def paw(self, *arguments: str) -> tuple[int, str]:
        """(exit status, all that was printed)"""
        self.monkeypatch.setattr(sys, "argv", ["paw", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, "".join(self.capsys.readouterr())

    def _runs(self, words: list[str]) -> list[str]:
        """The words, with their patterns expanded as a shell does; run directories that they name are made of
        the two stored ones."""
        stored = itertools.cycle(STORED)
        named = [word for word in words[1:] if word.startswith("runs/") or word == "runs"]
        for word in named:
            path = self.folder / (word if word != "runs" else "runs/a").replace("*", "0")
            if not path.exists():
                shutil.copytree(next(stored), path)
                EpisodeFolder(path, made.ALL).write_update(19, made.rows(19))
        return [
            found
            for word in words
            for found in (sorted(map(str, Path().glob(word))) if word in named else [word])
        ]


def _refusals(command: Command) -> list[str]:
    return [line for line in command.shown if line.startswith("paw: ")]


def _train(values: dict[str, Any]) -> None:
    """The quickstart needs no recipe: it takes the one for the games at hand."""
    recipe, overrides = values["recipe"], list(values["overrides"] or ())
    if recipe is not None and cli.OVERRIDE.match(str(recipe)):
        recipe, overrides = None, [str(recipe), *overrides]
    for one in [recipe] if recipe else [Path("quickstart"), Path("quickstart-generated")]:
        load_recipe(recipe_path(one), overrides)


def _study(values: dict[str, Any]) -> None:
    for variant in load_sweep(recipe_path(values["sweep"])).variants:
        load_recipe(variant.base, [*variant.changes, *(values["overrides"] or ())])


def _eval(values: dict[str, Any]) -> None:
    """A run need not be there; a recipe must be, and the panel must be one of its benchmark."""
    target, panel = values["target"], values["panel"]
    benchmarks = list(BENCHMARKS.names())
    if not target.startswith("runs/"):
        protocol = {name: values[name] for name in ("protocol", "benchmark")}
        benchmarks = [judged(target, panel, **protocol, overrides=values["overrides"] or ()).recipe.env.name]
    if not any(_has_panel(name, panel) for name in benchmarks):
        raise Wrong(f"{panel} is no panel of {', '.join(benchmarks)}")


def _has_panel(benchmark: str, panel: str) -> bool:
    try:
        return bool(split_panel_name(panel, benchmark))
    except ValueError:
        return False


LOADED: dict[str, Callable[[dict[str, Any]], None]] = {
    "train": _train,
    "warm-start": _train,
    "quickstart": _train,
    "study": _study,
    "eval": _eval,
}
"""Too long to be run: their arguments are read, and the recipes that they name are loaded with the
overrides."""
RUN = {
    "episodes",
    "view",
    "--version",
    "--help",
    "plan",
    "doctor",
    "launch",
    "report",
    "status",
    "recipes list",
    "recipes show",
    "recipes copy",
    "recipes schema",
}
"""Cheap enough to be run (`launch` as a dry run), beside what shows and checks the data, and makes a small
catalogue."""
RUN |= {"episodes", "view"}
RUN |= {
    f"data {benchmark} {command}"
    for benchmark in BENCHMARKS.names()
    for command in ("verify", "list", "prompt")
} | {"data webshop generate"}
