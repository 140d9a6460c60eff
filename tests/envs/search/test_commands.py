"""`paw data search` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.envs.search.bm25 import Bm25Retriever
from paw_hpc.system.errors import DataError, UserError
from tests.envs.search.conftest import QUESTIONS, write_corpus, write_lines
from tests.envs.search.encoders import save_encoder


@pytest.fixture
def small(own_cache: Path) -> Path:
    write_corpus(own_cache / "search" / "corpus.jsonl")
    return write_lines(
        own_cache / "search" / "questions.jsonl", [{**row, "answer_in_corpus": True} for row in QUESTIONS]
    ).parent


def paw(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", "search", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_build_makes_the_index_that_recipes_look_for(small: Path) -> None:
    folder = Path(paw("build", "--data", "mini").strip())
    assert folder.is_dir() and Bm25Retriever(folder).search(["Oslo"], 1)[0]


def test_build_of_a_dense_index(small: Path, tmp_path: Path) -> None:
    encoder = save_encoder(
        tmp_path / "tiny", ["Oslo is the capital of Norway"], [("Oslo", "capital")], steps=1
    )
    out = tmp_path / "dense"
    printed = paw(
        "build",
        "--retriever",
        "dense",
        "--encoder",
        str(encoder),
        "--max-tokens",
        "32",
        "--out",
        str(out),
        "--data",
        "mini",
    )
    assert printed.strip() == str(out) and (out / "dense.json").is_file()
    with pytest.raises(UserError, match="--out: a dense index needs a folder"):
        paw("build", "--retriever", "dense", "--data", "mini")


def test_list_and_verify_tell_what_is_there(small: Path) -> None:
    assert paw("list", "bamboogle") == "bamboogle/4\tWhere was the composer of Peer Gynt born?\tBergen\n"
    assert "bamboogle of test: 1" in paw("verify")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", "--retriever", "magic"), "one of bm25, dense"),
        (("list", "--data", "wikipedia"), "one of auto, official, mini, generated"),
        (("build", "--corpus", "nowhere.jsonl", "--out", "x"), r"nowhere.jsonl: cannot be read"),
        (("serve", "nowhere"), "no BM25 index here"),
        (("verify", "--data", "official"), "no official questions"),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: tuple[str, ...], says: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, DataError), match=says):
        paw(*arguments)


def test_verify_fails_where_official_questions_are_not_as_published(small: Path) -> None:
    write_lines(
        small / "official" / "nq" / "test.jsonl",
        [{"id": "test_0", "question": "q?", "golden_answers": ["a"]}],
    )
    result = CliRunner().invoke(app, ["data", "search", "verify", "--data", "official"])
    assert result.exit_code == 1 and "nq/test: 1 of 3610, NOT as published" in result.stdout
