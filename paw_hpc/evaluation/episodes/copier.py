"""Which tokens of a next observation are those of the observation before it: the yardstick beside every
prediction."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt


def copied_tokens(previous: npt.NDArray[np.int32], following: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """bool[len(following)]: which tokens a copier gets right that knows the true tokens so far. It goes on
    copying behind the token that it copied last; after a wrong one, behind the next place in `previous` where
    the true token stands, or where it was."""
    known, hits, at = previous.tolist(), [], 0
    places: dict[int, list[int]] = {}
    for place, token in enumerate(known):
        places.setdefault(token, []).append(place)
    for token in following.tolist():
        there = places.get(token, [])
        later = bisect_left(there, at)
        hits.append(later < len(there) and there[later] == at)
        at = there[later] + 1 if later < len(there) else at
    return np.array(hits, dtype=bool)
