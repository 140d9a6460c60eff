"""Questions with golden answers, as JSON lines: `id`, `question`, `golden_answers`, and (in files of several
sets) `data_source` and `split`."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_hpc.envs.base import Task
from paw_hpc.envs.search.metrics import normalize_answer
from paw_hpc.recipe import IN_DOMAIN_SETS, QUESTION_SETS
from paw_hpc.system.errors import DataError
from paw_hpc.system.outside import read_json
from paw_hpc.system.text import require_text

_FIELDS = ("id", "question", "golden_answers", "data_source", "split", "searches")
"""What is read of a line."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a set."""

    question_id: str
    """Unique within its set."""
    dataset: str
    question: str
    answers: tuple[str, ...]
    """At least one; any of them is right."""
    split: str = "test"
    answer_in_corpus: bool | None = None
    """Whether a golden answer stands in some passage; None: not known."""
    searches: tuple[str, ...] = ()
    """Generated questions: the queries that lead to the answer."""

    @property
    def task_id(self) -> str:
        return f"{self.dataset}/{self.question_id}"

    def task(self, source: Path) -> Task:
        return Task(self.task_id, self.dataset, str(source))


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """What a file holds. `unanswered` questions have no golden answer: nothing can be scored on them, so they
    are left out and counted."""

    questions: tuple[Question, ...]
    unanswered: int


def read_questions(path: Path, dataset: str | None = None, split: str | None = None) -> QuestionFile:
    """The questions of a file, in its order.

    Args:
        dataset, split: of all questions; none: as each line says.

    Raises:
        DataError: missing or torn file, an unknown set, or two questions of one id; names the line.
    """
    questions, unanswered, seen = list[Question](), 0, set[str]()
    for where, record in _records(path):
        try:
            question = _question(record, dataset, split)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{where}: not a question ({type(error).__name__}: {error}); expected id, question and "
                "golden_answers: fetch or restore the file"
            ) from None
        if question.task_id in seen:
            raise DataError(f"{where}: the second question with id {question.question_id}; restore the file")
        seen.add(question.task_id)
        if question.answers:
            questions.append(question)
        else:
            unanswered += 1
    if not questions:
        raise DataError(f"{path}: no question with an answer in it; fetch or restore the file")
    return QuestionFile(tuple(questions), unanswered)


def without_overlap(train: Sequence[Question], test: Sequence[Question]) -> list[Question]:
    """The training questions whose normalised text is not that of a test question, whatever its set."""
    known = {normalize_answer(question.question) for question in test}
    return [question for question in train if normalize_answer(question.question) not in known]


def checksum(questions: Sequence[Question]) -> str:
    """sha256 over ids, texts and answers, in the order given."""
    digest = hashlib.sha256()
    for q in questions:
        digest.update(json.dumps([q.task_id, q.question, q.answers], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def is_in_domain(dataset: str) -> bool:
    """Whether the paper trains on this set."""
    return dataset in IN_DOMAIN_SETS


def _question(record: dict[str, Any], dataset: str | None, split: str | None) -> Question:
    require_text({key: record.get(key) for key in _FIELDS})
    dataset = dataset or _word(record, "data_source")
    if dataset not in QUESTION_SETS:
        raise ValueError(f"no set {dataset!r}; one of {', '.join(QUESTION_SETS)}")
    text, answers = record["question"], record.get("golden_answers") or ()
    if not isinstance(text, str) or not text.strip():
        raise ValueError("an empty question")
    answers = [answers] if isinstance(answers, str) else list(answers)
    return Question(
        question_id=_word(record, "id"),
        dataset=dataset,
        question=" ".join(text.split()),
        answers=tuple(
            answer
            for answer in (_said(answer, f"golden_answers[{i}]") for i, answer in enumerate(answers))
            if answer.strip()
        ),
        split=split or _word(record, "split"),
        answer_in_corpus=record.get("answer_in_corpus"),
        searches=tuple(_said(query, f"searches[{i}]") for i, query in enumerate(record.get("searches", ()))),
    )


def _word(record: dict[str, Any], key: str) -> str:
    return _said(record[key], key)


def _said(value: Any, field: str) -> str:
    """A string or a number, as text. What else JSON has would become a word that nobody wrote, such as
    None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{field} is {json.dumps(value)[:40]}, expected text")
    return str(value)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.removeprefix(codecs.BOM_UTF8).strip():
                    continue  # editors leave an empty line at the end
                try:
                    record = read_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except ValueError:
                    raise DataError(f"{path}:{number}: torn, not JSON; fetch or restore the file") from None
                yield f"{path}:{number}", record
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch or restore the file") from None
