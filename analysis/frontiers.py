"""KL-vs-reward frontiers: the best reward within a KL budget, dominance between two methods, bands of noisy measurements.

Two shapes of a frontier from measured points, both monotone:

- "pareto": the best reward reached within the budget. A maximum over noisy points is too high (the luckiest wins), so `dominance` and
  `band` choose the points on one half of the prompts and measure them on the other, both ways round.
- "isotonic": the least-squares monotone curve through all points (pool adjacent violators). It averages instead of taking a maximum; points
  that lie below because a method over-optimised pull it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from analysis import seeds
from analysis.measured import Points, paired
from analysis.statistics import Interval
from analysis.tuning import halves

GRID = 201  # points of the shared KL range at which two frontiers are compared
Shape = Literal["pareto", "isotonic"]
Array = NDArray[np.float64]
Curve = tuple[Array, Array]  # KL and reward, KL rising


@dataclass(frozen=True)
class Comparison:
    """``first`` against ``second`` over the KL range that both cover (nats)."""

    difference: float  # mean of reward(first) - reward(second) over the shared range: area between, over its width
    share: float  # share of the shared range where first's reward is at least second's
    low: float  # the shared range
    high: float


def frontier(kl: ArrayLike, reward: ArrayLike, shape: Shape = "pareto") -> Curve:
    """The points (n,) by rising KL (nats), each with the best reward reached at its KL or below, or the isotonic fit there."""
    x, y = np.asarray(kl, dtype=float), np.asarray(reward, dtype=float)
    finite = np.isfinite(x) & np.isfinite(y)  # a policy that diverged has no place on a frontier
    x, y = x[finite], y[finite]
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    if shape == "pareto" or not x.size:
        return x, np.maximum.accumulate(y)
    return x, np.asarray(optimize.isotonic_regression(y).x)


def compare(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    tolerance: float = 0.0,
    shape: Shape = "pareto",
) -> Comparison | None:
    """Compare two sets of (KL, reward) points at equal KL, frontiers interpolated linearly.

    Args:
        first: KL (n,) in nats and reward (n,).
        second: the same, of the other method.
        tolerance: reward differences up to this count as equal in ``share``.
        shape: of the frontiers.

    Returns:
        The comparison, or None where the two cover no common range of KL.
    """
    return between(frontier(*first, shape), frontier(*second, shape), tolerance)


def between(one: Curve, two: Curve, tolerance: float = 0.0) -> Comparison | None:
    """Compare two curves (KL rising) over the range of KL that both cover; None where there is none."""
    if not one[0].size or not two[0].size:
        return None
    low, high = max(one[0][0], two[0][0]), min(one[0][-1], two[0][-1])
    if not low < high:
        return None
    grid = np.linspace(low, high, GRID)
    gap = np.interp(grid, *one) - np.interp(grid, *two)
    return Comparison(float(np.trapezoid(gap, grid) / (high - low)), float(np.mean(gap >= -tolerance)), low, high)


def hypervolume(kl: ArrayLike, reward: ArrayLike, kl_limit: float, reward_floor: float) -> float:
    """Area that the points (n,) dominate: integral from 0 to ``kl_limit`` of the best reward within the budget, above ``reward_floor``.

    The hypervolume indicator (Zitzler and Thiele 1998) of "less KL, more reward", with the reference point (kl_limit, reward_floor).
    """
    x, y = frontier(kl, reward)
    within = (x < kl_limit) & (y > reward_floor)
    x, y = x[within], y[within]
    return float(np.sum(np.diff(np.append(np.maximum(x, 0.0), kl_limit)) * (y - reward_floor)))


def dominance(first: Points, second: Points, shape: Shape = "pareto") -> Interval:
    """Mean reward of ``first`` less ``second`` at equal KL, over the range that both cover: the area between the frontiers over its width.

    For "pareto" the points of each frontier are chosen on one half of the prompts and measured on the other, both ways round, so that the
    method with more or noisier points is given nothing for it. Interval over seeds and prompts, given the chosen points.

    Raises:
        ValueError: no seed, or fewer than half of the prompts, are shared.
    """
    one, two = paired(first, second)
    if shape == "isotonic":
        return seeds.interval(_stack(one, two), of=lambda means: _area(means, len(one.kl), shape), over="prompts")
    folds = []
    for choosing, measuring in _folds(one.prompts):
        kept = [_chosen(points, choosing) for points in (one, two)]
        folds.append((_stack(*kept)[:, :, measuring], len(kept[0].kl)))

    def area(means: Array) -> Array:
        split = len(folds[0][0])
        parts = (means[:split], means[split:])
        areas = [_area(part, size, None) for part, (_, size) in zip(parts, folds, strict=True)]
        return np.asarray(np.mean(areas, axis=0))

    return seeds.interval(*(block for block, _ in folds), of=area, over="prompts")


def hypervolume_difference(
    first: Points, second: Points, kl_limit: float | None = None, reward_floor: float | None = None
) -> Interval:
    """Hypervolume of ``first`` less ``second`` (reward times nats), with its interval over seeds and prompts.

    Unlike `dominance` it counts how far a method reaches, and it takes the maximum over noisy points as it is: with many points near each
    other it is too high for both.

    Args:
        first: points of one method.
        second: points of the other.
        kl_limit: default: the largest KL that either reaches.
        reward_floor: default: the reference's reward, or the lowest where it was not measured.

    Raises:
        ValueError: as `dominance`.
    """
    one, two = paired(first, second)
    limit = max(points.kl.mean(axis=1).max() for points in (one, two)) if kl_limit is None else kl_limit
    floor = min(points.reward.mean(axis=1)[0] for points in (one, two)) if reward_floor is None else reward_floor

    def volume(means: Array) -> Array:
        split = 2 * len(one.kl)
        return np.array(
            [
                hypervolume(a[0::2], a[1::2], limit, floor) - hypervolume(b[0::2], b[1::2], limit, floor)
                for a, b in zip(means[:split].T, means[split:].T, strict=True)
            ]
        )

    return seeds.interval(_stack(one, two), of=volume, over="prompts")


def band(points: Points, grid: ArrayLike | None = None, shape: Shape = "isotonic") -> pd.DataFrame:
    """A method's frontier with its 95 % band, pointwise, over seeds and prompts.

    Args:
        points: of the method.
        grid: values of KL (G,), nats; default: 41 from 0 to the largest measured mean.
        shape: of the frontier; "pareto" is chosen on one half of the prompts and measured on the other, both ways round.

    Returns:
        Rows: kl, reward, low, high, seeds; low and high NaN where no interval can be given (beyond what was measured).
    """
    at = np.linspace(0, points.kl.mean(axis=1).max(), 41) if grid is None else np.ravel(np.asarray(grid, dtype=float))
    if shape == "isotonic":
        blocks, sizes = [_stack(points)], [len(points.kl)]
    else:
        blocks = [_stack(_chosen(points, one))[:, :, other] for one, other in _folds(points.prompts)]
        sizes = [len(block) // 2 for block in blocks]

    def heights(means: Array) -> Array:
        found, start = [], 0
        for size in sizes:
            part = means[start : start + 2 * size]
            start += 2 * size
            curves = [_curve(column, shape if shape == "isotonic" else None) for column in part.T]
            found.append([np.interp(at, *curve, left=np.nan, right=np.nan) for curve in curves])
        with np.errstate(all="ignore"):
            return np.asarray(np.mean(found, axis=0).T)

    rows = [
        {"kl": float(x), "reward": one.estimate, "low": one.low, "high": one.high, "seeds": one.seeds}
        for x, one in zip(at, seeds.intervals(*blocks, of=heights, over="prompts"), strict=True)
    ]
    return pd.DataFrame(rows)


def dominance_table(points: dict[str, Points], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Who dominates whom: for each pair of methods the area between frontiers (both shapes) and the difference of hypervolumes.

    Returns:
        Rows (first, second, measure): estimate, low, high, p, detectable (80 % power), prompts, seeds. Measures: "area, pareto" and
        "area, isotonic" in units of reward, "hypervolume" in reward times nats.
    """
    rows = []
    for first, second in pairs:
        one, two = points[first], points[second]
        measures = {
            "area, pareto": dominance(one, two),
            "area, isotonic": dominance(one, two, "isotonic"),
            "hypervolume": hypervolume_difference(one, two),
        }
        for name, value in measures.items():
            rows.append(
                {"first": first, "second": second, "measure": name}
                | {"estimate": value.estimate, "low": value.low, "high": value.high, "p": value.p_value()}
                | {"detectable": value.detectable(), "prompts": value.n, "seeds": value.seeds}
            )
    return pd.DataFrame(rows)


