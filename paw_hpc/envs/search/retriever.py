"""What a retriever is, and what it does when it cannot answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paw_hpc.envs.search.corpus import Passage

BM25_META, DENSE_META = "bm25.json", "dense.json"
"""The file that makes an index folder whole, and tells its kind."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and how well it answers a query (higher is better; comparable within one retriever only)."""

    passage: Passage
    score: float


class RetrieverFailure(RuntimeError):
    """A retriever that is down, slow or answers nonsense. `refused`: it is well but will not answer these
    queries (asking again will not help)."""

    def __init__(self, message: str, *, refused: bool = False):
        super().__init__(message)
        self.refused = refused


class Retriever(Protocol):
    """Passages for queries. May be called from several threads at once."""

    @property
    def name(self) -> str:
        """What it is, for logs: method, corpus."""
        ...

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages per query, best first, ties by place in the corpus; a query that matches
        nothing has none.

        Raises:
            RetrieverFailure: no answer.
        """
        ...

    def close(self) -> None:
        """Give up connections and end waiting calls."""
        ...
