"""A small made-up world of people, companies, cities and countries, and questions about it, for machines that
have no real questions.

Every fact stands in exactly one passage, in few words of a closed vocabulary, so that a policy from scratch
can learn to search, read and copy. NQ, TriviaQA and PopQA are imitated by questions that one search answers,
the other sets by two or three searches. Who is asked about in training is never asked about in a test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_hpc.system.data_paths import atomic_file, cache_dir, locked
from paw_hpc.system.seeding import generator

PEOPLE, COMPANIES = 1500, 500
TEST_SHARE = 5
"""Every fifth person and company is for tests."""
_WORDS = {
    "first": """
Ada Alma Anton Arno Bela Bruno Carla Clara Dora Edgar Elsa Emil Erik Eva Felix Flora Franz Greta Hanna Henrik
Hugo Ida Ines Ivan Jana Jonas Josef Julia Karl Klara Lara Leo Lena Lukas Marta Max Mila Nina Nora Olga Oskar
Otto Paula Petra Rosa Rudolf Selma Sofia Tilda Viktor
""",
    "last": """
Abel Adler Bauer Becker Berg Blum Brandt Braun Busch Conrad Decker Dietz Ebert Engel Falk Fink Frank Fuchs
Geiger Graf Haas Hahn Hartmann Heller Horn Huber Jung Kaiser Keller Klein Koch Kraft Kuhn Lang Lorenz Ludwig
Maier Marx Moser Neumann Olsen Peters Pohl Reich Richter Roth Sauer Schiller Schwarz Stein Stern Thoma Ulrich
Vogel Wagner Weber Weiss Winter Wolf Zimmer
""",
    "job": """
painter baker doctor lawyer pilot teacher farmer sailor tailor barber banker dentist editor gardener jeweller
miner plumber potter singer weaver
""",
    "goods": """
Glass Paper Steel Cotton Timber Copper Leather Sugar Coffee Pottery Silk Rubber
""",
    "instrument": """
piano violin cello flute harp organ guitar trumpet drum lute
""",
}
_FIRST, _LAST, _JOBS, _GOODS, _INSTRUMENTS = (text.split() for text in _WORDS.values())
_CITIES = {
    "Oslo": "Norway",
    "Bergen": "Norway",
    "Lund": "Sweden",
    "Uppsala": "Sweden",
    "Turku": "Finland",
    "Espoo": "Finland",
    "Aarhus": "Denmark",
    "Odense": "Denmark",
    "Lyon": "France",
    "Nantes": "France",
    "Porto": "Portugal",
    "Braga": "Portugal",
    "Turin": "Italy",
    "Verona": "Italy",
    "Graz": "Austria",
    "Linz": "Austria",
    "Basel": "Switzerland",
    "Bern": "Switzerland",
    "Ghent": "Belgium",
    "Bruges": "Belgium",
    "Delft": "Netherlands",
    "Utrecht": "Netherlands",
    "Malaga": "Spain",
    "Bilbao": "Spain",
}


@dataclass(frozen=True, slots=True)
class _Person:
    name: str
    city: str
    job: str
    instrument: str
    spouse: str


@dataclass(frozen=True, slots=True)
class _Company:
    name: str
    founder: _Person


def generated_folder() -> Path:
    """The folder of the generated questions and corpus, made on first use; its name covers this file's
    text."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = cache_dir("search", f"generated-{key}")
    with locked(folder / "questions.jsonl"):
        if not (folder / "questions.jsonl").is_file():
            passages, questions = make_world()
            # questions last: they make the folder whole
            for name, rows in (("corpus.jsonl", passages), ("questions.jsonl", questions)):
                with atomic_file(folder / name) as file:
                    file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    return folder


def make_world(
    people: int = PEOPLE, companies: int = COMPANIES, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(passages, questions) as rows of the two files."""
    rng = generator(seed, "search-world")
    everyone = _people(people, rng)
    firms = _companies(companies, everyone, rng)
    contents = [
        *map(_of_person, everyone),
        *map(_of_company, firms),
        *(f'"{c}"\n{c} is a city in {land}.' for c, land in _CITIES.items()),
    ]
    passages = [{"id": str(number), "contents": text} for number, text in enumerate(contents)]
    questions = [
        row for number, person in enumerate(everyone) for row in _about_person(person, number, everyone)
    ]
    questions += [row for number, firm in enumerate(firms) for row in _about_company(firm, number)]
    return passages, questions


def words() -> Iterator[str]:
    """Every word of the world's passages and questions."""
    yield from (*_FIRST, *_LAST, *_CITIES, *_CITIES.values(), *_JOBS, *_GOODS, *_INSTRUMENTS)
    person = _Person("Ada Abel", "Oslo", "painter", "piano", "Bela Adler")
    firm = _Company("Abel Glass", person)
    yield from (_of_person(person), _of_company(firm), "is a city in")
    numbers = range(TEST_SHARE * 6)  # every kind of question, of training and of every test set
    yield from (
        row["question"]
        for number in numbers
        for row in (*_about_person(person, number, [person]), *_about_company(firm, number))
    )


def _people(count: int, rng: np.random.Generator) -> list[_Person]:
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:count]]

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    # Couples are neighbours in groups of one split, so that a test question about a spouse meets nobody of
    # training.
    spouses = _couples(chosen)
    return [
        _Person(name, pick(list(_CITIES)), pick(_JOBS), pick(_INSTRUMENTS), spouses[name]) for name in chosen
    ]


