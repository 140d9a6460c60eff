"""Known vulnerabilities of the versions that are pinned, where the advisories can be asked:

    python .ci/audit.py [--strict] [CONSTRAINTS...]

What is found is said, a line each, and decides nothing: an advisory that appears overnight must not break a
build that nobody has changed. With `--strict` (`make audit STRICT=--strict`, before a release) it ends with
status 1. Where no index or no advisories can be reached, it says so and ends with 0; with `--strict` that is
status 2, since nothing was looked at.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PIP_AUDIT = "pip-audit==2.10.1"
PATIENCE_S = 90
CONTROL = "requests==2.19.0"
"""Has had advisories since 2018 (CVE-2018-18074). A mirror of the index may answer everything, and know of
none: then nothing was looked at."""
PINNED = re.compile(r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!]+(?=\s|;|$)")


def pinned(files: Sequence[Path]) -> list[str]:
    """Lines `name==version`; those that name a range or an address cannot be looked up. A local version
    (+cpu) is looked up as its public one."""
    lines = [
        line.strip().partition("+")[0]
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return sorted({found[0] for line in lines if (found := PINNED.match(line))})


def asked(
    requirements: list[str], program: Sequence[str] = ("uv", "tool", "run", "--from", PIP_AUDIT, "pip-audit")
) -> str | None:
    """What pip-audit answers, as JSON; None where it could not be had or could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        options = [
            "--disable-pip",
            "--no-deps",
            "--requirement",
            str(file),
            "--format=json",
            "--progress-spinner=off",
            "--timeout=10",
        ]
        try:
            done = subprocess.run(
                [sys.executable, "-m", *program, *options], capture_output=True, text=True, timeout=PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            return None
    return done.stdout if done.stdout.lstrip().startswith("{") else None


def found(answer: str) -> list[str]:
    """A line per advisory."""
    return [
        f"{package['name']} {package['version']}: {advisory['id']}, mended in "
        f"{', '.join(advisory['fix_versions']) or 'no version yet'}"
        for package in json.loads(answer)["dependencies"]
        for advisory in package.get("vulns", [])
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    answers: list[str] = []
    control = asked([CONTROL])
    if control is None or not found(control):
        print("audit: nothing was looked at: the advisories cannot be reached from here")
        return 2 if chosen.strict else 0
    # one at a time: they pin different versions
    for file in chosen.files or [Path("constraints.txt"), Path("constraints-sglang.txt")]:
        answer = asked(pinned([file]))
        if answer is None:
            print(f"audit: {file} was not looked at: the advisories cannot be reached from here")
            return 2 if chosen.strict else 0
        answers += [f"{file}: {line}" for line in found(answer)]
    print("\n".join(f"audit: {line}" for line in answers) or "audit: no advisory is known for what is pinned")
    return int(bool(answers) and chosen.strict)


if __name__ == "__main__":
    sys.exit(main())
