"""Every word of the glossary stands for something: the object that it names exists, and is said in one row
alone."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.runner import ROOT

ROW = re.compile(r"^\| (?P<words>[^|]+) \| (?P<meaning>[^|]+) \| `(?P<name>paw_hpc[\w.]*)` \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "glossary.md").read_text()


def _exists(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def test_every_row_is_read() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| word |")]
    assert len(ROW.findall(PAGE)) == len(rows) > 30


@pytest.mark.parametrize("name", sorted({row["name"] for row in ROW.finditer(PAGE)}))
def test_what_is_named_exists(name: str) -> None:
    assert _exists(name)


@pytest.mark.parametrize(
    "name", ["paw_hpc.experience.Trajectory", "paw_hpc.experiences", "paw_hpc.loop.Loop.none"]
)
def test_what_does_not_exist_is_found(name: str) -> None:
    assert not _exists(name)


def test_a_word_has_one_row() -> None:
    words = [word for row in ROW.finditer(PAGE) for word in row["words"].split(", ")]
    assert len(words) == len(set(words))
