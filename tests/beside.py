"""Tests of what lies beside a checkout and that no stranger has: official games, the real products, recorded
cases, the notes on the paper.

They carry the mark `beside`, by their fixtures or by `beside(FILE)`, are skipped where it is missing, and can
be chosen: `pytest -m beside`. CI runs the suite in a bare clone, and these alone where the data is; a test
that skips for want of data without the mark would run in neither, so it fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# what every reason for such a skip says
WORDS = "beside the checkout"
# the fixtures that skip where their data is missing; and one that takes official games where it can and
# generated ones elsewhere
FIXTURES = frozenset({"official_games", "small", "recorded", "mini", "one_of_each"})


def beside(path: str) -> pytest.MarkDecorator:
    """The mark of a test, or of a module, that reads `../shared/PATH`."""
    return pytest.mark.beside(path)


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests that take a fixture of data, and skip those whose own file is missing."""
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.beside)
        for found in item.iter_markers("beside"):
            if found.args and not (SHARED / found.args[0]).exists():
                item.add_marker(pytest.mark.skip(reason=f"no ../shared/{found.args[0]} {WORDS}"))


def unmarked_skip(item: pytest.Item, report: pytest.TestReport) -> str | None:
    """What is wrong with a test that was skipped for want of data and does not say by its mark that it needs
    any."""
    if not report.skipped or hasattr(report, "wasxfail") or item.get_closest_marker("beside"):
        return None
    return (
        f"{item.nodeid} was skipped for want of data but is not marked `beside` (tests/beside.py)"
        if WORDS in str(report.longrepr)
        else None
    )
