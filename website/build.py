"""The documentation as a site: `make docs`, or `python -m website.build [FOLDER]` (default: build/website;
the site is FOLDER/site).

Pages are written for two readers: the repository's web view, where links to code are relative links to files,
and the site, which has no code beside it and knows no address of the repository. So the pages of `docs/` are
staged: a Markdown file outside of it that a page links to becomes a page, any other file a page that shows
it, and a link to a folder leads to its README or is left as plain text. A line `<!-- keys of SECTION -->`
becomes the table of a recipe's keys. Then Zensical builds the staged pages strictly: a link or an anchor that
leads nowhere, or an object that does not exist, ends the build.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from website.keys import tables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# pages that stand elsewhere in the repository, by custom, and where they are in the site; all others from
# outside of docs/ are below `repository/`
PLACES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".toml": "toml"}
LINK = re.compile(r"(?P<open>\[(?P<text>[^\[\]]*)\]\()(?P<target>[^()\s]+)\)")
KEYS = re.compile(r"^<!-- keys of (?P<section>[\w.]+) -->$", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(```|~~~)")


def stage(into: Path, root: Path = ROOT) -> Path:
    """Put pages, settings and style into a new folder, and return it."""
    shutil.rmtree(into, ignore_errors=True)
    Stage(root, into / "docs").run()
    shutil.copyfile(HERE / "zensical.toml", into / "zensical.toml")
    shutil.copyfile(HERE / "site.css", into / "docs" / "site.css")
    return into


def render(staged: Path) -> Path:
    """Build the site of a staged folder, and return its folder. Raises SystemExit with what Zensical said
    where anything is wrong."""
    # what the reference shows is this checkout, whichever one is installed
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(staged / "zensical.toml"),
    ]
    done = subprocess.run(
        command, cwd=staged, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    return staged / "site"


class Stage:
    """Copies the pages of a repository into one folder, with whatever they link to."""

    def __init__(self, root: Path, into: Path) -> None:
        self.root, self.into = root, into
        self.pages = {f"docs/{path}": path for path in self._files_of_docs()}
        self.pages |= {name: place for name, place in PLACES.items() if (root / name).is_file()}

    def _files_of_docs(self) -> Iterator[str]:
        docs = self.root / "docs"
        return (path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*")) if path.is_file())

    def run(self) -> None:
        waiting = list(self.pages)
        while waiting:
            source = waiting.pop()
            known = len(self.pages)
            self._copy(source, self.into / self.pages[source])
            waiting += list(self.pages)[known:]

    def _copy(self, source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = self.root / source
        if path.suffix == ".md":
            target.write_text(self.page(source))
        elif target.suffix == ".md":
            target.write_text(listing(source, path.read_text()))
        else:
            shutil.copyfile(path, target)

    def page(self, source: str) -> str:
        """The text of a page, its links leading to where their targets are in the site."""
        done = []
        for code, lines in itertools.groupby(
            _marked((self.root / source).read_text()), key=lambda marked: marked[0]
        ):
            text = "\n".join(line for _, line in lines)
            if not code:
                text = KEYS.sub(
                    lambda found: tables()[found["section"]],
                    LINK.sub(lambda found: self._link(source, found), text),
                )
            done.append(text)
        return "\n".join(done) + "\n"

    def _link(self, source: str, found: re.Match[str]) -> str:
        target, hash_sign, anchor = found["target"].partition("#")
        if not target or ":" in target:
            return found[0]
        wanted = os.path.normpath(PurePosixPath(source).parent / target)
        if (self.root / wanted / "README.md").is_file():
            wanted = f"{wanted}/README.md"
        if (self.root / wanted).is_dir():
            return found["text"]
        if wanted not in self.pages:
            if not (self.root / wanted).is_file():
                raise SystemExit(f"{source}: links to {target}, which does not exist")
            self.pages[wanted] = (
                f"repository/{wanted}"
                if wanted.endswith((".md", ".png", ".svg"))
                else f"repository/{wanted}.md"
            )
        there = os.path.relpath(self.pages[wanted], PurePosixPath(self.pages[source]).parent)
        return f"{found['open']}{there}{hash_sign}{anchor})"


def _marked(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is code, line): fences, what is in them, and what is indented like code."""
    inside = False
    for line in text.splitlines():
        fence = bool(FENCE.match(line))
        yield inside or fence or line.startswith("    "), line
        inside ^= fence


def listing(source: str, text: str) -> str:
    """A page that shows a file of the repository as it is."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return (
        "---\nsearch:\n  exclude: true\n---\n\n# "
        f"`{source}`\n\n{fence}{LANGUAGES.get(Path(source).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
    )


if __name__ == "__main__":
    site = render(stage(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "website"))
    print(
        f"the site is {site}/index.html; to look at it: python -m http.server --bind 127.0.0.1 --directory "
        f"{site}"
    )
