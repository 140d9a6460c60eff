"""Every random draw of a run comes from here.

A draw is named by (run seed, purpose, indices such as update, group, member, step) and never by a worker, a
rank or a file-system order. So the same recipe plays the same tasks on one worker and on sixteen, and a
resumed run continues as if it had not stopped.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(run_seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that is a pure function of its arguments (BLAKE2b, so neighbouring indices share
    nothing)."""
    return name_seed("/".join([str(int(run_seed)), purpose, *(str(int(i)) for i in indices)]))


def name_seed(name: str) -> int:
    """A 63-bit number for a name, for `derive_seed`'s indices: of a task, so that it is played alike wherever
    it stands."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A NumPy generator seeded by `derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, purpose, *indices))
