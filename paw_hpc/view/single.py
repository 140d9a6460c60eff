"""The page as one file, with its data in it: to be sent to somebody, and opened without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paw_hpc.system.errors import DataError
from paw_hpc.system.storage import write_atomically
from paw_hpc.view import assets
from paw_hpc.view.library import KeptFile, Library


def write_page(library: Library, out: Path, updates: Sequence[int] | None = None) -> str:
    """Write the page with everything that it can be asked about. Returns what to say: path, episodes, size.

    Args:
        updates: only files of these updates; None: all.

    Raises:
        DataError: nothing is kept of these updates.
        StorageError: it cannot be written.
    """
    chosen = {run: [kept for kept in library.files(run) if updates is None or kept.file.update in updates] for run in library.runs}
    if not any(chosen.values()):
        kept = sorted({kept.file.update for run in library.runs for kept in library.files(run)})
        raise DataError(f"--update: nothing is kept of update {', '.join(map(str, updates or ()))}; there are {', '.join(map(str, kept))}")
    script, style = assets.script(), assets.style()
    policy = f"default-src 'none'; script-src {assets.digest(script)}; style-src {assets.digest(style)}; base-uri 'none'; form-action 'none'; "
    policy += "require-trusted-types-for 'script'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n<style>{style}</style>'
    blocks = "\n".join(_blocks(library, chosen))
    write_atomically(out, assets.document(head, f"{blocks}\n<script>{script}</script>"))
    count = sum(len(kept.episodes) for files in chosen.values() for kept in files)
    return f"{out}: {count} episodes, {out.stat().st_size / 1e6:.1f} MB"


def _blocks(library: Library, chosen: dict[str, list[KeptFile]]) -> Iterator[str]:
    """One block of data for the index, and one per kept file, which the page unpacks when it is looked at."""
    keys = {(run, kept.file.key) for run, files in chosen.items() for kept in files}
    index = library.index()
    for run in index:
        run["files"] = [file for file in run["files"] if (run["name"], file["key"]) in keys]
    yield _block("index", index)
    for number, (run_name, kept) in enumerate((run, kept) for run, files in chosen.items() for kept in files):
        steps = {f"{e.group}/{e.member}": kept.steps(e) for e in kept.episodes}
        # Episodes of the same task in files that were left out are not offered.
        same = {
            f"{e.group}/{e.member}": [
                other for other in library.same_task(run_name, kept.file.key, e.group, e.member) if (other["run"], other["file"]) in keys
            ]
            for e in kept.episodes
        }
        episodes = library.episodes(run_name, kept.file.key)
        whole = {"run": run_name, "file": kept.file.key, "episodes": episodes, "steps": steps, "same": same, "surprises": kept.surprises}
        yield _block(f"file-{number}", whole, run=run_name, key=kept.file.key)


def _block(name: str, data: Any, **said: str) -> str:
    """Packed and in base64: no text of an episode stands in the file as it is, so none can end the block or begin another."""
    packed = base64.b64encode(gzip.compress(json.dumps(data, allow_nan=False).encode(), mtime=0)).decode()
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in said.items())
    return f'<script type="application/gzip" id="data-{name}"{attributes}>{packed}</script>'
