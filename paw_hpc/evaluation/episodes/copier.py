"""Which tokens of a next observation are those of the observation before it: the yardstick beside every prediction."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt


def copied(previous: npt.NDArray[np.int32], following: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """bool[len(following)]: which tokens a copier gets right that knows the true tokens so far. It goes on copying behind the token that it copied
    last; after a wrong one, behind the next place in `previous` where the true token stands, or where it was."""
    known, hits, at = previous.tolist(), [], 0
    for token in following.tolist():
        hits.append(at < len(known) and known[at] == token)
        with contextlib.suppress(ValueError):
            at = known.index(token, at) + 1
    return np.array(hits, dtype=bool)
