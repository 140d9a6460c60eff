"""`paw report`: tables and figures from run directories alone, and from files of outcomes of whoever else
played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from paw_hpc.evaluation.results import EvaluationResult, TypeResult, mean_score
from paw_hpc.recipe import IN_DOMAIN_SETS
from paw_hpc.study.report import cells, compare, predictions, verdicts
from paw_hpc.study.report.data import arms_data, differences_data
from paw_hpc.study.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    TableBlock,
    to_html,
    to_markdown,
)
from paw_hpc.study.report.evidence import PAGE, evidence
from paw_hpc.study.report.measures import mean_of_sets
from paw_hpc.study.report.notes import notes
from paw_hpc.study.report.runs import Arm, panel_key, panels, read_arms
from paw_hpc.system.storage import check_writable, storage_errors, write_atomically

__all__ = ["Report", "print_evaluation", "print_report", "write_report"]


CURVES = (
    "Learning curves, smoothed: each update of a single run as a point; several seeds as their mean "
    "and a band of one standard deviation"
)


@dataclass(frozen=True, slots=True)
class Report:
    """A written report: `blocks` are what it says, in order."""

    markdown: Path
    html: Path
    figures: tuple[Path, ...]
    blocks: tuple[Block, ...]
    data: dict[str, Any]
    """`arms` and `differences`, in numbers (see data.py)."""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Report:
    """Write report.md, report.html and the figures, and where episodes are kept episodes.html.

    Args:
        runs: run directories, or folders of them; the arm of the first is what the others are compared with.
            Files of outcomes are arms that were trained elsewhere.
        out: folder of the report; default `RUN/report` for one run, else `report`.

    Raises:
        DataError: a path without a run, or a damaged file.
        StorageError: full disk.
    """
    from paw_hpc.study.report import noise, plots  # matplotlib takes a second to import

    arms = read_arms(runs)
    out = out or (runs[0] / "report" if len(runs) == 1 and not runs[0].is_file() else Path("report"))
    check_writable(out)
    keys, trained = (
        [key for key in panels(arms) if any(arm.last(key) for arm in arms)],
        [arm for arm in arms if not arm.outside],
    )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        curves = [plots.plot_curves(trained, out / "curves.png")] if trained else []
        panel_figures = [
            plots.plot_panel(arms, key, out / f"panel-{number}.png") for number, key in enumerate(keys, 1)
        ]
        noise_figures = {
            key: noise.plot_noise(arms, key, out / f"noise-{number}.png")
            for number, key in enumerate(keys, 1)
        }
    shown = evidence(trained, out) if trained else []
    behind = PAGE if shown else None
    blocks: list[Block] = [Heading("Report: " + ", ".join(arm.label for arm in arms), 1)]
    for key, figure in zip(keys, panel_figures, strict=True):
        tables = [
            compare.panel_table(arms, key),
            compare.difference_table(arms, key),
            verdicts.paper_table(arms, key),
            compare.type_table(arms, key),
        ]
        blocks += [
            Heading(f"Evaluation on {compare.panel_name(key)}"),
            *(table for table in tables if table is not None),
        ]
        blocks.append(Figure(figure, f"Success on {compare.panel_name(key)}, with 95 % intervals", behind))
        blocks += [
            table
            for table in (predictions.prediction_table(arms, key), predictions.split_table(arms, key))
            if table is not None
        ]
        if (table := noise.noise_table(arms, key)) and (shares := noise_figures[key]):
            blocks += [table, Figure(shares, noise.CAPTION)]
    if not keys:
        blocks.append(
            Paragraph("No evaluation in these runs yet; `paw eval RUN --panel valid_seen` makes one.")
        )
    if trained:
        blocks += [Heading("Training"), compare.training_table(trained), Figure(curves[0], CURVES, behind)]
        if throughput := compare.throughput_table(trained):
            blocks += [Heading("Throughput"), throughput]
        blocks += shown
    blocks += [
        Heading("How to read this"),
        Bullets((*notes(arms, keys), *_verdicts(blocks))),
        Heading("Runs"),
        Bullets(_sources(arms)),
    ]
    markdown, html = out / "report.md", out / "report.html"
    write_atomically(markdown, to_markdown(blocks))
    write_atomically(html, to_html("paw report", blocks))
    data = {"arms": arms_data(arms), "differences": differences_data(arms, keys)}
    return Report(
        markdown, html, (*curves, *panel_figures, *filter(None, noise_figures.values())), tuple(blocks), data
    )


def print_report(report: Report, console: Console | None = None) -> None:
    """The tables, and where the files are."""
    console = console or Console()
    for block in report.blocks:
        if isinstance(block, TableBlock):
            _print(console, block)
            console.print()
    for path in (report.markdown, report.html, *report.figures):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def print_evaluation(result: EvaluationResult, console: Console | None = None) -> None:
    """One evaluation as a table: success, and the score where the benchmark has one, with intervals, all and
    per task type; observation cross-entropy."""
    console = console or Console()
    rows = []
    rates: dict[str, TypeResult | EvaluationResult] = {**result.per_task_type, "all": result}
    for name, rate in rates.items():
        of_type = [e for e in result.episodes if name in ("all", e.task_type)]
        score = _percent(*mean_score(of_type)) if result.scored else ()
        rows.append(
            (
                f"{name}{'*' if name in IN_DOMAIN_SETS else ''}",
                str(rate.games),
                *_percent(rate.success, rate.interval),
                *score,
            )
        )
    if average := mean_of_sets([result]):
        rows.append(
            ("mean of sets (* in domain)", "", *_percent(*average), *(("", "") if result.scored else ()))
        )
    after = f"after {result.update} updates" if result.update else "before any update"
    title = (
        f"{compare.panel_name(panel_key(result))}, {after}, {result.repeats} episode(s) per game, "
        f"{result.seconds:.0f} s"
    )
    _print(
        console,
        TableBlock(
            title,
            ("task type", "games", "success %", "95 %", *(("score %", "95 %") if result.scored else ())),
            tuple(rows),
        ),
    )
    if result.judged_by:
        console.print(f"protocol: {result.judged_by}", highlight=False, markup=False, soft_wrap=True)
    if result.observation_ce is not None:
        console.print(
            f"observation cross-entropy {cells.ce_cell([result])} nats/token over "
            f"{result.observation_tokens} tokens",
            highlight=False,
            markup=False,
        )
    for p in (p for p in result.predictions if p.split == "all"):
        exact = (
            f", exact {100 * p.exact:.1f} % (copy {100 * p.copy_exact:.1f} %)"
            if p.exact is not None and p.copy_exact is not None
            else ""
        )
        console.print(
            f"next observations, {p.source} play: CE {p.ce:.3f} (copy {p.copy_ce:.3f}){exact}",
            highlight=False,
            markup=False,
        )
    if result.environment_failures:
        console.print(
            f"the environment broke {result.environment_failures} episodes; they are in no rate",
            highlight=False,
        )


def _percent(success: float, interval: tuple[float, float]) -> tuple[str, str]:
    return f"{100 * success:.1f}", f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"


def _print(console: Console, block: TableBlock) -> None:
    """The way round that fits; where neither does, as wide as it needs: a folded number is worse than a long
    line, above all in a log file."""
    as_given, turned = _rich(block), _rich(block.turned())
    width = {
        id(table): Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        for table in (as_given, turned)
    }
    table = turned if width[id(turned)] <= console.width < width[id(as_given)] else as_given
    wide = Console(
        file=console.file,
        width=max(width[id(table)], console.width),
        force_terminal=console.is_terminal,
        no_color=console.no_color,
    )
    wide.print(table, highlight=False)


def _rich(block: TableBlock) -> Table:
    table = Table(
        title=escape(block.title), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for number, name in enumerate(block.header):
        table.add_column(escape(name), justify="left" if number == 0 else "right")
    for row in block.rows:
        table.add_row(*map(escape, row))
    return table


def _verdicts(blocks: Sequence[Block]) -> tuple[str, ...]:
    return (
        (verdicts.NOTE,)
        if any(isinstance(block, TableBlock) and block.title == verdicts.TITLE for block in blocks)
        else ()
    )


def _sources(arms: Sequence[Arm]) -> tuple[str, ...]:
    """One line per arm: where its runs are, their seeds, how far they came."""
    lines = []
    for arm in arms:
        if arm.outside:
            lines.append(
                f"{arm.label}, trained elsewhere: "
                + ", ".join(f"{run.path} (seed {run.recipe.seed})" for run in arm.runs)
            )
            continue
        done = sorted({f"{len(run.metrics)} of {run.recipe.updates}" for run in arm.runs})
        runs = ", ".join(f"{run.path} (seed {run.recipe.seed})" for run in arm.runs)
        lines.append(f"{arm.label}, {' / '.join(done)} updates: {runs}")
        lines += [f"{arm.label} was changed on its way: {change}" for change in arm.runs[0].changes]
    return tuple(lines)
