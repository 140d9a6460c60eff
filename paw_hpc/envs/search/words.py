"""Text to terms, the same for passages and queries: lower case, no accents, none of Lucene's English stop
words, Snowball's English stems."""

from __future__ import annotations

import re
import threading
import unicodedata

import Stemmer

_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they
this to was will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+")
_local = threading.local()


def terms(text: str) -> list[str]:
    """The terms of a text, in order, repeats included."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return list(
        _stemmer().stemWords([word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS])
    )


def _stemmer() -> Stemmer.Stemmer:
    # A stemmer keeps a cache and must not be used by two threads at once.
    if not hasattr(_local, "stemmer"):
        _local.stemmer = Stemmer.Stemmer("english")
    return _local.stemmer
