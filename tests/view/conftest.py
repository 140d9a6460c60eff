"""A real headless Chromium, and runs to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.episodes.schema import STEP
from tests.episodes import made

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ATTACKS = (
    "<script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 1">',
    "</script><script>window.hacked = 1</script><!--",
    '"><svg onload="window.hacked = 1"></svg>',
    "</pre></div><style>*{display:none}</style><iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "{{constructor.constructor('window.hacked = 1')()}} ${window.hacked = 1} javascript:window.hacked=1",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of a module; each takes a context of its own. While it is there, an event
    loop runs in this thread."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sync_playwright = None  # type: ignore[assignment]
    if sync_playwright is None or CHROMIUM is None:
        missing = "playwright" if sync_playwright is None else "chromium"
        if os.environ.get("PAW_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PAW_REQUIRE_BROWSER=1, but {missing} is not installed (make setup-browser)")
        pytest.skip(f"{missing} is not installed (make setup-browser)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two arms of one seed, made without playing: the same tasks and episodes, and other probabilities.
    Vanilla was not asked about observations."""
    folder = tmp_path_factory.mktemp("arms")
    return [
        made.run_of(folder / "paw", name="paw"),
        made.run_of(folder / "vanilla", name="vanilla", **{"wm.enabled": False}),
    ]


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text is an attack, one per token; its own name, the tasks' names and a label, too."""
    run = made.run_of(tmp_path_factory.mktemp("hostile") / "<img src=x onerror='hacked=1'>", 1)
    rows = made.rows().to_pylist()
    for row in rows:
        for name in ("prompt", "action", "task_type", "predicted"):
            row[name] = " ".join(ATTACKS)
        row["task_id"] += ATTACKS[0]
        for name in ("response", "observation"):
            spelled = [ATTACKS[n % len(ATTACKS)] for n in range(len(row[f"{name}_ids"]))]
            row[name] = "".join(spelled)
            row[f"{name}_ends"] = [len("".join(spelled[: n + 1])) for n in range(len(spelled))]
    table = pa.Table.from_pylist(rows, schema=STEP.with_metadata(made.rows().schema.metadata))
    EpisodeFolder(run, made.ALL).write_update(0, table)
    return run
