"""Where the tests of ALFWorld's games find data: a cache of their own, and official games only where a test
asks for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.alfworld import games, official
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.recipe import TASK_TYPES
from paw_hpc.system import data_paths


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paw-cache")


@pytest.fixture
def official_games(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> official.Origin:
    """The real official games, packed once for the whole session."""
    origin = official.find()
    if origin is None:
        pytest.skip(
            "no official ALFWorld games on this machine ($PAW_DATA, $ALFWORLD_DATA, ../shared/data beside "
            "the checkout)"
        )
    monkeypatch.setenv("PAW_CACHE", str(session_cache))
    monkeypatch.setattr(official, "find", lambda: origin)
    return origin


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: an empty home, an empty cache, no checkout with a shared folder. Returns its
    home."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PAW_CACHE", str(tmp_path / "cache"))
    for name in ("PAW_DATA", "ALFWORLD_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data_paths, "_checkouts", list)
    return home


@pytest.fixture(scope="session")
def some_games() -> dict[str, dict[str, Any]]:
    """One composed game of each type, under ids as official games have them: stand-ins wherever only the form
    of the files matters."""
    made = {}
    for task_type in TASK_TYPES:
        task_id, game = compose("train", task_type, 0, seed=0)
        made[task_id.removeprefix("generated-")] = game
    return made


def old_release(game: dict[str, Any]) -> dict[str, Any]:
    """The same game as ALFWorld before 0.4 would write it."""
    walkthrough = [
        re.sub(r"^move (.*) to (.*)$", r"put \1 in/on \2", command) for command in game["walkthrough"]
    ]
    return {
        **game,
        "grammar": game["grammar"].replace('"move {o} to {r}"', '"put {o} in/on {r}"'),
        "walkthrough": walkthrough,
    }


def all_splits() -> list[str]:
    return list(games.OFFICIAL_COUNTS)
