"""The Python of docs/environments.md is run as a reader would run it: block by block, on a machine without
data."""

from __future__ import annotations

import asyncio
import re
import runpy
import sys
from pathlib import Path

import pytest

from paw_hpc.cli import main as cli
from paw_hpc.envs import Environments
from paw_hpc.system import data_paths
from tests.envs.walks import serving

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "environments.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
BLOCKS = {
    section.splitlines()[0]: code[1]
    for section in SECTIONS
    if (code := re.search(r"^```python\n(.+?)^```$", section, re.DOTALL | re.MULTILINE))
}


@pytest.fixture(scope="module")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-cache")


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, world_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the package and nothing else, and begins in an empty folder."""
    for name in ("PAW_DATA", "ALFWORLD_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAW_CACHE", str(world_cache))
    monkeypatch.setattr(data_paths, "_checkouts", list)
    monkeypatch.chdir(tmp_path)


def run(code: str) -> None:
    Path("block.py").write_text(code)
    runpy.run_path("block.py", run_name="__main__")


def test_every_interface_has_its_block() -> None:
    """The control: the search for blocks finds all that there are."""
    assert list(BLOCKS) == [
        "One call after the other",
        "Together",
        "Coroutines",
        "Gymnasium",
        "OpenEnv",
        "Judged here",
    ]
    assert len(BLOCKS) == PAGE.count("```python")


@pytest.mark.parametrize(
    ("title", "prints"),
    [
        (
            "One call after the other",
            r"generated-valid_seen/pick_and_place_simple\S+ (True|False) [01]\.0 \d+ 0\n",
        ),
        ("Together", r"\[(\d\.\d+, ){7}\d\.\d+\]\n"),
        ("Coroutines", r"Doc 1 \(Title: .+"),
        ("Gymnasium", r"generated-synthetic/\S+ \['click\[back to search\]', .+\] 0\.0\n"),
    ],
)
def test_a_block_runs(title: str, prints: str, capsys: pytest.CaptureFixture[str]) -> None:
    if title == "Gymnasium":
        pytest.importorskip("gymnasium")
    run(BLOCKS[title])
    assert re.fullmatch(prints, capsys.readouterr().out, re.DOTALL)


def test_the_client_plays_with_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openenv")
    from paw_hpc.envs.openenv import Served, make_app

    Path("client.py").write_text(BLOCKS["OpenEnv"])
    play = runpy.run_path("client.py")["main"]
    environments = Environments("webshop", max_steps=15, webshop={"catalogue": "generated"})
    with environments, serving(make_app(Served(environments, panel="test"), key="a-key")) as url:
        asyncio.run(play(url, "a-key"))
    assert re.fullmatch(r"generated-synthetic/\S+ \d+\.0 \d\.\d+\n", capsys.readouterr().out)


def test_outcomes_are_written_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(BLOCKS["Judged here"])
    [command] = re.findall(r"^(paw report .*?)  ", PAGE, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "report/report.md" in capsys.readouterr().out
    said = Path("report/report.md").read_text()
    assert "generated test:8@0, temperature 0, 8 games, 4 steps" in said and re.search(
        r"^\| nobody \| 0 \| 0\.0 \[0\.0, \d+\.\d\] ", said, re.MULTILINE
    )
