"""Exact match and F1 of short answers, as SQuAD's evaluation defines them (Rajpurkar et al. 2016), over
several golden answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces (in SQuAD's order)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden: Sequence[str]) -> bool:
    """Whether the normalised answer equals a normalised golden answer. An answer of which nothing is left
    matches nothing."""
    said = normalize_answer(answer)
    return bool(said) and any(said == normalize_answer(gold) for gold in golden)


def f1(answer: str, golden: Sequence[str]) -> float:
    """Best token F1 over the golden answers, in [0, 1]. `yes`, `no` and `noanswer` agree as a whole or not at
    all (HotpotQA's evaluation)."""
    return max((_f1(normalize_answer(answer), normalize_answer(gold)) for gold in golden), default=0.0)


def contains_answer(text: str, golden: Sequence[str]) -> bool:
    """Whether a golden answer stands in a text as a run of whole words, both normalised."""
    words = f" {normalize_answer(text)} "
    return any(f" {gold} " in words for gold in map(normalize_answer, golden) if gold)


def _f1(said: str, gold: str) -> float:
    whole = ("yes", "no", "noanswer")
    if said != gold and (said in whole or gold in whole):
        return 0.0
    common = sum((Counter(said.split()) & Counter(gold.split())).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said.split()), common / len(gold.split())
    return 2 * precision * recall / (precision + recall)
