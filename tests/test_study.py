"""A study on one machine: what it trains, judges and pairs, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from paw_hpc.evaluation.panel import Evaluation
from paw_hpc.evaluation.results import EvaluationResult, read_evaluations
from paw_hpc.recipe import Recipe
from paw_hpc.study import local
from paw_hpc.study.sweep import is_sweep, load_sweep
from paw_hpc.system.errors import RecipeError
from tests.report.synthetic import draw, evaluation

STUDIES = sorted(
    path for path in (Path(__file__).parents[1] / "recipes" / "miniature").glob("*.yaml") if is_sweep(path)
)
SWEEP = """
sweep: tiny
choices: choices.yaml
name: "{game}-{arm}"
seeds: [3]
runs: [{game: g, arm: [vanilla, paw]}]
"""
CHOICES = """
game: {g: {base: recipe.yaml}, talk: {base: talk.yaml}}
arm: {vanilla: {wm: {enabled: false}}, paw: {wm: {enabled: true}}, other: {env: {max_steps: 2}}}
"""
RECIPE = """
updates: 1
threads: 1
env: {task_types: [pick_and_place_simple], prompt: compact, max_steps: 3, workers: 1}
model: {path: warm-start}
rollout: {groups: 2, group_size: 2, max_prompt_tokens: 512, max_response_tokens: 8}
algorithm: {kl_coefficient: 0.0, old_logp: rollout}
optimizer: {lr: 1.0e-3}
eval: {panel: "valid_seen:2@0", temperature: 1.0}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    talk = {"base": "recipe.yaml", "env": {"prompt": "compact-conversation", "history": "all"}}
    texts = {"sweep": SWEEP, "choices": CHOICES, "recipe": RECIPE, "talk": yaml.safe_dump(talk)}
    for name, text in ((f"{name}.yaml", text) for name, text in texts.items()):
        (tmp_path / name).write_text(text)
    return tmp_path / "sweep.yaml"


