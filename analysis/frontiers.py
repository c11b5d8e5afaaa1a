"""KL-vs-reward frontiers: the best reward within a KL budget, and the difference between two methods at equal KL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRID = 201  # points of the shared KL range at which two frontiers are compared


@dataclass(frozen=True)
class Comparison:
    """``first`` against ``second`` over the KL range that both cover (nats)."""

    difference: float  # mean of reward(first) - reward(second) over the shared range: area between, over its width
    share: float  # share of the shared range where first's reward is at least second's
    low: float  # the shared range
    high: float


def frontier(kl: ArrayLike, reward: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points (n,) by rising KL (nats), each with the best reward reached at its KL or below."""
    x, y = np.asarray(kl, dtype=float), np.asarray(reward, dtype=float)
    finite = np.isfinite(x) & np.isfinite(y)  # a policy that diverged has no place on a frontier
    x, y = x[finite], y[finite]
    order = np.lexsort((y, x))
    return x[order], np.maximum.accumulate(y[order])


def compare(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], tolerance: float = 0.0
) -> Comparison | None:
    """Compare two sets of (KL, reward) points at equal KL, frontiers interpolated linearly.

    Args:
        first: KL (n,) in nats and reward (n,).
        second: the same, of the other method.
        tolerance: reward differences up to this count as equal in ``share``.

    Returns:
        The comparison, or None where the two cover no common range of KL.
    """
    one, two = frontier(*first), frontier(*second)
    if not one[0].size or not two[0].size:
        return None
    low, high = max(one[0][0], two[0][0]), min(one[0][-1], two[0][-1])
    if not low < high:
        return None
    grid = np.linspace(low, high, GRID)
    gap = np.interp(grid, *one) - np.interp(grid, *two)
    return Comparison(float(np.trapezoid(gap, grid) / (high - low)), float(np.mean(gap >= -tolerance)), low, high)
