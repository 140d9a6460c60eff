"""The audit of pinned versions: news is said, and fails nothing unless that is asked for; where advisories
are out of reach, that is said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ANSWER = json.dumps(
    {
        "dependencies": [
            {"name": "good", "version": "1.0", "vulns": []},
            {
                "name": "bad",
                "version": "2.0",
                "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "PYSEC-2", "fix_versions": []}],
            },
            {"name": "unknown", "skip_reason": "not on the index"},
        ]
    }
)
KNOWN = json.dumps(
    {
        "dependencies": [
            {"name": "requests", "version": "2.19.0", "vulns": [{"id": "CVE", "fix_versions": []}]}
        ]
    }
)


@pytest.fixture
def audit() -> Any:
    specification = importlib.util.spec_from_file_location(
        "audit", Path(__file__).parents[1] / ".ci" / "audit.py"
    )
    assert specification is not None and specification.loader is not None
    module: ModuleType = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "strict", "status", "says"),
    [
        (
            ANSWER,
            False,
            0,
            "bad 2.0: PYSEC-1, mended in 2.1\naudit: c.txt: bad 2.0: PYSEC-2, mended in no version yet",
        ),
        (ANSWER, True, 1, "PYSEC-1"),
        (json.dumps({"dependencies": []}), True, 0, "no advisory is known"),
        (None, False, 0, "c.txt was not looked at"),
        (None, True, 2, "c.txt was not looked at"),
    ],
)
def test_verdicts(
    answer: str | None,
    strict: bool,
    status: int,
    says: str,
    audit: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("bad==2.0\n")
    monkeypatch.setattr(audit, "asked", lambda lines: KNOWN if lines == [audit.CONTROL] else answer)
    assert audit.main(["c.txt", *(["--strict"] if strict else [])]) == status
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    "control", [None, json.dumps({"dependencies": [{"name": "requests", "version": "2.19.0", "vulns": []}]})]
)
def test_an_index_that_knows_of_no_advisory_is_not_believed(
    control: str | None, audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nor one that does not answer: what has been known to be vulnerable for years is asked for first."""
    monkeypatch.setattr(
        audit,
        "asked",
        lambda lines: control if lines == [audit.CONTROL] else json.dumps({"dependencies": []}),
    )
    assert audit.main([]) == 0 and audit.main(["--strict"]) == 2
    assert (
        capsys.readouterr().out
        == "audit: nothing was looked at: the advisories cannot be reached from here\n" * 2
    )


def test_what_is_pinned_is_asked_for(audit: Any, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(
        "# words\na==1.0\nb>=1,<2\nc==2.0+cpu ; python_version > '3'\nd @ "
        "https://x/y.whl\nA_b.c==1!2.0.post1\n"
    )
    assert audit.pinned([tmp_path / "c.txt"]) == ["A_b.c==1!2.0.post1", "a==1.0", "c==2.0"]
    own = audit.pinned([Path("constraints.txt")])
    assert len(own) > 100 and any(line.startswith("torch==") for line in own)


def test_a_program_that_fails_or_says_nothing_has_not_looked(audit: Any) -> None:
    assert audit.asked(["a==1"], program=("json.tool", "nowhere")) is None