def test_runs_that_do_not_share_the_panel_or_the_start_are_refused(sweep: Path) -> None:
    sweep.write_text(SWEEP.replace("[vanilla, paw]", "[vanilla, other]"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml: env: g-other-s3 differs from g-vanilla-s3"):
        local.run_sweep(sweep, [], sweep.parent / "out", 2)
    assert not (sweep.parent / "out").exists()


def test_runs_may_differ_in_what_training_calls_invalid(sweep: Path) -> None:
    def planned(label: str, *changes: str) -> local.PlannedRun:
        return local.PlannedRun(label, sweep.parent / "recipe.yaml", changes, sweep.parent / label)

    alike = [planned("a"), planned("b", "env.validity=format"), planned("c", "env.invalid_penalty=1.5")]
    local._check_alike(alike, {one.label: one.recipe for one in alike})
    other = [planned("a"), planned("b", "env.validity=format", "env.max_steps=7")]
    with pytest.raises(RecipeError, match="env: b differs from a"):
        local._check_alike(other, {one.label: one.recipe for one in other})


def test_each_prompt_has_a_start_of_its_own(sweep: Path) -> None:
    def planned(label: str, *changes: str) -> local.PlannedRun:
        return local.PlannedRun(label, sweep.parent / "recipe.yaml", changes, sweep.parent / label)

    talk = ("env.prompt=compact-conversation", "env.history=all")
    own = "model.path=warm-start-generated"
    alike = [planned("a"), planned("b", *talk, own), planned("c"), planned("d", *talk, own)]
    local._check_alike(alike, {one.label: one.recipe for one in alike})
    for name, changes in {"model: e differs from b": talk, "model: e differs from a": (own,)}.items():
        other = [*alike, planned("e", *changes)]
        with pytest.raises(RecipeError, match=name):
            local._check_alike(other, {one.label: one.recipe for one in other})


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_what_ships_as_a_study_can_be_trained_and_judged_together(path: Path, tmp_path: Path) -> None:
    runs = [local.PlannedRun(one.name, one.base, one.changes, tmp_path) for one in load_sweep(path).variants]
    local._check_alike(runs, {one.label: one.recipe for one in runs})
    prompts = {local._prompt(one.recipe) for one in runs}
    assert len(runs) > 1 and (len(prompts) == 2) == (path.stem == "conversation")


def test_a_run_that_fails_ends_the_study(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not local.run_sweep(sweep, ["rollout.max_prompt_tokens=3"], sweep.parent / "out", 2)
    assert "max_prompt_tokens" in capfd.readouterr().err


def test_every_run_is_judged_beside_the_start_and_a_second_call_does_nothing_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = sweep.parent / "out"
    assert local.run_sweep(sweep, [], out, 2)
    results = {arm: read_evaluations(out / f"g-{arm}-s3") for arm in ("vanilla", "paw")}
    for before, after in results.values():
        assert (before.label, before.update, after.label, after.update) == ("start", 0, "end", 1)
        assert (
            before.observation_tokens == after.observation_tokens
            and before.observation_ce != after.observation_ce
        )  # the start's play, judged by both
    starts, ends = ([result[i] for result in results.values()] for i in (0, 1))
    assert starts[0] == starts[1] and played(ends[0]) == played(ends[1]) == played(starts[0])
    assert starts[1].observation_ce != ends[1].observation_ce != ends[0].observation_ce
    assert "g-paw" in (out / "report" / "report.md").read_text()

    monkeypatch.setattr(local, "_judge", None)
    monkeypatch.setattr(local.processes, "run_together", None)
    assert local.run_sweep(sweep, [], out, 2)


class Inline:
    """A pool that works in this process."""

    def __init__(self, *_: Any, **__: Any): ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def pretended(monkeypatch: pytest.MonkeyPatch, done: Mapping[str, list[Any]]) -> list[tuple[Any, ...]]:
    """Nothing is trained or played; what would be is logged. `done`: evaluations that are there already."""
    log: list[tuple[Any, ...]] = []

    def judge(recipe: Recipe, run: Path | None, observed: Any) -> Evaluation:
        log.append(("judged", recipe.seed, run and run.name, observed))
        talk = " in conversation" if recipe.env.conversation else ""
        play: Any = [] if observed else f"play of seed {recipe.seed}{talk}"
        return Evaluation(evaluation(draw(0, 2, 0.5), update=0 if run is None else 1), play)

    monkeypatch.setattr(local, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(local, "_judge", judge)
    monkeypatch.setattr(
        local,
        "_train",
        lambda runs, *_: log.append(("trained", *(planned.label for planned in runs))) or True,
    )
    monkeypatch.setattr(local, "read_evaluations", lambda directory: done.get(directory.name, []))
    monkeypatch.setattr(
        local, "write", lambda directory, evaluation, recipe: log.append(("written", directory.name))
    )
    monkeypatch.setattr(local, "write_report", lambda *_: None)
    monkeypatch.setattr(local, "print_report", lambda _: None)
    return log


def test_seeds_are_judged_one_after_the_other_on_the_play_of_the_first(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first was judged before: then its start is played again, and nothing of it is
    written."""
    done: dict[str, list[Any]] = {}
    log = pretended(monkeypatch, done)
    sweep.write_text(SWEEP.replace("[3]", "[3, 4]"))
    local.run_sweep(sweep, [], sweep.parent / "out", 2)
    of_3 = [("trained", "g-vanilla-s3", "g-paw-s3"), ("judged", 3, None, None)]
    of_3 += [("judged", 3, name, "play of seed 3") for name in ("g-vanilla-s3", "g-paw-s3")]
    of_4 = [
        ("judged", 4, None, "play of seed 3"),
        *(("judged", 4, name, "play of seed 3") for name in ("g-vanilla-s4", "g-paw-s4")),
    ]
    assert [entry for entry in log if entry[0] != "written"] == [
        *of_3,
        ("trained", "g-vanilla-s4", "g-paw-s4"),
        *of_4,
    ]

    log.clear()
    before, after = (
        dataclasses.replace(evaluation(draw(0, 2, 0.5), update=update), label=label)
        for update, label in ((0, "start"), (1, "end"))
    )
    done |= {name: [before, after] for name in ("g-vanilla-s3", "g-paw-s3")}
    local.run_sweep(sweep, [], sweep.parent / "out", 2)
    assert [entry for entry in log if entry[0] == "judged"] == [("judged", 3, None, None), *of_4]
    assert {entry[1] for entry in log if entry[0] == "written"} == {"g-vanilla-s4", "g-paw-s4"}


def test_starts_that_see_other_prompts_are_judged_apart(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pretended(monkeypatch, {})
    sweep.write_text(SWEEP.replace("[3]", "[3, 4]").replace("game: g", "game: [g, talk]"))
    local.run_sweep(sweep, [], sweep.parent / "out", 2)
    plays = {"g": "play of seed 3", "talk": "play of seed 3 in conversation"}
    of_3, of_4 = [], []
    for name, play in plays.items():
        of_3 += [("judged", 3, None, None)]
        of_3 += [("judged", 3, f"{name}-{arm}-s3", play) for arm in ("vanilla", "paw")]
        of_4 += [("judged", 4, None, play)]
        of_4 += [("judged", 4, f"{name}-{arm}-s4", play) for arm in ("vanilla", "paw")]
    assert [entry for entry in log if entry[0] == "judged"] == [*of_3, *of_4]
    written = [entry[1] for entry in log if entry[0] == "written"]
    labels = [f"{name}-{arm}-s{seed}" for name in plays for arm in ("vanilla", "paw") for seed in (3, 4)]
    assert sorted(written) == sorted(2 * labels)  # the start and the end of each


def played(result: EvaluationResult) -> list[tuple[str, int]]:
    return [(episode.task_id, episode.seed) for episode in result.episodes]
