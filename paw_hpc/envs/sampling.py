"""Choices that no machine, worker count or file order can change."""

from __future__ import annotations

from collections.abc import Mapping


def proportional_shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Divide `count` among the keys in proportion to their sizes (largest remainders; ties by key). Integer
    arithmetic: no rounding to differ in."""
    total = sum(sizes.values())
    shares = {key: count * size // total for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(count * sizes[key] % total), key))
    for key in by_remainder[: count - sum(shares.values())]:
        shares[key] += 1
    return shares
