"""Which questions and which corpus are played: the whole of the seven sets over wiki-18, the mini benchmark,
or generated ones.

    official   <root>/search/official/<set>/<split>.jsonl and <root>/search/official/wiki-18.jsonl
    mini       <root>/search/questions.jsonl and <root>/search/corpus.jsonl: real questions and passages
    generated  made on first use, in the cache

Training questions come from `train` sets, test questions from the others; a training question whose text is
also a test question's is dropped.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paw_hpc.envs.search.generate import generated_folder
from paw_hpc.envs.search.questions import Question, read_questions, without_overlap
from paw_hpc.recipe import IN_DOMAIN_SETS, QUESTION_SETS
from paw_hpc.system import data_paths
from paw_hpc.system.errors import DataError
from paw_hpc.system.seeding import derive_seed

_log = logging.getLogger(__name__)

DataSource = Literal["auto", "official", "mini", "generated"]
FOLDER, OFFICIAL, CORPUS, MINI_QUESTIONS, MINI_CORPUS = (
    "search",
    "official",
    "wiki-18.jsonl",
    "questions.jsonl",
    "corpus.jsonl",
)
TRAIN_SPLITS = {"nq": "train", "hotpotqa": "train"}
TEST_SPLITS = {
    "nq": "test",
    "triviaqa": "test",
    "popqa": "test",
    "hotpotqa": "dev",
    "2wikimultihopqa": "dev",
    "musique": "dev",
    "bamboogle": "test",
}
"""The split on which each set is judged: its test split, or its development split where test answers are not
public."""
OFFICIAL_COUNTS = {
    ("nq", "train"): 79168,
    ("hotpotqa", "train"): 90447,
    ("nq", "test"): 3610,
    ("triviaqa", "test"): 11313,
    ("popqa", "test"): 14267,
    ("hotpotqa", "dev"): 7405,
    ("2wikimultihopqa", "dev"): 12576,
    ("musique", "dev"): 2417,
    ("bamboogle", "test"): 125,
}
"""Questions per set and split (FlashRAG's collection, Jin et al. 2024)."""
OFFICIAL_PASSAGES = 21_015_324


@dataclass(frozen=True, slots=True)
class SearchData:
    """Questions, sorted by task id, and where they and the passages lie."""

    kind: Literal["official", "mini", "generated"]
    folder: Path
    corpus: Path
    """May be absent where a server retrieves."""
    train: tuple[Question, ...]
    test: tuple[Question, ...]
    unanswered: int
    overlapping: int
    """Training questions dropped because a test set asks the same."""

    @property
    def description(self) -> str:
        left_out = [f"{self.unanswered} without an answer"] * bool(self.unanswered) + [
            f"{self.overlapping} also asked in a test set"
        ] * bool(self.overlapping)
        return f"{self.kind} questions ({len(self.train)} train, {len(self.test)} test" + (
            f"; left out: {', '.join(left_out)})" if left_out else ")"
        )


def load(source: DataSource = "auto") -> SearchData:
    """The questions of a source; read once per process.

    Args:
        source: auto takes the official sets where they are at hand, else the mini benchmark, else generated
            questions.

    Raises:
        DataError: not there though asked for, torn, or without a training or test question.
    """
    kind, folder = find(source)
    return _load(kind, folder)


def find(source: DataSource = "auto") -> tuple[Literal["official", "mini", "generated"], Path]:
    """(kind, folder) of what a source stands for on this machine. Raises DataError."""
    roots = [root / FOLDER for root in data_paths.data_roots()]
    if source in ("auto", "official"):
        for folder in (root / OFFICIAL for root in roots):
            if folder.is_dir() and any(folder.glob("*/*.jsonl")):
                return "official", folder
    if source in ("auto", "mini"):
        for folder in roots:
            if (folder / MINI_QUESTIONS).is_file():
                return "mini", folder
    if source in ("auto", "generated"):
        return "generated", generated_folder()
    what = "<set>/<split>.jsonl" if source == "official" else f"{MINI_QUESTIONS} and {MINI_CORPUS}"
    looked = ", ".join(str(root / OFFICIAL if source == "official" else root) for root in roots)
    raise DataError(
        f"env.search.data: no {source} questions ({what}) in {looked}; run `paw data search fetch`, set "
        "PAW_DATA, or use data=generated"
    )


@functools.lru_cache(maxsize=4)
def _load(kind: Literal["official", "mini", "generated"], folder: Path) -> SearchData:
    if kind == "official":
        train, test, unanswered = _official(folder)
        corpus = folder / CORPUS
    else:
        file = read_questions(folder / MINI_QUESTIONS)
        train, test = _divided(file.questions) if kind == "mini" else _as_marked(file.questions)
        unanswered, corpus = file.unanswered, folder / MINI_CORPUS
    kept = without_overlap(train, test)
    if unanswered:
        _log.warning("%s: %d questions without an answer are left out", folder, unanswered)

    def by_id(questions: Sequence[Question]) -> tuple[Question, ...]:
        return tuple(sorted(questions, key=lambda q: q.task_id))

    return SearchData(kind, folder, corpus, by_id(kept), by_id(test), unanswered, len(train) - len(kept))


def _official(folder: Path) -> tuple[list[Question], list[Question], int]:
    parts: dict[str, list[Question]] = {"train": [], "test": []}
    unanswered = 0
    for part, splits in (("train", TRAIN_SPLITS), ("test", TEST_SPLITS)):
        for dataset, split in splits.items():
            path = folder / dataset / f"{split}.jsonl"
            if path.is_file():  # a set that was not fetched is missed when it is asked for
                file = read_questions(path, dataset, split)
                parts[part] += file.questions
                unanswered += file.unanswered
    return parts["train"], parts["test"], unanswered


def _divided(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """The mini benchmark has no training sets of its own, so three quarters of NQ and HotpotQA, chosen by a
    hash of the id, are for training.

    Of those, the ones whose answer stands in no passage are left out. Test questions of the official NQ are
    among them: what is trained here must not be judged on the official sets.
    """

    def for_training(q: Question) -> bool:
        return q.dataset in IN_DOMAIN_SETS and derive_seed(0, f"mini-split/{q.task_id}") % 4 != 0

    return [q for q in questions if for_training(q) and q.answer_in_corpus], [
        q for q in questions if not for_training(q)
    ]


def _as_marked(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    return [q for q in questions if q.split == "train"], [q for q in questions if q.split != "train"]


def index_folder(corpus: Path) -> Path:
    """Where the BM25 index of a corpus file is kept when nobody says otherwise; the name changes with the
    file's place, size and time.

    Raises:
        DataError: there is no such file.
    """
    try:
        facts = corpus.stat()
    except OSError:
        raise DataError(f"{corpus}: no such corpus; run `paw data search fetch`") from None
    key = hashlib.sha256(f"{corpus.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16]
    return data_paths.cache_dir(FOLDER, "indices") / f"bm25-{key}"


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One file of questions against what it should hold."""

    name: str
    found: int
    expected: int | None
    """None: nobody says."""

    @property
    def intact(self) -> bool:
        return self.expected is None or self.found == self.expected


def verify(source: DataSource = "auto") -> list[SplitReport]:
    """Read every question at hand and count them per set and part.

    Raises:
        DataError: nothing there, or torn.
    """
    kind, folder = find(source)
    if kind != "official":
        data = _load(kind, folder)
        return [
            SplitReport(f"{name} of {part}", sum(q.dataset == name for q in questions), None)
            for part, questions in (("train", data.train), ("test", data.test))
            for name in QUESTION_SETS
            if any(q.dataset == name for q in questions)
        ]
    reports = []
    for (dataset, split), expected in OFFICIAL_COUNTS.items():
        path = folder / dataset / f"{split}.jsonl"
        file = read_questions(path, dataset, split) if path.is_file() else None
        reports.append(
            SplitReport(f"{dataset}/{split}", len(file.questions) + file.unanswered if file else 0, expected)
        )
    return reports
