"""What a generation engine must do: ids in, ids and behaviour log-probs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paw_hpc.experience import Floats, Ids


@dataclass(slots=True, frozen=True)
class GenerationRequest:
    """One turn of one episode."""

    episode: int
    """Index of the episode in the update (orders the requests of a batch)."""
    prompt_ids: Ids
    seed: int
    """Seeds the sampling of this turn alone, so the sampled ids do not depend on what else is in the
    batch."""
    temperature: float
    """0: greedy."""
    max_tokens: int


@dataclass(slots=True, frozen=True)
class Completion:
    """What was sampled. `ids` include the end-of-turn token when it was sampled."""

    ids: Ids
    logprobs: Floats
    """float32[len(ids)], natural log, after temperature (greedy: at temperature 1)."""
    entropies: Floats | None
    """float32[len(ids)], nats, full vocabulary, after temperature; None where the engine cannot say."""
    weight_version: int
    """Of the weights that sampled the last token."""
    finished: bool
    """False: cut off at max_tokens."""
    token_versions: Ids | None = None
    """int32[len(ids)] where weights changed between two tokens; None: all are of `weight_version`."""
    first_token_s: float | None = None
    """From the request to its first token; None where the engine cannot say."""


class Engine(Protocol):
    """Serves one turn at a time to many concurrent episodes (asyncio)."""

    async def generate(self, request: GenerationRequest) -> Completion: ...

    def join(self, episode: int) -> None:
        """An episode starts: it will send requests."""
        ...

    def leave(self, episode: int) -> None:
        """An episode has ended: the engine must not wait for it any more."""
        ...
