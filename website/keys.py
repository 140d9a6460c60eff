"""The keys of a recipe as tables of a page (see `paw_hpc.recipe.keys`)."""

from __future__ import annotations

import functools

from paw_hpc.recipe.keys import key_rows


@functools.cache
def tables() -> dict[str, str]:
    """Section -> its table in Markdown; `recipe` are the keys that stand in no section, `rollout.fleet` is a
    section within another."""
    found: dict[str, list[str]] = {}
    for row in key_rows():
        lines = found.setdefault(
            row.section or "recipe", ["| key | values | default | |", "|---|---|---|---|"]
        )
        lines.append(f"| `{row.key}` | {row.values} | {row.default} | {_cell(row.about)} |")
    return {section: "\n".join(lines) for section, lines in found.items()}


def _cell(text: str) -> str:
    """One line of a cell, in which tags such as <think> are words."""
    return text.replace("|", "\\|").replace("<", "&lt;")
