"""Lucene's English analysis, as Anserini applies it to documents and queries: words, lower case, no
possessives, no stop words, Porter stems.

Words are those of Lucene's StandardTokenizer (Unicode word breaks, UAX #29): an apostrophe or a period
between letters and a comma or a period between digits do not break, CJK ideographs and emoji stand alone.
"""

from __future__ import annotations

import functools
from collections import Counter

import regex
from nltk.stem.porter import PorterStemmer

_STOP_TEXT = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
STOP_WORDS = frozenset(_STOP_TEXT.split())
_IDEOGRAPH = r"\p{Script=Han}"
_LETTER_JOINER = r"[.'‘’:：﹕·．․]"
_NUMBER_JOINER = r"[.,;']"
_EMOJI = r"[\p{Extended_Pictographic}★☚-☟♡♔-♟♪-♯❥❧]"
_WORD = regex.compile(
    # an emoji, with its variation selectors, skin tones and joined parts
    rf"{_EMOJI}[️‍\p{{EMod}}]*(?:‍\p{{Extended_Pictographic}}️?)*"
    # an ideograph or a Hiragana sign alone
    rf"|[{_IDEOGRAPH}\p{{Script=Hiragana}}]"
    # letters, digits and their marks ...
    rf"|(?:[^\W_{_IDEOGRAPH}\p{{Script=Hiragana}}]\p{{M}}*)+"
    # ... continued over a joiner between two letters, a joiner between two digits, or underscores
    rf"(?:(?<=\p{{L}}\p{{M}}*){_LETTER_JOINER}(?=\p{{L}})(?:[^\W_{_IDEOGRAPH}]\p{{M}}*)+"
    rf"|(?<=\p{{N}}){_NUMBER_JOINER}(?=\p{{N}})[^\W_{_IDEOGRAPH}]+"
    rf"|_+[^\W_{_IDEOGRAPH}]+)*"
)
_stemmer = PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)


@functools.lru_cache(maxsize=1 << 18)
def _term(word: str) -> str:
    """The index term of a word; empty for a stop word."""
    term = word.lower()
    for possessive in ("'s", "’s"):
        term = term.removesuffix(possessive)
    if not term or term in STOP_WORDS:
        return ""
    return term if len(term) <= 2 else str(_stemmer.stem(term, to_lowercase=False))


def terms(text: str) -> list[str]:
    """The index terms of a text, in order, repetitions kept."""
    return [term for word in _WORD.findall(text) if (term := _term(word))]


def term_counts(text: str) -> Counter[str]:
    """Terms with their counts, in order of first occurrence."""
    return Counter(terms(text))
