"""What a built site asks a browser for: every reference of a page, by kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

IN_CSS = re.compile(r"""(?:url\(|@import\s+(?!url))\s*["']?([^"')\s;]+)""")
# elements whose reference a browser follows by itself; of <link> those that say so
LOADED = {
    **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src"),
    "object": "data",
    "use": "href",
}
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@dataclass(frozen=True, slots=True)
class Reference:
    """`loaded`: by the browser, without a click."""

    page: Path
    target: str
    loaded: bool

    @property
    def foreign(self) -> bool:
        return self.target.startswith("//") or urlsplit(self.target).scheme in ("http", "https", "ws", "wss")

    def file(self, site: Path) -> Path | None:
        """The file of the site that is meant; None where it is none of a site's business (data:, mailto:, an
        anchor of the same page)."""
        parts = urlsplit(self.target)
        if parts.scheme or self.foreign or not parts.path:
            return None
        base = site if parts.path.startswith("/") else self.page.parent
        return base / unquote(parts.path).lstrip("/")


class _Page(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.page, self.found, self.classes = page, list[Reference](), set[str]()
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes |= set(given.get("class", "").split())
        self._style = tag == "style"
        loaded = given.get(LOADED.get(tag, ""))
        if tag == "link" and LOADED_LINKS.intersection(given.get("rel", "").split()):
            loaded = given.get("href")
        if loaded:
            self.found.append(Reference(self.page, loaded, True))
        elif tag in ("a", "link") and given.get("href"):
            self.found.append(Reference(self.page, given["href"], False))
        self.found += [
            Reference(self.page, target, True) for target in IN_CSS.findall(given.get("style", ""))
        ]

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += [Reference(self.page, target, True) for target in IN_CSS.findall(data)]

    def handle_endtag(self, tag: str) -> None:
        self._style = False


def references(site: Path) -> Iterator[Reference]:
    """Of all pages and style sheets of a site."""
    for path in sorted(site.rglob("*.html")):
        yield from _read(path).found
    for path in [*sorted(site.rglob("*.css")), *sorted(site.rglob("*.svg"))]:
        yield from (
            Reference(path, target, True)
            for target in IN_CSS.findall(path.read_text())
            if not target.startswith("#")
        )


def classes(page: Path) -> set[str]:
    """All classes of a page's elements."""
    return _read(page).classes


def _read(path: Path) -> _Page:
    page = _Page(path)
    page.feed(path.read_text())
    return page
