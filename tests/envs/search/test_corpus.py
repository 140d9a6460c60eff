"""Passages are read by number, and a corpus that is torn, changed or packed is refused in one line that names
the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from paw_hpc.envs.search.corpus import Corpus, Passage, index_corpus
from paw_hpc.system.errors import DataError
from tests.envs.search.conftest import PASSAGES, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_passages_are_found_by_number(corpus: Path, folder: Path) -> None:
    identity = index_corpus(corpus, folder)
    opened = Corpus(corpus, folder)
    assert len(opened) == identity.passages == len(PASSAGES)
    assert [(p.title, p.text) for p in opened] == PASSAGES
    assert opened[4] == Passage("p4", f'"{PASSAGES[4][0]}"\n{PASSAGES[4][1]}')


def test_a_last_line_without_its_newline_is_a_passage_too(tmp_path: Path, folder: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    index_corpus(path, folder)
    assert Corpus(path, folder)[len(PASSAGES) - 1].title == PASSAGES[-1][0]


def test_a_corpus_may_end_in_empty_lines_and_begin_with_a_byte_order_mark(
    tmp_path: Path, folder: Path
) -> None:
    path = write_corpus(tmp_path / "c.jsonl")
    content = path.read_bytes()
    for changed in (content + b"\n", content + b"\n  \r\n", b"\xef\xbb\xbf" + content):
        path.write_bytes(changed)
        index_corpus(path, folder)
        assert [(p.title, p.text) for p in Corpus(path, folder)] == PASSAGES


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[:-20], r"c.jsonl:7: the last line is cut short"),
        (lambda b: b.replace(b'{"id": "p2"', b'{"id" "p2"'), r"c.jsonl:3: not a passage"),
        (lambda b: b.replace(b'"contents": "\\"Bergen\\"', b'"text": "', 1), r"c.jsonl:2: not a passage"),
        (lambda b: b + b'{"id": "x", "contents": " "}\n', r"c.jsonl:8: a passage without contents"),
        (lambda b: b + b"[]\n", r"c.jsonl:8: not a passage"),
        (lambda b: b"", r"c.jsonl: empty"),
        (lambda b: b"\n\n", r"c.jsonl: empty"),
        (lambda b: b + b"\n" + b, r"c.jsonl:8: an empty line between passages"),
        (
            lambda b: b + b'{"id": "x", "contents": "a \\ud83d"}\n',
            r"c.jsonl:8: contents holds half a character, \\ud83d, at character 3",
        ),
        (
            lambda b: b + b'{"id": "x", "contents": "a \\ud83d"}',
            r"c.jsonl:8: contents holds half a character",
        ),
        (lambda b: b + b'{"id": "\\ud83d", "contents": "a"}\n', r"c.jsonl:8: id holds half a character"),
    ],
)
def test_a_damaged_corpus_is_refused(damage, says: str, tmp_path: Path, folder: Path) -> None:  # type: ignore[no-untyped-def]
    path = write_corpus(tmp_path / "c.jsonl")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=says):
        index_corpus(path, folder)


def test_missing_and_packed_files_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        index_corpus(tmp_path / "none.jsonl", folder)
    with pytest.raises(DataError, match="compressed; unpack it first"):
        index_corpus(tmp_path / "c.jsonl.gz", folder)


def test_a_corpus_that_changed_after_it_was_indexed_is_refused(tmp_path: Path, folder: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="no whole index"):
        Corpus(path, folder)
    index_corpus(path, folder)
    Corpus(path, folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="changed or cut short"):
        Corpus(path, folder)
    path.unlink()
    with pytest.raises(DataError, match="no such corpus"):
        Corpus(path, folder)
