"""The report says what the run directories hold: numbers computed again from the data, arms rightly grouped,
figures that show every arm."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors, image
from rich.console import Console

from paw_hpc.evaluation.results import Prediction, write_evaluation
from paw_hpc.evaluation.statistics import crossed_mean, paired_difference, success_interval
from paw_hpc.recipe import parse_recipe
from paw_hpc.recipe.protocols import protocol
from paw_hpc.study.report import compare, plots, predictions, print_evaluation, print_report, write_report
from paw_hpc.study.report.cells import ABSENT
from paw_hpc.study.report.document import TableBlock
from paw_hpc.study.report.measures import phase_seconds
from paw_hpc.study.report.runs import panels, read_arms
from paw_hpc.system.errors import CheckpointError, DataError
from tests.report.synthetic import draw, evaluation, recipe, training_metrics, write_run

START = draw(0, 30, 0.4, repeats=2)
VANILLA = draw(1, 30, 0.5, repeats=2)
PAW = draw(2, 30, 0.7, repeats=2)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, wm, end in (("grpo", False, VANILLA), ("grpo-paw", True, PAW)):
        evaluations = [evaluation(START, update=0, ce=1.1), evaluation(end, update=30, ce=0.7 if wm else 1.2)]
        write_run(
            folder / name, recipe(name, wm=wm), training_metrics(int(wm), 30, gain=0.2, wm=wm), evaluations
        )
    return folder


def cells(table: TableBlock, row: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if r[0] == row]
    return dict(zip(table.header, found, strict=True))


def percent(outcomes: list[list[bool]]) -> str:
    flat = [won for game in outcomes for won in game]
    low, high = success_interval(flat, [i for i, game in enumerate(outcomes) for _ in game])
    return f"{100 * np.mean(flat):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_the_panel_table_is_what_the_episodes_say(two_runs: Path) -> None:
    arms = read_arms([two_runs])
    (key,) = panels(arms)
    table = compare.panel_table(arms, key)
    assert [row[0] for row in table.rows] == ["before training", "grpo", "grpo-paw"]
    assert cells(table, "before training")["success % [95 %]"] == percent(START)
    paw = cells(table, "grpo-paw")
    assert paw["success % [95 %]"] == percent(PAW) != percent(VANILLA)
    assert paw["observation CE"] == "0.700 [0.650, 0.750]"
    assert paw["episodes trained on"] == "1,440" and paw["updates"] == "30"
    assert paw["n"] == "1 × 30 × 2" and paw["± seeds"] == ABSENT
    throughput = compare.throughput_table(arms)
    assert throughput is not None
    seconds = [
        np.mean([m["time/update_s"] for m in training_metrics(arm, 30, gain=0.2, wm=bool(arm))])
        for arm in (0, 1)
    ]
    assert [row[1:3] for row in throughput.rows] == [
        (f"{seconds[0]:.2f}", "1"),
        (f"{seconds[1]:.2f}", f"{seconds[1] / seconds[0]:.3f}"),
    ]


def test_the_type_table_counts_only_games_of_the_type(two_runs: Path) -> None:
    arms = read_arms([two_runs])
    row = cells(compare.type_table(arms, panels(arms)[0]), "grpo-paw")
    assert list(row) == [
        "success %",
        "Pick (5)",
        "Look (5)",
        "Clean (5)",
        "Heat (5)",
        "Cool (5)",
        "Pick2 (5)",
        "All",
    ]
    assert row["Clean (5)"] == percent(PAW[2::6]) and row["All"] == percent(PAW)


def test_differences_are_paired_by_game_and_read_by_their_interval(two_runs: Path) -> None:
    arms = read_arms([two_runs])
    table = compare.difference_table(arms, panels(arms)[0])
    assert table is not None
    row = cells(table, "grpo-paw - grpo")
    of = [
        {f"valid/{i:03d}": [float(w) for w in game] for i, game in enumerate(outcomes)}
        for outcomes in (VANILLA, PAW)
    ]
    expected = paired_difference(*of)
    assert (
        row["difference, points [95 %]"]
        == f"{100 * expected.difference:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    )
    assert row["n"] == "1 × 30" and row["reading"] == compare.reading(expected)
    assert {r[0] for r in table.rows} == {"grpo: end - start", "grpo-paw: end - start", "grpo-paw - grpo"}


def test_a_difference_of_noise_is_called_noise() -> None:
    games = {f"g{i}": [float(i % 2)] for i in range(40)}
    swapped = {f"g{i}": [float((i + (i < 4)) % 2)] for i in range(40)}
    better = {f"g{i}": [1.0] for i in range(40)}
    assert compare.reading(paired_difference(games, swapped)) == "within noise"
    assert compare.reading(paired_difference(games, better)) == "higher"
    assert compare.reading(paired_difference(better, games)) == "lower"
    # Three of three games better: a bootstrap never sees anything else, and chance does it one time in four.
    three = paired_difference({f"g{i}": [0.0] for i in range(3)}, {f"g{i}": [1.0] for i in range(3)})
    assert three.low > 0 and three.p_value == 0.25 and compare.reading(three) == "within noise"


def test_the_training_table_shows_both_ends_and_no_invented_numbers(two_runs: Path) -> None:
    table = compare.training_table(read_arms([two_runs]))
    metrics = training_metrics(1, 30, gain=0.2, wm=True)
    first, last = (
        100 * np.mean([m["train/success"] for m in part]) for part in (metrics[:10], metrics[-10:])
    )
    assert cells(table, "grpo-paw")["success %"] == f"{first:.1f} → {last:.1f}"
    assert cells(table, "grpo")["WM loss"] == cells(table, "grpo")["lambda"] == ABSENT


def test_seeds_of_one_recipe_are_one_arm_and_other_recipes_are_not(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(
            tmp_path / f"a-s{seed}",
            recipe("a", seed=seed),
            [],
            [evaluation(draw(seed, 20, 0.3 + 0.3 * seed), update=60, ce=1.0 + seed)],
        )
    write_run(tmp_path / "other", recipe("a", optimizer={"lr": 1e-5}), [], [])
    write_run(tmp_path / "longer", recipe("a", seed=2, updates=999), [], [])  # a harmless key
    arms = read_arms([tmp_path / name for name in ("a-s0", "a-s1", "other", "longer")])
    assert [[run.path.name for run in arm.runs] for arm in arms] == [["a-s0", "a-s1", "longer"], ["other"]]
    assert [arm.label for arm in arms] == ["a (a-s0)", "a (other)"]
    row = cells(compare.panel_table(arms, panels(arms)[0]), "a (a-s0)")
    table = np.array([np.ravel(draw(seed, 20, 0.3 + 0.3 * seed)) for seed in (0, 1)], dtype=float)
    mean = crossed_mean(table)
    low, high = max(0.0, mean.low), min(1.0, mean.high)
    assert row["success % [95 %]"] == f"{100 * table.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert row["± seeds"] == f"{100 * np.std(table.mean(axis=1), ddof=1):.1f}" and row["n"] == "2 × 20 × 1"
    assert row["observation CE"] == "1.500 ± 0.707"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four arms of three seeds, and the policy that all began with, as `paw eval MODEL --out FOLDER` leaves
    it."""
    folder = tmp_path_factory.mktemp("study")
    write_evaluation(folder / "mini-start", evaluation(START, update=0))
    changes = {
        "ce": {"loss": "cross_entropy", "coefficient": "constant", "scale": 0.05},
        "paw": {},
        "shuffled": {"target": "shuffled"},
    }
    for number, (arm, wm) in enumerate({**changes, "vanilla": {"enabled": False}}.items()):
        for seed in range(3):
            end = evaluation(draw(10 * seed + number, 30, 0.5 + 0.1 * number, repeats=2), update=60)
            of = recipe(f"mini-{arm}", seed=seed, wm=True).model_dump(mode="json")
            of["wm"] |= wm
            write_run(
                folder / f"mini-{arm}-s{seed}",
                parse_recipe(of),
                training_metrics(seed, 5, gain=0.2, wm=arm != "vanilla"),
                [end],
            )
    return folder


