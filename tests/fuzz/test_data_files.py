"""The benchmarks' files: games, products, goals, questions, passages."""

from __future__ import annotations

import functools
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from paw_hpc.envs.alfworld import official, store
from paw_hpc.envs.search import corpus, questions
from paw_hpc.envs.webshop import catalogue, source
from paw_hpc.envs.webshop.benchmark import ShopSession
from paw_hpc.envs.webshop.catalogue import Catalogue, Files
from paw_hpc.envs.webshop.game import Game
from tests.envs.webshop.conftest import LAMP_ATTRIBUTES, LAMPS, entry
from tests.fuzz import scratch
from tests.fuzz.harness import Target, judged
from tests.fuzz.inputs import VALUES, as_json, damaged, json_files, json_lines

GRAMMAR = (
    'grammar :: """{"intro": [{"rhs": "-= Welcome =-"}], "task": [{"rhs": "Your task is to: put a '
    'mug on a desk."}]}""";'
)
PUT = 'action PutObject { template :: "move {o} to {r}"; }'
GAME: dict[str, Any] = {
    "pddl_domain": "(define (domain alfred))", "grammar": GRAMMAR + PUT, "pddl_problem": "(define (problem p))", "walkthrough": ["go to desk 1"],
    "solvable": True,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "split": "train", "task": "pick_and_place_simple-Mug-None-Desk-1", "trial": "trial_T1", "goal": "Your task is to: x", "problem": "(define)",
    "walkthrough": ["go to desk 1"], "solvable": True,
}  # fmt: skip
LOGIC: dict[str, Any] = {"pddl_domain": "(define)", "grammar_template": '"rhs": "@@TASK@@"' + PUT}


def _games(kind: str, folder: Path) -> None:
    origin = official.Origin(kind, folder)  # type: ignore[arg-type]

    def read() -> list[Any]:
        origin.fingerprint()
        return list(origin.games())

    found = judged(read)
    if isinstance(found, list):
        path = scratch.folder("stores") / "games.zip"
        if not isinstance(judged(store.write_store, path, found, {}), Exception):
            for task_id in judged(store.open_store, path).digests:
                judged(judged(store.open_store, path).read, task_id)


def _game_folder(data: bytes) -> None:
    folder = scratch.folder("json_2.1.1")
    place = folder / "train" / "pick_and_place_simple-Mug-None-Desk-1" / "trial_T1"
    place.mkdir(parents=True, exist_ok=True)
    (place / official.GAME_FILE).write_bytes(data)
    _games("folder", folder)


def _zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, data)
    return file.getvalue()


NAMES = (
    "json/train/task/trial/game.tw-pddl",
    "game.tw-pddl",
    "/",
    "../x/y/z/game.tw-pddl",
    "a/b/c/../game.tw-pddl",
    "train/t/é/game.tw-pddl",
)
RELEASES = damaged(st.builds(_zipped, st.sampled_from(NAMES), json_files(GAME)))


def _game_release(data: bytes) -> None:
    path = scratch.folder("release") / official.RELEASE
    path.write_bytes(data)
    _games("release", path)


def _game_archive(files: tuple[bytes, bytes]) -> None:
    path = scratch.folder("archive") / official.ARCHIVE
    path.write_bytes(files[0])
    path.with_name("logic.json").write_bytes(files[1])
    _games("archive", path)


ARCHIVES = st.tuples(
    damaged(json_lines([RECORD]).map(functools.partial(lzma.compress, preset=0))), json_files(LOGIC)
)
INDEX = {"format": store.FORMAT, "about": {}, "games": {"train/a/b": "f00"}}
STORED = {
    "task": "Your task is to: x",
    "pddl_problem": "p",
    "walkthrough": ["look"],
    "solvable": True,
    "logic": "f11",
}
SHARED = {"pddl_domain": "d", "grammar": '"@@TASK@@"'}


def _set_of_games(files: tuple[bytes, bytes, bytes]) -> None:
    """A store of the cache, whose parts were changed."""
    path = scratch.folder("store") / "games.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in zip(("index.json", "games/train/a/b.json", "logic/f11.json"), files, strict=True):
            archive.writestr(name, data)
    for cached in (store._open, store._logic, store._archive):
        cached.cache_clear()
    opened = judged(store.open_store, path)
    if isinstance(opened, store.Store):
        for task_id in opened.digests:
            game = judged(opened.read, task_id)
            assert isinstance(game, Exception) or all(
                isinstance(game[key], str) for key in ("pddl_domain", "grammar", "pddl_problem")
            )


FEW = [*LAMPS[:3], entry("B0000001XX", "Candle", query="candles", category="beauty", pricing="$1,200.00")]
ASINS = (
    "reviews",
    "REVIEWS",
    "b000000009",
    "ß",
    "B0000000\0",
    "< PREV",
    "BUY NOW",
    "nan",
    "$",
    "$.",
    "$1.2.3",
    "$" + "9" * 400,
    "$1$2$3",
    "1",
    "/",
    " ",
)
ATTRIBUTES = {
    asin: own for asin, own in LAMP_ATTRIBUTES.items() if asin in {product["asin"] for product in FEW}
} | {"B0000001XX": {"attributes": ["soft"]}}
HUMAN = {
    "B000000001": [
        {
            "instruction": "i want a lamp.",
            "instruction_attributes": ["easy clean"],
            "instruction_options": ["small"],
        }
    ]
}
MANY_OPTIONS = [
    {**FEW[0], "customization_options": {f"o{i}": [{"value": f"v{j}"} for j in range(30)] for i in range(12)}}
]
"""One product that comes in 30 ** 12 kinds."""


