"""The commands of the documentation: found on its pages, and each run, or checked as far as it can be without
a GPU, a cluster or an hour.

A command block is a fenced block of a shell language, or a fenced or indented one that begins with a program.
Where a line begins with `$ ` the others are output, and what is shown must be what was printed (`...` stands
for anything). A block may carry a mark, `<!-- not run: REASON -->`, above it: then its commands are not run,
but `paw` must still understand them, and the files of the repository that they name must exist. A block that
is marked `<!-- file: NAME -->` is that file, for the commands below it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

SHELLS = {"sh", "bash", "shell", "console"}
PROGRAMS = {
    "paw",
    "make",
    "python",
    "python3",
    "pip",
    "sudo",
    "sbatch",
    "export",
    "sinfo",
    "git",
    "apt-get",
    "cat",
    "cd",
    "apptainer",
    "enroot",
    "ls",
}
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<language>\w*)\s*$")
MARK = re.compile(r"^<!-- (?P<kind>not run|file): (?P<said>\S.*) -->$")
INLINE = re.compile(r"`(paw [^`]+)`")


@dataclass(slots=True)
class Command:
    """One command line, split into words, with the output that is shown for it."""

    line: int
    words: list[str]
    shown: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Block:
    """A block of commands, or (where `file` is set) of a file's text."""

    line: int
    commands: list[Command]
    reason: str | None = None
    """Why it is not run."""
    file: str | None = None
    text: str = ""


@dataclass(slots=True)
class _Raw:
    line: int
    language: str | None
    """None: an indented block."""
    lines: list[str]
    mark: tuple[str, str] | None


def blocks(text: str) -> list[Block]:
    """The command blocks and files of a page, in order. Raises ValueError for a mark with nothing to mark."""
    found = []
    for raw in _raw_blocks(text):
        kind, said = raw.mark or ("", "")
        if kind == "file":
            found.append(Block(raw.line, [], file=said, text="\n".join(raw.lines) + "\n"))
        elif _has_commands(raw):
            found.append(Block(raw.line, _commands(raw), reason=said or None))
        elif kind:
            raise ValueError(f"line {raw.line}: is marked as not run, and has no command")
    return found


def inline(text: str) -> list[Command]:
    """`paw ...` in running text, outside of blocks."""
    prose, inside = [], False
    for line in text.splitlines():
        inside ^= line.startswith("```")
        prose.append("" if inside or line.startswith("    ") else line)
    return [
        Command(number, shlex.split(found))
        for number, line in enumerate(prose, 1)
        for found in INLINE.findall(line)
    ]


def _raw_blocks(text: str) -> list[_Raw]:
    lines, found, mark, at = text.splitlines(), list[_Raw](), None, 0
    while at < len(lines):
        line = lines[at]
        if fence := FENCE.match(line):
            end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith(fence["ticks"]))
            found.append(_Raw(at + 1, fence["language"], lines[at + 1 : end], mark))
            mark, at = None, end + 1
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip() or MARK.match(lines[at - 1])):
            end = next(
                (n for n in range(at, len(lines)) if lines[n].strip() and not lines[n].startswith("    ")),
                len(lines),
            )
            found.append(_Raw(at + 1, None, [one[4:] for one in lines[at:end]], mark))
            mark, at = None, end
        else:
            if mark and line.strip():
                raise ValueError(f"line {at + 1}: the mark above it stands over no block")
            if marked := MARK.match(line):
                mark = (marked["kind"], marked["said"])
            at += 1
    return found


def _has_commands(raw: _Raw) -> bool:
    if raw.language:
        return raw.language in SHELLS
    first = next((line.split() for line in raw.lines if line.strip()), [""])
    return first[0] == "$" or first[0] in PROGRAMS


def _commands(raw: _Raw) -> list[Command]:
    transcript, found, waiting = any(line.startswith("$ ") for line in raw.lines), list[Command](), ""
    for number, line in enumerate(raw.lines, raw.line + (raw.language is not None)):
        if transcript and not waiting and not line.startswith("$ "):
            found[-1].shown.append(line)
            continue
        waiting += line.removeprefix("$ ")
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        if words := shlex.split(waiting, comments=True):
            found.append(Command(number, words))
        waiting = ""
    return found


def shows(printed: str, shown: list[str]) -> list[str]:
    """The shown lines that were not printed; `...` stands for anything, and blank lines for nothing."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    missing = []
    for line in shown:
        wanted = " ".join(line.split())
        pattern = re.compile(".*".join(map(re.escape, wanted.split("..."))))
        if wanted and not any(pattern.fullmatch(one) for one in lines):
            missing.append(line)
    return missing


def named_files(words: list[str]) -> list[Path]:
    """What in a command looks like a file of the repository."""
    return [
        Path(word)
        for word in words
        if re.match(r"(recipes|benchmarks|docs|tests|slurm|containers|website)/[^*]*$", word)
    ]