def test_a_study_is_grouped_by_arm_and_compared_without_being_told(study: Path, tmp_path: Path) -> None:
    arms = read_arms(sorted(study.iterdir()))
    assert [(arm.label, arm.seeds) for arm in arms] == [
        (f"mini-{name}", (0, 1, 2)) for name in ("vanilla", "ce", "paw", "shuffled")
    ]
    (key,) = panels(arms)
    assert [row[0] for row in compare.panel_table(arms, key).rows] == [
        "before training",
        *(arm.label for arm in arms),
    ]
    table = compare.difference_table(arms, key)
    assert table is not None
    names = [
        "mini-ce - mini-vanilla",
        "mini-paw - mini-vanilla",
        "mini-shuffled - mini-vanilla",
        "mini-paw - mini-shuffled",
    ]
    assert [row[0] for row in table.rows] == names + [f"{arm.label}: end - start" for arm in arms]
    of_arm = {
        number: np.array(
            [np.mean(draw(10 * s + number, 30, 0.5 + 0.1 * number, repeats=2), axis=1) for s in range(3)]
        )
        for number in range(4)
    }
    expected = crossed_mean(of_arm[1] - of_arm[2])
    row = cells(table, "mini-paw - mini-shuffled")
    assert (
        row["difference, points [95 %]"]
        == f"{100 * expected.mean:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    )
    assert (
        row["n"] == "3 × 30"
        and row["seeds higher"] == f"{(of_arm[1].mean(1) > of_arm[2].mean(1)).sum()} of 3"
    )
    start = crossed_mean(of_arm[3] - np.mean(START, axis=1))
    assert cells(table, "mini-vanilla: end - start")["difference, points [95 %]"].startswith(
        f"{100 * start.mean:+.1f} [{100 * start.low:+.1f}"
    )
    assert (
        cells(table, "mini-paw - mini-vanilla")["the paper's"] == "+7.9 (1.5B)"
        and row["the paper's"] == ABSENT
    )
    assert read_arms([study])[0].label == "mini-vanilla"  # the folder of all of them says the same


def test_a_start_that_was_played_by_other_rules_is_refused(study: Path, tmp_path: Path) -> None:
    write_evaluation(
        tmp_path / "start", dataclasses.replace(evaluation(START, update=0), protocol="20 steps")
    )
    with pytest.raises(DataError, match=r"played with 20 steps, those of the runs with .*paw eval RECIPE"):
        read_arms([study / "mini-paw-s0", tmp_path / "start"])


def predicted(source: str, split: str, ce: float, exact: float) -> Prediction:
    return Prediction(
        source, split, 40, 600, ce, (ce - 0.1, ce + 0.1), 0.9, 40, exact, (exact - 0.05, exact + 0.05), 0.25
    )


def test_predictions_stand_beside_the_copiers(tmp_path: Path) -> None:
    for seed, ce in ((0, 0.5), (1, 0.7)):
        rows = [
            predicted(source, split, ce, 0.5)
            for source in ("own", "foreign")
            for split in ("all", "success", "failure", "look_at_obj_in_light")
        ]
        end = dataclasses.replace(evaluation(PAW, update=60), predictions=tuple(rows))
        write_run(
            tmp_path / f"paw-s{seed}",
            recipe("paw", seed=seed),
            training_metrics(seed, 5, gain=0.2, wm=True),
            [end],
        )
    arms = read_arms([tmp_path])
    table, splits = (
        predictions.prediction_table(arms, panels(arms)[0]),
        predictions.split_table(arms, panels(arms)[0]),
    )
    assert table is not None and splits is not None
    assert table.rows[0] == (
        "paw (2 seeds)",
        "own play",
        "80",
        "0.600 ± 0.141",
        "0.900",
        "50.0 ± 0.0",
        "25.0",
    )
    assert [row[1] for row in table.rows] == ["own play", "the start's play"]
    # no Pick games were measured
    assert splits.rows[1][2:5] == ("0.60 (0.90) / 50 (25)", "0.60 (0.90) / 50 (25)", ABSENT)
    one = read_arms([tmp_path / "paw-s0"])
    alone = predictions.prediction_table(one, panels(one)[0])
    assert alone is not None and alone.rows[0][3] == "0.500 [0.400, 0.600]"
    text = write_report([tmp_path], tmp_path / "out").markdown.read_text()
    assert predictions.NOTE in text and "| paw (2 seeds) | the start's play | 80 |" in text


def test_evaluations_of_a_trained_policy_need_their_run(study: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "lost", evaluation(PAW, update=60))
    with pytest.raises(DataError, match="without its run"):
        read_arms([study / "mini-paw-s0", tmp_path / "lost"])
    with pytest.raises(DataError, match="evaluations only"):
        read_arms([study / "mini-start"])


def test_different_games_under_one_panel_name_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", recipe("a"), [], [evaluation(VANILLA, update=60, checksum="one")])
    write_run(tmp_path / "b", recipe("b", wm=False), [], [evaluation(PAW, update=60, checksum="two")])
    report = write_report([tmp_path])
    tables = [block for block in report.blocks if isinstance(block, TableBlock)]
    assert not [t for t in tables if t.title == "Differences"]
    assert sum("valid_seen" in t.title for t in tables) == 2
    assert "checksums differ" in report.markdown.read_text()


def test_starts_that_differ_are_shown_apart(tmp_path: Path) -> None:
    for name, start in (("a", START), ("b", VANILLA)):
        write_run(
            tmp_path / name,
            recipe(name, wm=name == "b"),
            [],
            [evaluation(start, update=0), evaluation(PAW, update=60)],
        )
    arms = read_arms([tmp_path])
    assert [name for name, _ in compare.starts(arms, panels(arms)[0])] == [
        "before training, a",
        "before training, b",
    ]


def test_the_paper_stands_beside_runs_of_its_scale_and_only_those(tmp_path: Path) -> None:
    like_the_paper = protocol("reference", "alfworld").model_dump(mode="json", exclude={"name", "seed", "wm"})
    write_run(tmp_path / "paw", recipe("paw", **like_the_paper), [], [evaluation(PAW, update=150)])
    text = write_report([tmp_path]).markdown.read_text()
    numbers = "87.8 ± 3.6 | 59.3 ± 8.9 | 84.5 ± 1.7 | 73.7 ± 4.3 | 75.4 ± 8.4 | 69.6 ± 3.5 | 77.9 ± 2.7"
    assert f"| paper: 1.5B GRPO+PaW (above: reference) | {numbers} |" in text
    assert (
        "paw: protocol reference, in every key." in text
        and "paw: departs from ours: " in text
        and "departs from reference" not in text
    )
    short = recipe("short", **like_the_paper | {"updates": 9})
    write_run(tmp_path / "short", short, [], [evaluation(PAW, update=9)])
    text = write_report([tmp_path / "short"]).markdown.read_text()
    assert f"| paper: 1.5B GRPO+PaW (above: reference but for 1 key) | {numbers} |" in text
    assert (
        "short: the recipe says `protocol: reference`, and its keys disagree: updates: 9 (reference: 150)."
        in text
    )


def test_tiny_models_are_not_set_beside_the_paper(two_runs: Path, tmp_path: Path) -> None:
    text = write_report([two_runs], tmp_path).markdown.read_text()
    assert "| paper:" not in text and "The paper's numbers are left out" in text


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_report_is_complete_self_contained_and_leaves_the_runs_alone(
    two_runs: Path, tmp_path: Path
) -> None:
    before = digest(two_runs)
    report = write_report([two_runs / "grpo", two_runs / "grpo-paw"], tmp_path / "out")
    assert digest(two_runs) == before
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.md",
        "report.html",
        "curves.png",
        "panel-1.png",
    }
    markdown, page = report.markdown.read_text(), report.html.read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown):
        assert (tmp_path / "out" / name).is_file()
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == [] and page.count("data:image/png;base64,") == 2
    for expected in (percent(PAW), percent(VANILLA), "grpo-paw - grpo"):
        assert expected in markdown and expected in page


