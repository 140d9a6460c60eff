"""The house as docs/design.md draws it: few rooms in the hall, files for one sitting.

That a room imports only from the floors below it is a contract of import-linter (pyproject.toml, `make
check`); that a run needs no optional package but those of what it uses is in test_faults.py.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "paw_hpc"


def test_the_hall_has_few_rooms() -> None:
    entries = [
        path.name for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")
    ]
    assert len(entries) <= 15, sorted(entries)


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= 350
    }
    assert not long
