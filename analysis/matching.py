"""Matched comparisons: two methods at equal KL, or at equal reward, by interpolation along each one's own path.

A method's path is its points by rising KL: through its strengths (the last checkpoint of each) or through its training. Between measured
points it is straight; nothing is extrapolated. The bands are over training seeds and prompts, each resample with paths of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import seeds
from analysis.measured import Points, paired
from analysis.statistics import Interval

Array = NDArray[np.float64]
Along = Callable[[Array, Array, Array], Array]  # KL and reward of a path (P,), places (G,) -> (G,)
PLACES = 5  # values of KL or reward at which paths are compared by default


def at_equal_kl(first: Points, second: Points, kl: ArrayLike | None = None) -> pd.DataFrame:
    """Reward of ``first`` less ``second`` at the same KL to the reference.

    Args:
        first: points of a path, see `analysis.measured.measured_points` (along="strengths" or "steps").
        second: the other method's.
        kl: values of KL (G,), nats; default: `PLACES` within the range that both reach.

    Returns:
        Rows: kl, first, second (rewards), difference, low, high, p, detectable (80 % power), prompts, seeds. NaN where one does not reach.

    Raises:
        ValueError: the paths share no seed, too few prompts, or no range of KL.
    """
    one, two = paired(first, second)
    return _table(one, two, kl, "kl", _reward_at)


def at_equal_reward(first: Points, second: Points, reward: ArrayLike | None = None) -> pd.DataFrame:
    """KL of ``first`` less ``second`` where each path first reaches the same reward.

    Args:
        first: points of a path.
        second: the other method's.
        reward: rewards (G,); default: `PLACES` within the range that both reach.

    Returns:
        Rows: reward, first, second (KL in nats), difference, low, high, p, detectable, prompts, seeds. NaN where one does not reach.

    Raises:
        ValueError: as `at_equal_kl`.
    """
    one, two = paired(first, second)
    return _table(one, two, reward, "reward", _kl_at)


def _table(one: Points, two: Points, at: ArrayLike | None, name: str, value: Along) -> pd.DataFrame:
    axis = [points.kl if name == "kl" else points.reward for points in (one, two)]
    means = [values.mean(axis=1) for values in axis]
    if at is None:
        low, high = max(mean.min() for mean in means), min(mean.max() for mean in means)
        if not low < high:
            raise ValueError(f"the two paths share no range of {name}")
        places = np.linspace(low, high, PLACES + 2)[1:-1]
    else:
        places = np.ravel(np.asarray(at, dtype=float))
    blocks = np.concatenate(
        [np.stack([p.kl_values, p.reward_values], axis=1).reshape(-1, *p.kl_values.shape[1:]) for p in (one, two)]
    )
    split = 2 * len(one.kl)

    def heights(columns: Array) -> tuple[Array, Array]:
        found = [
            np.array([value(column[0::2], column[1::2], places) for column in part.T]).T
            for part in (columns[:split], columns[split:])
        ]
        return found[0], found[1]

    def difference(columns: Array) -> Array:
        first, second = heights(columns)
        return first - second

    found: list[Interval] = seeds.intervals(blocks, of=difference, over="prompts")
    levels = heights(blocks.mean(axis=(1, 2))[:, None])
    rows = []
    for place, a, b, gap in zip(places, levels[0][:, 0], levels[1][:, 0], found, strict=True):
        rows.append(
            {name: float(place), "first": float(a), "second": float(b), "difference": gap.estimate}
            | {"low": gap.low, "high": gap.high, "p": gap.p_value(), "detectable": gap.detectable()}
            | {"prompts": gap.n, "seeds": gap.seeds}
        )
    return pd.DataFrame(rows)


def _reward_at(kl: Array, reward: Array, places: Array) -> Array:
    order = np.argsort(kl, kind="stable")
    return np.interp(places, kl[order], reward[order], left=np.nan, right=np.nan)


def _kl_at(kl: Array, reward: Array, places: Array) -> Array:
    """KL at which the path first reaches each reward; NaN where it never does, or starts above."""
    order = np.argsort(kl, kind="stable")
    x, y = kl[order], reward[order]
    best = np.maximum.accumulate(y)
    found = np.full(len(places), np.nan)
    for place, height in enumerate(places):
        if height < best[0] or height > best[-1]:
            continue
        end = int(np.argmax(best >= height))
        # all points before lie below, so the piece that ends here is the first to cross
        share = 1.0 if end == 0 else (height - y[end - 1]) / (y[end] - y[end - 1])
        found[place] = x[end] if end == 0 else x[end - 1] + share * (x[end] - x[end - 1])
    return found