def has_colour(picture: Path, colour: str) -> bool:
    pixels = image.imread(picture)[..., :3]
    return bool((np.abs(pixels - np.array(colors.to_rgb(colour))).max(axis=-1) < 0.02).sum() > 50)


def test_every_arm_is_in_every_figure(two_runs: Path, tmp_path: Path) -> None:
    both = write_report([two_runs], tmp_path / "both").figures
    one = write_report([two_runs / "grpo"], tmp_path / "one").figures
    for figure in both:
        assert has_colour(figure, plots.COLOURS[0]) and has_colour(figure, plots.COLOURS[1])
    for figure in one:
        assert has_colour(figure, plots.COLOURS[0]) and not has_colour(figure, plots.COLOURS[1])


def test_a_run_without_a_single_update_still_gives_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "empty", recipe("empty"), [], [])
    report = write_report([tmp_path / "empty"])
    assert report.markdown == tmp_path / "empty/report/report.md"
    assert "No evaluation in these runs yet" in report.markdown.read_text()


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no run here"):
        write_report([tmp_path / "nowhere"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/recipe.yaml").write_text("unheard_of: 1\n")
    with pytest.raises(CheckpointError, match="unheard_of"):
        write_report([tmp_path / "broken"])


def test_smoothing_keeps_constants_and_equals_its_formula() -> None:
    updates = np.array([0, 1, 2, 5, 9])
    assert plots.smooth(updates, np.full(5, 3.0), 2.0) == pytest.approx(3.0)
    values = np.array([1.0, 0.0, 2.0, 5.0, 1.0])
    slow = []
    for u in updates:
        kernel = [np.exp(-(((u - v) / 2.0) ** 2) / 2) for v in updates]
        slow.append(sum(k * x for k, x in zip(kernel, values, strict=True)) / sum(kernel))
    assert plots.smooth(updates, values, 2.0) == pytest.approx(slow)
    assert np.ptp(plots.smooth(updates, values, 50.0)) < 0.1 < np.ptp(plots.smooth(updates, values, 0.1))


def test_phases_and_the_rest_make_up_the_update(two_runs: Path) -> None:
    arm = read_arms([two_runs / "grpo-paw"])[0]
    seconds = phase_seconds(arm)
    assert list(seconds) == ["collect", "score", "plan", "train", "publish", "other"]
    assert sum(seconds.values()) == pytest.approx(arm.runs[0].series("time/update_s")[1].mean())
    assert seconds["other"] == pytest.approx(0.2) and seconds["train"] == pytest.approx(1.5)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_printed_tables_show_whole_numbers_on_any_terminal(
    two_runs: Path, tmp_path: Path, width: int
) -> None:
    out = StringIO()
    report = write_report([two_runs], tmp_path)
    print_report(report, Console(file=out, width=width))
    text = out.getvalue()
    for expected in (percent(PAW), percent(START), percent(PAW[2::6]), str(report.html)):
        assert expected in text
    assert "…" not in text


def test_an_evaluation_prints_every_type_and_all() -> None:
    out = StringIO()
    print_evaluation(evaluation(PAW, update=3, ce=0.9), Console(file=out, width=100))
    text = out.getvalue()
    assert (
        "pick_two_obj_and_place" in text
        and f"{100 * np.mean(PAW):.1f}" in text
        and "0.900 [0.850, 0.950] nats/token over 5000" in text
    )


def test_a_score_of_its_own_has_its_columns(tmp_path: Path) -> None:
    """Where a benchmark grades an episode, the mean score stands beside success; elsewhere there is no such
    column."""
    outcomes = draw(3, 30, 0.5)
    plain = evaluation(outcomes, update=60)
    graded = dataclasses.replace(
        plain,
        episodes=tuple(dataclasses.replace(e, score=1.0 if e.success else 0.25) for e in plain.episodes),
    )
    for result, expected in ((plain, False), (graded, True)):
        path = write_run(
            tmp_path / str(expected), recipe("graded"), training_metrics(0, 5, gain=0.1, wm=True), [result]
        )
        arms = read_arms([path])
        key = panels(arms)[0]
        header = compare.panel_table(arms, key).header
        assert (
            ("score % [95 %]" in header) == (compare.type_table(arms, key).header[-1] == "Score") == expected
        )
        console = Console(file=(out := StringIO()), width=200)
        print_evaluation(result, console)
        assert ("score %" in out.getvalue()) == expected
    wins = sum(e.success for e in graded.episodes)
    mean = (wins + 0.25 * (30 - wins)) / 30
    assert cells(compare.panel_table(arms, key), "graded")["score % [95 %]"].startswith(f"{100 * mean:.1f} [")


def test_the_sets_of_search_qa_are_marked_and_averaged(tmp_path: Path) -> None:
    """On two sets of unequal size the paper's average is the mean of the sets, not that of the questions."""
    plain = evaluation(draw(3, 30, 0.5), update=60)
    sets = ["nq"] * 24 + ["bamboogle"] * 6
    won = [True] * 12 + [False] * 12 + [True] * 6
    of_sets = [
        dataclasses.replace(e, task_type=s, success=w, score=float(w))
        for e, s, w in zip(plain.episodes, sets, won, strict=True)
    ]
    facts = {
        name: getattr(plain, name)
        for name in ("label", "panel", "panel_checksum", "temperature", "update", "seconds")
    }
    result = type(plain).of_episodes(of_sets, **facts)
    settings = {"env": {"name": "search", "max_steps": 4, "history": 4}, "eval": {"panel": "test"}}
    path = write_run(
        tmp_path / "run", recipe("search", **settings), training_metrics(0, 5, gain=0.1, wm=True), [result]
    )
    arms = read_arms([path])
    table = compare.type_table(arms, panels(arms)[0])
    assert table.header == ("success %", "NQ* (24)", "Bam (6)", "All", "Avg")
    assert [cell.split(" ")[0] for cell in table.rows[0][1:]] == ["50.0", "100.0", "60.0", "75.0"]
    print_evaluation(result, Console(file=(out := StringIO()), width=200))
    assert (
        "nq*" in out.getvalue()
        and "mean of sets (* in domain)" in out.getvalue()
        and "75.0" in out.getvalue()
    )


def test_the_same_arm_of_another_set_up_is_compared_with_the_first(tmp_path: Path) -> None:
    folders = []
    for name, statistics in (("ours", "episodes"), ("reference", "samples")):
        for arm in (False, True):
            of = recipe(f"{name}-{arm}", wm=arm, algorithm={"statistics": statistics})
            played = [evaluation(draw(seed, 6, 0.5), update=3) for seed in (0,)]
            folders.append(
                write_run(tmp_path / of.name, of, training_metrics(0, 3, gain=0.1, wm=arm), played)
            )
    report = write_report(folders, tmp_path / "out").markdown.read_text()
    assert "| reference-False - ours-False |" in report and "| reference-True - ours-True |" in report
    assert "| reference-True - reference-False |" in report and "reference-True - ours-False" not in report
