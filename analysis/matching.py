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
from analysis.evidence import Setting
from analysis.measured import REWARD, SPLIT, Points, paired
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


def difference_at_equal_reward(first: Setting, second: Setting, split: str, metric: str) -> Interval:
    """Any metric of ``first`` less ``second`` where the trainings have reached the same reward.

    That reward is the smaller of the two largest mean rewards along the way, so that both reach it; each training is taken where it
    first does. Between evaluated steps reward and metric are straight lines; the reward and the metric may be of different items.

    Args:
        first: a setting, evaluated at three steps or more to be of use.
        second: the other.
        split: of the metric, such as "held_out_reference_samples".
        metric: such as "log_ratio".

    Raises:
        ValueError: a setting has no two steps with both, or no training seed is shared.
    """
    steps = [
        [step for step in one.steps_of(SPLIT, REWARD) if step in one.steps_of(split, metric)] for one in (first, second)
    ]
    if min(map(len, steps)) < 2:
        raise ValueError(f"{first.label} or {second.label} lacks two steps with both {metric} and the reward")
    blocks = seeds.aligned(
        *(
            [one.values(where, name, step) for one, found in zip((first, second), steps, strict=True) for step in found]
            for where, name in ((SPLIT, REWARD), (split, metric))
        )
    )
    ends = np.cumsum([len(found) for found in (*steps, *steps)])[:-1]

    def difference(means: Array) -> Array:
        rewards_one, rewards_two, values_one, values_two = np.split(means, ends)
        target = np.minimum(rewards_one.max(axis=0), rewards_two.max(axis=0))
        reached = [
            [
                np.interp(_first_reached(at, reward, goal), at, value)
                for reward, value, goal in zip(rewards.T, values.T, target, strict=True)
            ]
            for at, rewards, values in (
                (np.array(steps[0], dtype=float), rewards_one, values_one),
                (np.array(steps[1], dtype=float), rewards_two, values_two),
            )
        ]
        return np.asarray(np.subtract(*np.array(reached)))

    return seeds.interval(*blocks, of=difference)


def _first_reached(at: Array, reward: Array, goal: float) -> float:
    """Where along a training the goal is first reached: its start if it lies above already."""
    return float(_kl_at(at, reward, np.array([max(goal, reward[0])]))[0])


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