def _couples(names: Sequence[str]) -> dict[str, str]:
    spouses = {}
    for remainder in range(TEST_SHARE):
        group = names[remainder::TEST_SHARE]
        for a, b in zip(group[::2], group[1::2], strict=False):
            spouses[a], spouses[b] = b, a
        if len(group) % 2:
            spouses[group[-1]] = group[0]
    return spouses


def _companies(count: int, everyone: Sequence[_Person], rng: np.random.Generator) -> list[_Company]:
    names = [f"{last} {good}" for last in _LAST for good in _GOODS]
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    firms = []
    for number, name in enumerate(chosen):
        group = everyone[number % TEST_SHARE :: TEST_SHARE]
        firms.append(_Company(name, group[int(rng.integers(len(group)))]))
    return firms


def _of_person(p: _Person) -> str:
    return (
        f'"{p.name}"\n{p.name} is a {p.job} who was born in {p.city}, plays the {p.instrument} and is '
        f"married to {p.spouse}."
    )


def _of_company(c: _Company) -> str:
    return f'"{c.name}"\n{c.name} is a company that was founded by {c.founder.name}.'


def _about_person(p: _Person, number: int, everyone: Sequence[_Person]) -> Iterator[dict[str, Any]]:
    if number % TEST_SHARE:
        yield _row("nq", number, "train", f"where was {p.name} born?", p.city, p.name)
        if number % 2:
            yield _row("nq", number + 100_000, "train", f"what is the job of {p.name}?", p.job, p.name)
            yield _row("nq", number + 200_000, "train", f"who is married to {p.name}?", p.spouse, p.name)
        return
    kinds = {
        "nq": (f"where was {p.name} born?", p.city, (p.name,)),
        "triviaqa": (f"in which city was {p.name} born?", p.city, (p.name,)),
        "popqa": (f"what is the instrument of {p.name}?", p.instrument, (p.name,)),
    }
    name = list(kinds)[number // TEST_SHARE % len(kinds)]
    text, answer, searches = kinds[name]
    yield _row(name, number, "test", text, answer, *searches)
    spouse = next((other for other in everyone if other.name == p.spouse), p)
    if number // TEST_SHARE % 2:
        yield _row(
            "2wikimultihopqa",
            number,
            "test",
            f"where was the person married to {p.name} born?",
            spouse.city,
            p.name,
            spouse.name,
        )
    else:
        yield _row(
            "bamboogle",
            number,
            "test",
            f"what is the job of the person married to {p.name}?",
            spouse.job,
            p.name,
            spouse.name,
        )


def _about_company(c: _Company, number: int) -> Iterator[dict[str, Any]]:
    f = c.founder
    if number % TEST_SHARE:
        yield _row(
            "hotpotqa", number, "train", f"where was the founder of {c.name} born?", f.city, c.name, f.name
        )
        yield _row(
            "hotpotqa",
            number + 100_000,
            "train",
            f"what is the job of the founder of {c.name}?",
            f.job,
            c.name,
            f.name,
        )
    elif number // TEST_SHARE % 2:
        yield _row(
            "hotpotqa", number, "test", f"where was the founder of {c.name} born?", f.city, c.name, f.name
        )
    else:
        yield _row(
            "musique",
            number,
            "test",
            f"in which country was the founder of {c.name} born?",
            _CITIES[f.city],
            c.name,
            f.name,
            f.city,
        )


def _row(dataset: str, number: int, split: str, question: str, answer: str, *searches: str) -> dict[str, Any]:
    return {
        "id": f"generated-{number:06d}",
        "data_source": dataset,
        "question": question,
        "golden_answers": [answer],
        "split": split,
        "answer_in_corpus": True,
        "searches": list(searches),
    }