def _folds(prompts: NDArray[np.int64]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(choosing, measuring) places of the prompts, both ways round."""
    selection, report = (np.flatnonzero(half) for half in halves(prompts))
    return [(selection, report), (report, selection)]


def _chosen(points: Points, prompts: NDArray[np.intp]) -> Points:
    """The points on the Pareto frontier as these prompts see it, and last the one of the largest KL, to which the frontier stays flat."""
    kl, reward = points.kl[:, prompts].mean(axis=1), points.reward[:, prompts].mean(axis=1)
    order = np.lexsort((-reward, kl))
    best = np.maximum.accumulate(reward[order])
    fresh = np.concatenate([[True], best[1:] > best[:-1]])
    kept = [*np.sort(order[fresh]), order[-1]]
    return Points(
        points.kl_values[kept], points.reward_values[kept], points.where.iloc[kept], points.seeds, points.prompts
    )


def _stack(*points: Points) -> Array:
    """(2 x points, seeds, prompts): KL and reward of each point in turn, one method after the other."""
    return np.concatenate(
        [np.stack([one.kl_values, one.reward_values], axis=1).reshape(-1, *one.kl_values.shape[1:]) for one in points]
    )


def _curve(column: Array, shape: Shape | None) -> Curve:
    """The frontier through KL and reward in turn (2 x points,); None: through points that `_chosen` chose, rewards as they are."""
    kl, reward = column[0::2], column[1::2]
    if shape is not None:
        return frontier(kl, reward, shape)
    order = np.argsort(kl[:-1], kind="stable")
    x, y = kl[:-1][order], reward[:-1][order]
    return np.append(x, max(kl[-1], x[-1])), np.append(y, y[-1])


def _area(means: Array, size: int, shape: Shape | None) -> Array:
    """Area between two curves over its width, for each resample."""
    found = []
    for one, two in zip(means[: 2 * size].T, means[2 * size :].T, strict=True):
        compared = between(_curve(one, shape), _curve(two, shape))
        found.append(np.nan if compared is None else compared.difference)
    return np.array(found)
