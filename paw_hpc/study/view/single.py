"""The page as one file, with its data in it: to be sent to somebody, and opened without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paw_hpc.study.view import assets
from paw_hpc.study.view.kept import EpisodeSummary
from paw_hpc.study.view.library import Library, same_task
from paw_hpc.system.errors import DataError
from paw_hpc.system.storage import write_atomically

Place = tuple[str, str, int, int]
"""(run, key of the file, group, member)."""


def write_page(
    library: Library, out: Path, updates: Sequence[int] | None = None, only: Collection[Place] | None = None
) -> str:
    """Write the page with everything that it can be asked about. Returns what to say: path, episodes, size.

    Args:
        updates: only files of these updates; None: all.
        only: only these episodes; None: all.

    Raises:
        DataError: nothing is kept of these updates.
        StorageError: it cannot be written.
    """
    chosen = _chosen(library, updates, only)
    if not chosen:
        kept = sorted({kept.file.update for run in library.runs for kept in library.files(run)})
        raise DataError(
            f"--update: nothing is kept of update {', '.join(map(str, updates or ()))}; there are "
            f"{', '.join(map(str, kept))}"
        )
    script, style = assets.script(), assets.style()
    policy = (
        f"default-src 'none'; script-src {assets.digest(script)}; style-src {assets.digest(style)}; "
        "base-uri 'none'; form-action 'none'; "
    )
    policy += "require-trusted-types-for 'script'"
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n<style>{style}</style>'
    )
    blocks = "\n".join(_blocks(library, chosen))
    write_atomically(out, assets.document(head, f"{blocks}\n<script>{script}</script>"))
    count = sum(map(len, chosen.values()))
    return f"{out}: {count} episodes, {out.stat().st_size / 1e6:.1f} MB"


def _chosen(
    library: Library, updates: Sequence[int] | None, only: Collection[Place] | None
) -> dict[tuple[str, str], list[EpisodeSummary]]:
    """(run, key of the file) -> its episodes that are wanted; files without any are left out."""
    found = {}
    for run in library.runs:
        for kept in library.files(run):
            key = kept.file.key
            if updates is None or kept.file.update in updates:
                found[run, key] = [
                    e for e in kept.episodes if only is None or (run, key, e.group, e.member) in only
                ]
    return {place: episodes for place, episodes in found.items() if episodes}


def _blocks(library: Library, chosen: dict[tuple[str, str], list[EpisodeSummary]]) -> Iterator[str]:
    """One block of data for the index, and one per kept file, which the page unpacks when it is looked at."""
    index = library.index()
    for run in index:
        run["files"] = [file for file in run["files"] if (run["name"], file["key"]) in chosen]
    yield _block("index", [run for run in index if run["files"]])
    files = {run: library.files(run) for run in library.runs}
    there = {(run, key, e.group, e.member) for (run, key), episodes in chosen.items() for e in episodes}
    for number, ((run_name, key), episodes) in enumerate(chosen.items()):
        kept, steps, same = library.file(run_name, key), {}, {}
        for e, shown in zip(episodes, kept.steps_of(episodes), strict=True):
            others = same_task(files, (run_name, key, e.group), e)
            steps[f"{e.group}/{e.member}"] = shown
            # What was left out is not offered.
            same[f"{e.group}/{e.member}"] = [
                o for o in others if (o["run"], o["file"], o["group"], o["member"]) in there
            ]
        surprises = [s for s in kept.surprises if (run_name, key, s["group"], s["member"]) in there]
        whole = {
            "episodes": [asdict(e) for e in episodes],
            "steps": steps,
            "same": same,
            "surprises": surprises,
        }
        yield _block(f"file-{number}", whole, run=run_name, key=key)


def _block(name: str, data: Any, **said: str) -> str:
    """Packed and in base64: no text of an episode stands in the file as it is, so none can end the block or
    begin another."""
    packed = base64.b64encode(gzip.compress(json.dumps(data, allow_nan=False).encode(), mtime=0)).decode()
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in said.items())
    return f'<script type="application/gzip" id="data-{name}"{attributes}>{packed}</script>'