def _shop(files: tuple[bytes, bytes, bytes]) -> None:
    folder = scratch.folder("shop")
    paths = [folder / name for name in ("products.json", "attributes.json", "human.json")]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    built = scratch.emptied("shop-store")
    if isinstance(judged(catalogue._write, Files("lamps", *paths), built), Exception):
        return
    shop = judged(Catalogue, built)
    for kind in ("synthetic", "human"):
        listed = judged(shop.goals, kind)
        if isinstance(listed, Exception):
            continue
        for place in range(min(3, len(listed))):
            session = ShopSession(
                Game(shop, listed[place], lambda title: tuple(title.lower().split())), 15, 10.0
            )
            for action in ("search[lamp candle]", "@3", "@4", "@2", "@5"):
                offered = session.state().admissible
                state = judged(
                    session.act,
                    offered[int(action[1:]) % len(offered)] if action[0] == "@" and offered else action,
                )
                assert state.observation.encode() is not None and 0.0 <= state.score <= 1.0


SHOPS = st.one_of(
    st.tuples(json_files(FEW, (*VALUES, *ASINS)), st.just(as_json(ATTRIBUTES)), st.just(as_json(HUMAN))),
    st.tuples(st.just(as_json(FEW)), json_files(ATTRIBUTES), json_files(HUMAN)),
    st.just((as_json(MANY_OPTIONS), as_json(ATTRIBUTES), as_json(HUMAN))),
)

QUESTIONS = [
    {
        "id": "1",
        "question": "who?",
        "golden_answers": ["Oslo"],
        "data_source": "nq",
        "split": "test",
        "searches": ["x"],
        "answer_in_corpus": True,
    },
    {"id": 2, "question": "where?", "golden_answers": "there", "data_source": "hotpotqa", "split": "train"},
]


def _questions(data: bytes) -> None:
    path = scratch.folder("questions") / "questions.jsonl"
    path.write_bytes(data)
    found = judged(questions.read_questions, path)
    if isinstance(found, questions.QuestionFile):
        judged(questions.checksum, found.questions)
        judged(questions.without_overlap, found.questions, found.questions)
        for question in found.questions:
            assert f"{question.task_id} {question.question} {question.answers}".encode()
            assert question.answers and all(isinstance(answer, str) for answer in question.answers)


PASSAGES = [{"id": "0", "contents": '"Oslo"\nOslo is the capital.'}, {"id": 1, "contents": "no title"}]


def _corpus(data: bytes) -> None:
    folder = scratch.folder("corpus")
    path = folder / "corpus.jsonl"
    path.write_bytes(data)
    if isinstance(judged(corpus.index_corpus, path, folder), corpus.Identity):
        for passage in judged(lambda: list(corpus.Corpus(path, folder))):
            assert f"{passage.passage_id} {passage.title} {passage.text}".encode()


def _identity(files: tuple[bytes, bytes]) -> None:
    """The files of an index, beside a corpus that is as it was."""
    folder = scratch.folder("index")
    path = folder / "corpus.jsonl"
    path.write_bytes(CORPUS)
    (folder / corpus.IDENTITY).write_bytes(files[0])
    (folder / corpus.OFFSETS).write_bytes(files[1])
    judged(lambda: list(corpus.Corpus(path, folder)))


def _npy(values: Any, dtype: str) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array(values, dtype=dtype))
    return file.getvalue()


CORPUS = b"".join(as_json(passage) + b"\n" for passage in PASSAGES)
IDENTITY = {"passages": 2, "size_bytes": len(CORPUS), "sha256": "f00"}
OFFSETS = damaged(st.sampled_from([
    _npy([0, CORPUS.index(b"\n") + 1, len(CORPUS)], kind) for kind in ("int64", "int64", "int64", "float64", "complex128", "U9", "datetime64[s]")
] + [_npy([[0, 1], [2, len(CORPUS)]], "int64"), _npy([9, -5, len(CORPUS)], "int64"), _npy(3, "int64"), _npy([], "int64")]))  # fmt: skip


def _trusts(kind: Any, value: Any) -> Any:
    """As a reader that takes the types for granted."""
    return value


def _unchecked(*_: Any) -> None:
    return None


TARGETS = [
    Target("game file", json_files(GAME), _game_folder, lambda patch: patch.setattr(official, "check_game", _unchecked)),
    Target("release of games", RELEASES, _game_release, lambda patch: patch.setattr(official, "check_game", _unchecked)),
    Target("archive of games", ARCHIVES, _game_archive, lambda patch: patch.setattr(official, "check_game", _unchecked)),
    Target(
        "set of games", st.tuples(json_files(INDEX), json_files(STORED), json_files(SHARED)), _set_of_games,
        lambda patch: patch.setattr(store, "checked", _trusts),
    ),
    Target("shop", SHOPS, _shop, lambda patch: patch.setattr(source, "_text", lambda record, key: record[key])),
    Target("questions", json_lines(QUESTIONS), _questions, lambda patch: patch.setattr(questions, "read_json", json.loads)),
    Target("passages", json_lines(PASSAGES), _corpus, lambda patch: patch.setattr(corpus, "read_json", json.loads)),
    Target("index of passages", st.tuples(json_files(IDENTITY), OFFSETS), _identity, lambda patch: patch.setattr(corpus, "checked", _trusts)),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_file_is_read_or_refused_in_one_line(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)
