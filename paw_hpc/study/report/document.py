"""A report as a list of blocks, and its two renderings: Markdown and one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Rows of text; the first column is left-aligned, the others right-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    outside: bool = False
    """Cells hold text of environments and models, which no reader may take for markup."""

    def turned(self) -> TableBlock:
        """Rows as columns."""
        first, *rest = zip(self.header, *self.rows, strict=True)
        return TableBlock(self.title, tuple(first), tuple(map(tuple, rest)), self.outside)


@dataclass(frozen=True, slots=True)
class Figure:
    path: Path
    caption: str
    behind: str | None = None
    """Address, beside the report, of the page with episodes that it is made of, chosen by rule; None: none
    were kept."""


@dataclass(frozen=True, slots=True)
class Links:
    """A list of links to files beside the report."""

    items: tuple[tuple[str, str], ...]
    """(title, address)."""


Block = Heading | Paragraph | Bullets | TableBlock | Figure | Links


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; figures are linked by file name, so they belong beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page without outside references: style inline, figures embedded."""
    body = "\n".join(_html(block) for block in blocks)
    head = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return "#" * level + " " + text
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Links(items):
            return "\n".join(f"- [{_MARKUP.sub(_BACKSLASH, title)}]({address})" for title, address in items)
        case TableBlock(title, header, rows, outside):
            if outside:
                rows = tuple(tuple(_MARKUP.sub(_BACKSLASH, cell) for cell in row) for row in rows)
                return _markdown(TableBlock(title, header, rows)).replace("\\\\|", "\\|")
            lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
            return f"**{title}**\n\n" + "\n".join(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
            )
        case Figure(path, caption, behind):
            return f"![{caption}]({path.name})" + (f"\n\n[{_BEHIND}]({behind})" if behind else "")


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Links(items):
            links = (
                f'<li><a href="{html.escape(address)}">{html.escape(title)}</a></li>'
                for title, address in items
            )
            return "<ul>" + "".join(links) + "</ul>"
        case TableBlock(title, header, rows):
            top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = "\n".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
            )
            return (
                "<div "
                f'class="wide"><table><caption>{html.escape(title)}</caption>\n<tr>{top}</tr>\n{lines}\n</table></div>'
            )
        case Figure(path, caption, behind):
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            link = f' <a href="{html.escape(behind)}">{_BEHIND}</a>' if behind else ""
            return (
                f'<figure><img alt="{text}" '
                f'src="data:image/png;base64,{data}"><figcaption>{text}{link}</figcaption></figure>'
            )


_BEHIND = "Some of the episodes behind it"
_MARKUP = re.compile(r"[\\`*_{}\[\]()#+.!<>~&-]")
"""What Markdown may take for markup; `|` is escaped in every table."""
_BACKSLASH = r"\\\g<0>"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222;
       max-width: 1150px; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem } .wide { overflow-x: auto }
table { border-collapse: collapse; margin: .8rem 0 1.4rem;
        font-variant-numeric: tabular-nums; font-size: .93rem }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem }
th, td { padding: .25rem .9rem .25rem 0; text-align: right;
         border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { border-bottom: 2px solid #888; font-weight: 600 }
figure { margin: 1rem 0 } img { max-width: 100% } figcaption { color: #555; font-size: .9rem }
"""
