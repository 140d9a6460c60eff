"""The page as it is sent: one document, one style sheet, one script, and the policy that lets nothing else
in."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("source.js", "tokens.js", "lists.js", "episode.js", "main.js")
"""In the order in which they are put together: together they are one script, in one scope."""
SERVED_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""What the page may do when it is served: run its own script, and ask its own server. No inline script, no
image, no frame, no other host, and no text that becomes markup."""


def script() -> str:
    """All of the page's JavaScript."""
    parts = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


def style() -> str:
    """The page's CSS."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def document(head: str, foot: str) -> str:
    """The page's HTML with what loads style and script.

    Args:
        head, foot: markup of ours.
    """
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    return text.replace("<!-- head -->", head, 1).replace("<!-- foot -->", foot, 1)


def digest(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
