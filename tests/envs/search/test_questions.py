"""Question files: what is read, what is refused, which questions are trained on, and that no test question
is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.search import data, fetch
from paw_hpc.envs.search.corpus import index_corpus
from paw_hpc.envs.search.metrics import normalize_answer
from paw_hpc.envs.search.questions import Question, checksum, read_questions, without_overlap
from paw_hpc.recipe import IN_DOMAIN_SETS, QUESTION_SETS
from paw_hpc.system.errors import DataError
from tests.envs.search.conftest import QUESTIONS, write_corpus, write_lines


class TestAFile:
    def test_is_read_in_its_order(self, tmp_path: Path) -> None:
        file = read_questions(write_lines(tmp_path / "q.jsonl", QUESTIONS))
        assert [q.task_id for q in file.questions] == [
            "nq/1",
            "nq/2",
            "hotpotqa/3",
            "bamboogle/4",
            "hotpotqa/5",
        ]
        assert file.questions[1].answers == ("Oslo", "Oslo, Norway") and file.unanswered == 0

    def test_of_one_set_need_not_name_it(self, tmp_path: Path) -> None:
        rows = [{"id": "test_0", "question": "q?", "golden_answers": ["a"], "metadata": {}}]
        (question,) = read_questions(write_lines(tmp_path / "q.jsonl", rows), "popqa", "test").questions
        assert question == Question("test_0", "popqa", "q?", ("a",), "test")

    @pytest.mark.parametrize("answers", [[], None, "", ["  "]])
    def test_questions_without_an_answer_are_left_out_and_counted(self, answers: Any, tmp_path: Path) -> None:
        rows = [*QUESTIONS, {**QUESTIONS[0], "id": "6", "golden_answers": answers}]
        file = read_questions(write_lines(tmp_path / "q.jsonl", rows))
        assert len(file.questions) == len(QUESTIONS) and file.unanswered == 1

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ({"question": None}, r"q.jsonl:6: not a question .*an empty question"),
            ({"question": " "}, r"q.jsonl:6: not a question"),
            ({"data_source": "squad"}, r"q.jsonl:6: not a question .*no set 'squad'; one of nq"),
            ({"id": "1"}, r"q.jsonl:6: the second question with id 1"),
            ({"golden_answers": 7}, r"q.jsonl:6: not a question"),
            (
                {"golden_answers": [None]},
                r"q.jsonl:6: not a question .*golden_answers\[0\] is null, expected text",
            ),
            ({"golden_answers": ["a", {"b": 1}]}, r"q.jsonl:6: not a question .*golden_answers\[1\] is"),
            ({"golden_answers": [True]}, r"q.jsonl:6: not a question .*golden_answers\[0\] is true"),
            ({"id": None}, r"q.jsonl:6: not a question .*id is null, expected text"),
            ({"split": None}, r"q.jsonl:6: not a question .*split is null, expected text"),
        ],
    )
    def test_with_a_bad_line_is_refused(self, row: dict[str, Any], says: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=says):
            read_questions(
                write_lines(tmp_path / "q.jsonl", [*QUESTIONS, {**QUESTIONS[0], "id": "6", **row}])
            )

    @pytest.mark.parametrize(
        ("row", "where"),
        [
            ({"question": "who \ud83d"}, r"question holds half a character, \\ud83d, at character 5"),
            ({"golden_answers": ["Oslo", "\udc00"]}, r"golden_answers\[1\] holds half a character, \\udc00"),
            ({"id": "6\ud83d"}, r"id holds half a character"),
            ({"searches": ["\ud83d"]}, r"searches\[0\] holds half a character"),
        ],
    )
    def test_with_half_a_character_is_refused(self, row: dict[str, Any], where: str, tmp_path: Path) -> None:
        path = tmp_path / "q.jsonl"
        path.write_text(
            "".join(json.dumps(line) + "\n" for line in [*QUESTIONS, {**QUESTIONS[0], "id": "6", **row}])
        )
        with pytest.raises(DataError, match=rf"q.jsonl:6: not a question .*{where}") as caught:
            read_questions(path)
        assert "\n" not in str(caught.value) and str(caught.value).encode()

    def test_may_end_in_empty_lines_and_begin_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "q.jsonl", QUESTIONS)
        plain, content = read_questions(path), path.read_bytes()
        for changed in (
            content + b"\n",
            content + b"  \r\n\n",
            b"\xef\xbb\xbf" + content,
            content.replace(b"\n", b"\r\n"),
        ):
            path.write_bytes(changed)
            assert read_questions(path) == plain
        path.write_bytes(content + b'{"id": "\xff"}\n')
        with pytest.raises(DataError, match=r"q.jsonl:6: torn"):
            read_questions(path)

    def test_that_is_cut_short_empty_or_missing_is_refused(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "q.jsonl", QUESTIONS)
        path.write_bytes(path.read_bytes()[:-25])
        with pytest.raises(DataError, match=r"q.jsonl:5: torn, not JSON"):
            read_questions(path)
        path.write_text("")
        with pytest.raises(DataError, match="no question with an answer"):
            read_questions(path)
        with pytest.raises(DataError, match="cannot be read"):
            read_questions(tmp_path / "none.jsonl")


def test_what_a_test_set_asks_is_not_trained_on() -> None:
    test = [Question("1", "nq", "Who is the  Queen?", ("a",))]
    train = [Question("2", "hotpotqa", "who is queen", ("a",)), Question("3", "nq", "who was queen", ("a",))]
    assert without_overlap(train, test) == train[1:]


def test_a_checksum_covers_ids_texts_answers_and_order() -> None:
    base = [Question("1", "nq", "q?", ("a", "b")), Question("2", "nq", "r?", ("c",))]
    others = [
        base[::-1],
        base[:1],
        [Question("9", "nq", "q?", ("a", "b")), base[1]],
        [Question("1", "nq", "q", ("a", "b")), base[1]],
        [Question("1", "nq", "q?", ("a",)), base[1]],
    ]
    assert len({checksum(base), *map(checksum, others)}) == 6 and checksum(list(base)) == checksum(base)


class TestSources:
    @pytest.fixture
    def official(self, own_cache: Path) -> Path:
        folder = own_cache / "search" / "official"
        for (dataset, split), _ in data.OFFICIAL_COUNTS.items():
            rows = [
                {"id": f"{split}_{i}", "question": f"{dataset} {split} {i}?", "golden_answers": ["a"]}
                for i in range(3)
            ]
            write_lines(folder / dataset / f"{split}.jsonl", rows)
        rows = [
            {"id": "train_0", "question": "POPQA test 1", "golden_answers": ["a"]},
            {"id": "train_1", "question": "new?", "golden_answers": ["a"]},
        ]
        write_lines(folder / "nq" / "train.jsonl", rows)
        return folder

    def test_the_official_sets_come_first(self, official: Path) -> None:
        write_lines(official.parent / "questions.jsonl", QUESTIONS)
        found = data.load("auto")
        assert (found.kind, found.folder.resolve()) == ("official", official.resolve())
        assert len(found.test) == 21 and {q.dataset for q in found.test} == set(QUESTION_SETS)
        assert [q.task_id for q in found.train] == [
            "hotpotqa/train_0",
            "hotpotqa/train_1",
            "hotpotqa/train_2",
            "nq/train_1",
        ]
        assert found.overlapping == 1 and "1 also asked in a test set" in found.description
        assert data.load("mini").kind == "mini"

    def test_counts_are_compared_with_what_was_published(self, official: Path) -> None:
        (official / "musique" / "dev.jsonl").unlink()
        reports = {r.name: r for r in data.verify("official")}
        assert not any(r.intact for r in reports.values())
        assert (
            reports["nq/test"].expected == 3610
            and reports["nq/test"].found == 3
            and reports["musique/dev"].found == 0
        )

    def test_without_any_the_world_is_generated_and_asking_for_others_is_refused(
        self, own_cache: Path
    ) -> None:
        assert data.find("auto")[0] == "generated"
        with pytest.raises(
            DataError, match=r"env.search.data: no official questions .*paw data search fetch"
        ):
            data.load("official")
        with pytest.raises(DataError, match="no mini questions"):
            data.load("mini")

    def test_torn_questions_do_not_fall_back_to_others(self, official: Path) -> None:
        (official / "nq" / "test.jsonl").write_text("{")
        with pytest.raises(DataError, match=r"nq/test.jsonl:1: torn"):
            data.load("auto")


class TestTheMiniBenchmark:
    def test_is_read_whole(self, mini: data.SearchData) -> None:
        assert mini.unanswered == 0 and {q.dataset for q in mini.test} == set(QUESTION_SETS)
        assert {q.dataset for q in mini.train} == set(IN_DOMAIN_SETS) and len(mini.train) > 500
        assert all(q.answer_in_corpus for q in mini.train)

    def test_divides_questions_once_and_for_all(self, mini: data.SearchData) -> None:
        """A change of these numbers changes every result: it must be meant."""
        assert (len(mini.train), len(mini.test)) == (776, 3453)
        assert (
            checksum(mini.train)[:16] == "04cec677fba6f3c9" and checksum(mini.test)[:16] == "014e93f55c4fefd2"
        )


@pytest.mark.parametrize("source", ["mini", "generated"])
def test_training_and_test_questions_are_disjoint(source: Any, mini: data.SearchData) -> None:
    found = data.load(source)
    train, test = ({normalize_answer(q.question) for q in part} for part in (found.train, found.test))
    assert train and test and not train & test
    assert not {q.task_id for q in found.train} & {q.task_id for q in found.test}
    assert [q.task_id for q in found.test] == sorted(q.task_id for q in found.test)


class TestUnpacking:
    @pytest.mark.parametrize("form", ["gzip", "tar"])
    def test_both_published_forms(self, form: str, tmp_path: Path) -> None:
        import gzip
        import tarfile

        plain, packed = write_corpus(tmp_path / "plain.jsonl"), tmp_path / "wiki-18.jsonl.gz"
        if form == "tar":
            with tarfile.open(packed, "w:gz") as archive:
                archive.add(plain, "data/wiki-18.jsonl")
        else:
            packed.write_bytes(gzip.compress(plain.read_bytes()))
        fetch.unpack(packed, tmp_path / "out.jsonl")
        assert (tmp_path / "out.jsonl").read_bytes() == plain.read_bytes()
        index_corpus(tmp_path / "out.jsonl", tmp_path)

    def test_a_torn_archive_leaves_nothing_behind(self, tmp_path: Path) -> None:
        import gzip

        packed = tmp_path / "wiki-18.jsonl.gz"
        packed.write_bytes(gzip.compress(json.dumps(QUESTIONS).encode() * 50)[:-10])
        with pytest.raises(DataError, match="cannot be unpacked"):
            fetch.unpack(packed, tmp_path / "out.jsonl")
        assert [p.name for p in tmp_path.iterdir()] == [packed.name]
        with pytest.raises(DataError, match="published is 7abd929"):
            fetch.check_sha256(packed, fetch.CORPUS_SHA256)
