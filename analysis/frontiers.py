"""KL-vs-reward frontiers: the best reward within a KL budget, dominance between two methods, bands of noisy measurements.

Two shapes of a frontier from measured points, both monotone:

- "pareto": the best reward reached within the budget. A maximum over noisy points is too high (the luckiest wins), so `dominance` and
  `band` choose the points on one half of the prompts and measure them on the other, both ways round.
- "isotonic": the least-squares monotone curve through all points (pool adjacent violators). It averages instead of taking a maximum; points
  that lie below because a method over-optimised pull it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    one, two = (_columns(frontier(*points, shape)) for points in (first, second))
    if not one[0].size or not two[0].size:
        return None
    gap, low, high = _gaps(one, two)
    if not low[0] < high[0]:
        return None
    return Comparison(float(_mean(gap)[0]), float(np.mean(gap >= -tolerance)), float(low[0]), float(high[0]))


def _columns(curve: Curve) -> Curve:
    return curve[0][:, None], curve[1][:, None]


def _gaps(one: Curve, two: Curve) -> tuple[Array, Array, Array]:
    """Height of ``one`` less ``two`` on `GRID` places (GRID, B) from the low to the high end (B,) of the KL that both cover.

    Curves are B at once: (points, B), KL rising along the points.
    """
    low, high = np.maximum(one[0][0], two[0][0]), np.minimum(one[0][-1], two[0][-1])
    at = low + (high - low) * np.linspace(0, 1, GRID)[:, None]
    return _heights(at, one) - _heights(at, two), low, high


def _mean(gap: Array) -> Array:
    """Mean over the range, by the trapezoidal rule."""
    return np.asarray(np.trapezoid(gap, axis=0) / (len(gap) - 1))


def _heights(at: Array, curve: Curve) -> Array:
    """np.interp for B curves (points, B) at once, at (G, B)."""
    x, y = curve
    if len(x) == 1:
        return np.broadcast_to(y, at.shape)
    after = np.clip((x[:, None] <= at).sum(axis=0), 1, len(x) - 1)
    x0, x1, y0, y1 = (np.take_along_axis(values, place, axis=0) for values in (x, y) for place in (after - 1, after))
    width = x1 - x0
    share = np.clip(np.divide(at - x0, width, out=np.ones_like(at), where=width > 0), 0, 1)
    return np.asarray(y0 + share * (y1 - y0))


def hypervolume(kl: ArrayLike, reward: ArrayLike, kl_limit: float, reward_floor: float) -> float:
    """Area that the points (n,) dominate: integral up to ``kl_limit`` of the best reward within the budget, above ``reward_floor``.

    The hypervolume indicator (Zitzler and Thiele 1998) of "less KL, more reward" with the reference point (kl_limit, reward_floor),
    but between points the frontier is a straight line instead of a staircase: drawing from one of two policies at random has the mean
    of their rewards and, KL being convex, at most the mean of their KLs. A staircase would punish few checkpoints.
    """
    x, y = frontier(kl, reward)
    if not x.size or x[0] >= kl_limit:
        return 0.0
    at = np.union1d(np.linspace(x[0], kl_limit, GRID), x[x < kl_limit])
    return float(np.trapezoid(np.maximum(np.interp(at, x, y) - reward_floor, 0.0), at))


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

    found = seeds.interval(*(block for block, _ in folds), of=area, over="prompts")
    return replace(found, n=len(one.prompts))  # both halves


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
            x, y = _curves(means[start : start + 2 * size], shape if shape == "isotonic" else None)
            start += 2 * size
            places = np.broadcast_to(at[:, None], (len(at), means.shape[1]))
            found.append(np.where((places >= x[0]) & (places <= x[-1]), _heights(places, (x, y)), np.nan))
        return np.asarray(np.mean(found, axis=0))

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


def _curves(means: Array, shape: Shape | None) -> Curve:
    """Frontiers (points, B) through KL and reward in turn (2 x points, B); shape None: points of `_chosen`, rewards as they are."""
    kl, reward = means[0::2], means[1::2]
    if shape is None:
        order = np.argsort(kl[:-1], axis=0, kind="stable")
        x, y = (np.take_along_axis(values[:-1], order, axis=0) for values in (kl, reward))
        return np.vstack([x, np.maximum(kl[-1], x[-1])]), np.vstack([y, y[-1]])
    order = np.lexsort((reward, kl), axis=0)
    x, y = (np.take_along_axis(values, order, axis=0) for values in (kl, reward))
    if shape == "pareto":
        return x, np.maximum.accumulate(y, axis=0)
    for column in np.flatnonzero(~(np.diff(y, axis=0) > 0).all(axis=0)):  # what rises is its own isotonic fit
        y[:, column] = optimize.isotonic_regression(y[:, column]).x
    return x, y


def _area(means: Array, size: int, shape: Shape | None) -> Array:
    """Area between two frontiers over its width (B,); NaN where they share no range."""
    gap, low, high = _gaps(_curves(means[: 2 * size], shape), _curves(means[2 * size :], shape))
    return np.where(low < high, _mean(gap), np.nan)
