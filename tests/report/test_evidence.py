"""What the report shows of kept episodes is chosen by its rule, and leads to the episodes behind it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pytest

from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.episodes.schema import STEP
from paw_hpc.study.report import write_report
from paw_hpc.study.report.document import Heading, Links, TableBlock, to_html, to_markdown
from paw_hpc.study.report.evidence import RULE, examples
from tests.episodes import made
from tests.report.synthetic import draw, evaluation, recipe, training_metrics, write_run


def evaluated(nats: dict[tuple[int, int], float], texts: dict[tuple[int, int], str]) -> pa.Table:
    """An evaluation of episodes of three steps, member 0 of each group; (group, step) -> nats per token and
    text of the next observation."""
    [row, *_] = made.rows().to_pylist()
    rows = []
    for group, step in sorted(nats):
        text = texts.get((group, step), f"observation {group} {step}")
        ids = [ord(c) for c in text]
        own = {
            "group": group,
            "member": 0,
            "step": step,
            "steps": 3,
            "action": f"act {step}",
            "prompt": f"prompt {group} {step}",
            "observation": text,
        }
        own |= {
            "observation_ids": ids,
            "observation_ends": list(range(1, len(ids) + 1)),
            "observation_logp": [-nats[group, step]] * len(ids),
        }
        own |= {"purpose": "eval", "task_id": f"task {group}", "silenced": None}
        rows.append(row | own)
    return pa.Table.from_pylist(rows, schema=STEP.with_metadata(made.rows().schema.metadata))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "paw"
    write_run(
        path,
        recipe("paw", wm=True),
        training_metrics(1, 30, gain=0.2, wm=True),
        [evaluation(draw(2, 30, 0.7), update=30, ce=0.7)],
    )
    texts = {(2, 1): "the same", (2, 2): "the same", (3, 1): "oh", (4, 1): "<b>*bold*</b> | [x](y)\x1b[2J"}
    every = {(group, step): 1.0 + 0.01 * (3 * group + step) for group in range(6) for step in range(3)}
    start = every | {(0, 1): 5.0, (1, 2): 3.0, (5, 1): 0.5}
    end = every | {
        (0, 0): 0.01,
        (2, 2): 0.02,
        (3, 1): 0.03,
        (0, 2): 0.1,
        (1, 1): 0.2,
        (4, 1): 9.0,
        (4, 2): 8.0,
        (1, 0): 10.0,
    }
    writer = EpisodeFolder(path, made.ALL)
    writer.write_evaluation(0, "start", evaluated(start, texts))
    writer.write_evaluation(30, "end", evaluated(end, texts))
    writer.write_update(29, made.rows(29))
    return path


def test_the_rule(run: Path) -> None:
    """No first step, no repetition of the observation before, none of fewer than five tokens."""
    found = [
        (e.kind, e.place[2], e.step, round(e.nats, 3), e.before and round(e.before, 3)) for e in examples(run)
    ]
    assert found[:2] == [("best predicted", 0, 2, 0.1, None), ("best predicted", 1, 1, 0.2, None)]
    assert found[3:5] == [("worst predicted", 4, 1, 9.0, None), ("worst predicted", 4, 2, 8.0, None)]
    assert found[6:] == [
        ("learnt", 0, 1, 1.01, 5.0),
        ("learnt", 1, 2, 1.05, 3.0),
        ("learnt", 0, 2, 0.1, 1.02),
    ]
    assert all(e.place[1] == "eval_000030_end" for e in examples(run))


def test_the_same_text_counts_once_and_a_run_without_evaluations_shows_its_newest_update(
    tmp_path: Path,
) -> None:
    same = {(group, 1): "again and again" for group in range(4)}
    EpisodeFolder(tmp_path / "a", made.ALL).write_evaluation(
        0, "x", evaluated({(g, s): 1.0 for g in range(4) for s in range(2)}, same)
    )
    assert [e.observation for e in examples(tmp_path / "a") if e.kind == "best predicted"] == [
        "again and again"
    ]
    made.run_of(tmp_path / "b", 2, **{"wm.alpha": 1.0})
    assert {e.place[1] for e in examples(tmp_path / "b")} == {"update_000001"}
    assert examples(tmp_path / "none") == []


def test_the_report_shows_it_and_leads_to_the_episodes(run: Path, tmp_path: Path) -> None:
    report = write_report([run], tmp_path / "report")
    at = next(n for n, block in enumerate(report.blocks) if block == Heading("Evidence"))
    table, links = report.blocks[at + 2], report.blocks[at + 3]
    assert (
        isinstance(table, TableBlock)
        and isinstance(links, Links)
        and len(table.rows) == len(links.items) == 9
    )
    assert ("learnt", "5.00 → 1.01", "act 1", "observation 0 1") in table.rows
    page = (tmp_path / "report" / "episodes.html").read_text(encoding="utf-8")
    assert page.count("data-key=") == 1, "only the episodes behind the examples are on the page"
    html, markdown = (report.html.read_text(encoding="utf-8"), report.markdown.read_text(encoding="utf-8"))
    assert (
        html.count('<a href="episodes.html">Some of the episodes behind it</a></figcaption>')
        == html.count("<figcaption>")
        > 0
    ), "every figure links to them"
    addresses = re.findall(r'href="(episodes.html#[^"]+)"', html)
    assert len(addresses) == 9 and unquote_plus(addresses[0]).endswith(
        "run=paw&amp;file=eval_000030_end&amp;group=0&amp;member=0&amp;step=2"
    )
    assert RULE.split(":")[0] in markdown and "\x1b" not in html + markdown
    assert "<b>*bold*" not in html and "\\<b\\>\\*bold\\*\\</b\\> \\| \\[x\\]\\(y\\)" in markdown


def test_without_kept_episodes_there_is_no_page(run: Path, tmp_path: Path) -> None:
    for path in (run / "episodes").iterdir():
        path.unlink()
    report = write_report([run], tmp_path / "report")
    assert Heading("Evidence") not in report.blocks and not (tmp_path / "report" / "episodes.html").exists()
    assert np.all([not isinstance(block, Links) for block in report.blocks])
    assert (
        to_html("x", [Links((("<t>", "a&b"),))]).count("&lt;t&gt;") == 1
        and to_markdown([Links((("<t>", "a"),))]) == "- [\\<t\\>](a)\n"
    )
