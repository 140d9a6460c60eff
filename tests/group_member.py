"""A run whose folder is a group's: what root, a member of the group and another user can do with it, said in
lines of JSON. Only root can run this.

    python tests/group_member.py FOLDER RECIPE

One process that takes on other users in turn: its modules are loaded by then, which others may not read where
they lie.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paw_hpc.cli import main as command_line

GROUP, SOMEBODY, THEIR_GROUP = 4242, 65533, 65533


@contextmanager
def user(group: int) -> Iterator[None]:
    os.setgroups([group])
    os.setegid(group)
    os.seteuid(SOMEBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def paw(who: str, *arguments: str | Path) -> None:
    read, write = os.pipe()
    kept, sys.argv, status = os.dup(2), ["paw", *map(str, arguments)], 0
    sys.stderr.flush()
    os.dup2(write, 2)
    os.close(write)
    try:
        command_line.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
    with open(read, errors="replace") as file:
        said = [line for line in file.read().splitlines() if line.startswith("paw: ")]
    print(
        json.dumps({"who": who, "command": arguments[0], "status": status, "said": said}),
        file=sys.__stdout__,
        flush=True,
    )


def modes(folder: Path) -> list[str]:
    """What a group cannot use, of all that lies in a folder."""
    wanted = {True: 0o2775, False: 0o664}
    return [
        f"{p} {p.stat().st_mode:o} {p.stat().st_gid}"
        for p in folder.rglob("*")
        if (stat.S_IMODE(p.stat().st_mode), p.stat().st_gid) != (wanted[p.is_dir()], GROUP)
    ]


def main(folder: Path, recipe: str) -> None:
    run = folder / "run"
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    os.umask(0o002)
    paw("owner", "train", recipe, "--run-dir", run, "updates=1")
    paw("owner", "status", run)
    paw("owner", "report", run, "--out", folder / "report-owner")
    with user(GROUP):
        paw("member", "train", recipe, "--run-dir", run, "updates=2")
        paw("member", "status", run)
        paw("member", "report", run, "--out", folder / "report-member")
    print(json.dumps({"modes": modes(run)}), file=sys.__stdout__, flush=True)
    with user(THEIR_GROUP):
        paw("reader", "status", run)
        paw("reader", "train", recipe, "--run-dir", run, "updates=3")
    run.chmod(0o2770)
    with user(THEIR_GROUP):
        for command in (
            ["train", recipe, "--run-dir", run, "updates=3"],
            ["status", run],
            ["report", run, "--out", "/tmp/none"],
            ["logs", run],
        ):
            paw("outsider", *command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
