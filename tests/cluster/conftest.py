"""The real test cluster, and a Slurm that only pretends, for tests of what is submitted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TESTBED = REPOSITORY / "slurm" / "testbed"
REQUIRE = "PAW_REQUIRE_SLURM"


@pytest.fixture(scope="session")
def testbed() -> Iterator[Path]:
    """Four nodes of a real Slurm on this machine; ended with the session, unless it was up before. Yields a
    folder that all nodes share."""
    if not os.environ.get(REQUIRE):  # minutes of waiting for daemons, and root's: nothing to happen unasked
        pytest.skip(f"no test cluster was asked for (make test-slurm, or {REQUIRE}=1)")
    missing = [
        program for program in ("slurmctld", "slurmd", "munged", "ip") if shutil.which(program) is None
    ]
    if (
        why := f"{', '.join(missing)} not installed (make setup-slurm)"
        if missing
        else "only root can start daemons"
        if os.geteuid()
        else ""
    ):
        pytest.fail(f"{REQUIRE} is set, but {why}")
    conf = subprocess.run(
        [str(TESTBED / "up.sh"), "--conf"], check=True, capture_output=True, text=True
    ).stdout.strip()
    was_up = Path(conf).exists()
    subprocess.run([str(TESTBED / "up.sh")], check=True, capture_output=True, text=True, timeout=300)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = conf
    try:
        yield Path(conf).parent
    finally:
        if not was_up:
            subprocess.run([str(TESTBED / "down.sh")], check=True, capture_output=True, timeout=120)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


FAKES = {
    "sbatch": """import json, os, re, sys
text = open(sys.argv[-1]).read()
if "--partition=forbidden" in text:
    sys.exit("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified")
with open(os.environ["FAKE_SLURM"] + "/submitted.jsonl", "a") as file:
    file.write(json.dumps({"arguments": sys.argv[1:], "script": text}) + "\\n")
number = 100 + sum(1 for _ in open(os.environ["FAKE_SLURM"] + "/submitted.jsonl"))
print(f"{number};here" if "--parsable" in sys.argv else f"Submitted batch job {number}")
""",
    "srun": "raise SystemExit('a fake srun runs nothing')",
    "sinfo": "print('gpu*|4|gpu:h100:8(S:0-1)|2-00:00:00')\nprint('gpu*|2|gpu:h100:4|2-00:00:00')\nprint('cpu|9|(null)|infinite')",
    "squeue": "print('101|PENDING||Priority')",
    "sacct": "print('102|FAILED|node7')\nprint('103_0|CANCELLED by 0|node8')",
    "scancel": "import os, sys; open(os.environ['FAKE_SLURM'] + '/cancelled', 'w').write(' "
    "'.join(sys.argv[1:]))",
    "scontrol": "import sys; sys.exit('slurm_load_jobs error: Invalid job id specified')",
}


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as scripts that write down what they were asked, in the folder that this yields."""
    folder = tmp_path / "fake-slurm"
    folder.mkdir()
    for name, code in FAKES.items():
        script = folder / name
        script.write_text(f"#!/usr/bin/env python3\n{code}\n")
        script.chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder
