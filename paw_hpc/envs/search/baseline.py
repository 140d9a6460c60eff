"""Retrieve, then copy: a player without a language model, as a yardstick for what reading adds.

It searches for the question's own words and copies a span of what came back: of the kind that is asked for (a
date, a number, a name), not said in the question, from sentences that share most with it, best passages
first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.metrics import normalize_answer
from paw_hpc.envs.search.words import terms

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(
    rf"(?:(?:{_MONTHS}) \d{{1,2}}, \d{{4}}|\d{{1,2}} (?:{_MONTHS}) \d{{4}}|(?:{_MONTHS}) "
    rf"\d{{4}}|\b1\d{{3}}\b|\b20\d{{2}}\b)"
)
_NUMBER = re.compile(
    r"\b\d[\d,.]*\d\b|\b\d\b|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
)
_NAME = re.compile(r"\b[A-Z][\w'’-]*(?:\s+(?:(?:of|de|la|van|von|the|and)\s+)?[A-Z][\w'’-]*)*")
_WHEN = re.compile(r"\b(when|what year|which year|what date|what day)\b")
_HOW_MANY = re.compile(r"\b(how many|how much|how old|how long|number of)\b")
_YES_NO = re.compile(r"^(is|are|was|were|do|does|did|has|have|can)\b")
_OR = re.compile(r"[,:]\s*([^,:]+?)\s+or\s+([^,?]+?)\s*\??$")


def copy_answer(question: str, passages: Sequence[Passage]) -> str:
    """A short answer out of the passages (best first); empty where they hold nothing of the right kind."""
    asked = question.lower()
    if choice := _OR.search(question):
        return _more_often_met(choice[1], choice[2], passages)
    if _YES_NO.match(asked):
        return "yes"
    kind = _DATE if _WHEN.search(asked) else _NUMBER if _HOW_MANY.search(asked) else _NAME
    said, scores = set(terms(question)), defaultdict[str, float](float)
    spelling: dict[str, str] = {}
    for rank, passage in enumerate(passages):
        for sentence, weight in _sentences(passage, said):
            for span in kind.findall(sentence):
                key = normalize_answer(span)
                if key and not set(terms(span)) <= said:
                    scores[key] += weight / (rank + 1)
                    spelling.setdefault(key, span)
    return spelling[max(scores, key=lambda key: (scores[key], key))] if scores else ""


def _sentences(passage: Passage, said: set[str]) -> Iterator[tuple[str, float]]:
    """(sentence, how much it shares with the question); the title counts as one."""
    yield passage.title, 1.0 + len(said & set(terms(passage.text))) / 4
    for sentence in _SENTENCE.split(passage.text):
        yield sentence, float(len(said & set(terms(sentence))))


def _more_often_met(a: str, b: str, passages: Sequence[Passage]) -> str:
    text = " ".join(terms(" ".join(passage.contents for passage in passages)))
    return a if text.count(" ".join(terms(a))) >= text.count(" ".join(terms(b))) else b
