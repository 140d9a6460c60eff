"""The mark of the tests that need data: who has it, and that no test is skipped for want of data without
it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = """
import pytest
from tests.beside import beside

@pytest.fixture
def mini(): pytest.skip("nothing of this kind beside the checkout")
def test_by_fixture(mini): pass
@beside("no/such.file")
def test_by_file(): raise AssertionError
@beside("{here}")
def test_of_a_file_that_is_there(): pass
def test_forgotten(): pytest.skip("nothing of this kind beside the checkout")
def test_skipped_for_another_reason(): pytest.skip("no GPU")
"""


@pytest.fixture
def cases(tmp_path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    there = tmp_path / "there"
    there.touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["beside"]')
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(CASES.format(here=there))
    return pytester


def test_a_skip_for_want_of_data_needs_the_mark(cases: pytest.Pytester) -> None:
    ended = cases.runpytest_subprocess("-p", "no:cacheprovider")
    ended.assert_outcomes(passed=1, skipped=3, failed=1)
    ended.stdout.fnmatch_lines(["*test_forgotten was skipped for want of data but is not marked*"])


def test_those_with_the_mark_can_be_chosen(cases: pytest.Pytester) -> None:
    cases.runpytest_subprocess("-p", "no:cacheprovider", "-m", "beside").assert_outcomes(
        passed=1, skipped=2, deselected=2
    )
