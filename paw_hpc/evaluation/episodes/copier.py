"""Which tokens of a next observation are those of the observation before it: the yardstick beside every prediction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def copied(previous: npt.NDArray[np.int32], following: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """bool[len(following)]: which tokens a copier gets right that knows the true tokens so far. It goes on copying behind the token that it copied
    last; after a wrong one, behind the next place in `previous` where the true token stands, or where it was."""
    hits, at = np.zeros(len(following), dtype=bool), 0
    for i, token in enumerate(following):
        hits[i] = at < len(previous) and previous[at] == token
        later = np.flatnonzero(previous[at:] == token)
        at += int(later[0]) + 1 if len(later) else 0
    return hits
