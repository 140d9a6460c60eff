"""How much of a world model's training signal goes to text that nothing could predict (paper, App. A.4).

On a page of search results such text is a product's id (`B` and nine capitals or digits) and brand names in
capitals. The size of the gradient on the logit of the target token is 1 - p under cross-entropy and p (1 - p)
under MAE: where p is near 0, as on an id, cross-entropy pushes hardest and MAE hardly at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex

NOISE = regex.compile(r"B[0-9A-Z]{9}|[A-Z]{4,}")
SEARCH_RESULTS = "(Total results: "
"""What a page of search results holds, and no other page."""
TRANSITIONS = 100
"""Pages looked at, as in the paper."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NoiseShares:
    """Shares in [0, 1] that noisy tokens have in all observation tokens, and in the summed gradient magnitude
    of each loss."""

    transitions: int
    tokens: int
    token_share: float
    cross_entropy: float
    mae: float
    clipped_mae: float
    """MAE over tokens with p <= rho, the loss of PaW."""


def noisy_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> Bools:
    """bool[n]: which tokens overlap an id or a brand.

    Args:
        offsets: each token's span in `text`, in characters.
    """
    at = np.zeros(len(text) + 1, dtype=np.int64)
    for match in NOISE.finditer(text):
        at[match.start()] += 1
        at[match.end()] -= 1
    inside = np.concatenate([[0], np.cumsum(at[:-1]).cumsum()])  # characters of noise before each position
    return np.array([inside[end] > inside[start] for start, end in offsets], dtype=bool)


def noise_shares(
    logp: Sequence[npt.NDArray[np.float32]], noisy: Sequence[Bools], rho: float
) -> NoiseShares | None:
    """The shares over all pages together; None where there is no token.

    Args:
        logp: per page, float32[n] log-probability of each true token.
        noisy: per page, bool[n].
    """
    if not sum(len(page) for page in logp):
        return None
    p, mask = np.exp(np.concatenate(logp).astype(np.float64)), np.concatenate(noisy)

    def share(magnitude: npt.NDArray[np.float64]) -> float:
        return float(magnitude[mask].sum() / magnitude.sum()) if magnitude.sum() > 0 else 0.0

    return NoiseShares(
        transitions=len(logp),
        tokens=len(p),
        token_share=float(mask.mean()),
        cross_entropy=share(1 - p),
        mae=share(p * (1 - p)),
        clipped_mae=share(np.where(p <= rho, p * (1 - p), 0.0)),
    )
