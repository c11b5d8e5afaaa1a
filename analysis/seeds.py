"""Intervals that cover training seeds and items: every item (prompt, question) is measured under every training seed.

The design is crossed. A value is y[s, i] = mean + a_s + b_i + e_si: training noise, the item, and both together; with items
alone resampled an interval misses a_s. Seeds and items are therefore resampled apart (the two ways of Owen's pigeonhole bootstrap, 2007),
and their variances added. Since e_si is then counted twice, the sum is never too small in the mean (Owen, theorem 4).

Training seeds are few, and two things that vanish with many matter at three of them:

- A bootstrap of S values understates the variance of a mean by (S - 1)/S. Drawing S - 1 of them instead makes it exact (Rao and Wu 1988).
- A standard error from S values has S - 1 degrees of freedom: 95 % at S = 3 takes 4.30 of them, not 1.96. The interval is the estimate plus
  and minus Student's quantile, with Satterthwaite's degrees of freedom (1946) for the sum of the variances.

With one seed only items are resampled, and the interval says so (``Interval.seeds``). Methods that are compared are paired: the same draw
of seeds and items is applied to all of them.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.statistics import LEVEL, RESAMPLES, SEED, Interval, matched

Array = NDArray[np.float64]
OfMeans = Callable[[Array], Array]  # K means, for B resamples at once: (K, B) -> (B,), or (G, B) for G statistics
DRAWS = 1000  # resamples for a standard error: its own error is then 2 %
UNDEFINED = 0.1  # largest share of resamples in which a statistic may have no value


def difference(means: Array) -> Array:
    """The first mean less the second."""
    return np.asarray(means[0] - means[1])


def interval(
    *blocks: ArrayLike, of: OfMeans | None = None, over: str = "items", level: float = LEVEL, apart: bool = False
) -> Interval:
    """A function of means over seeds and items, with its interval.

    Args:
        blocks: values (K, S, I) of K quantities under S training seeds on I items, or (S, I) for one. Blocks have the same seeds, in
            one order, and each its own items; quantities of one block have the same items.
        of: the statistic, from the K means of all blocks in their order, (K, B) -> (B,); default: the first mean. It may be NaN
            where it has no value (two frontiers that share no range of KL).
        over: what items are.
        level: of the interval.
        apart: blocks have nothing in common, seeds included: each is resampled by itself, and their numbers of seeds may differ.

    Returns:
        The estimate with its interval. No interval where nothing varies, where one seed has fewer than two items, or where the
        statistic has no value in more than `UNDEFINED` of the resamples.

    Raises:
        ValueError: a value is not finite, or blocks differ in their number of seeds.
    """
    function = (lambda means: means[0]) if of is None else of
    return intervals(*blocks, of=lambda means: function(means)[None], over=over, level=level, apart=apart)[0]


def intervals(
    *blocks: ArrayLike, of: OfMeans, over: str = "items", level: float = LEVEL, apart: bool = False
) -> list[Interval]:
    """As `interval` for G statistics at once, such as a frontier at G values of KL; ``of`` gives (K, B) -> (G, B).

    Each interval has its level by itself: together they are a pointwise band.

    Raises:
        ValueError: as `interval`.
    """
    data = [_block(block) for block in blocks]
    counts = {block.shape[1] for block in data}
    if len(counts) != 1 and not apart:
        raise ValueError(f"blocks of {' and '.join(map(str, sorted(counts)))} training seeds cannot be paired")
    count, items = min(counts), min(block.shape[2] for block in data)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        points = of(np.concatenate([block.mean(axis=(1, 2)) for block in data])[:, None])[:, 0]
        if counts == {1}:
            ends = _items_only(data, of, items, level)
            return [_known(*found, items, over, 1, math.inf) for found in zip(points, *ends, strict=True)]
        parts = _variances(data, of, apart)
    variance = np.sum([part for part, _ in parts], axis=0)
    with np.errstate(all="ignore"):
        freedom = variance**2 / np.sum([part**2 / df for part, df in parts], axis=0)
        half = stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance)
    rows = zip(points, points - half, points + half, freedom, strict=True)
    return [_known(point, low, high, items, over, count, df) for point, low, high, df in rows]


def _known(point: float, low: float, high: float, items: int, over: str, count: int, df: float) -> Interval:
    if math.isfinite(point) and math.isfinite(low) and math.isfinite(high) and low < high:
        return Interval(float(point), float(low), float(high), items, over, count, float(df))
    return Interval(float(point), n=items, over=over, seeds=count)


def _block(values: ArrayLike) -> Array:
    block = np.asarray(values, dtype=float)
    block = block[None] if block.ndim == 2 else block
    if block.ndim != 3 or 0 in block.shape:
        raise ValueError(f"values have shape {block.shape}; they need (quantities, seeds, items), none of them empty")
    if not np.isfinite(block).all():
        raise ValueError(f"{int((~np.isfinite(block)).sum())} of {block.size} values are not finite")
    return block


def _variances(data: list[Array], function: OfMeans, apart: bool) -> list[tuple[Array, float]]:
    """Variance of the statistics over seeds (of each block, if ``apart``) and over the items of each, with their degrees of freedom."""
    still = [np.repeat(block.mean(axis=(1, 2))[:, None], DRAWS, axis=1) for block in data]
    by_seed, by_item = ([block.mean(axis=axis) for block in data] for axis in (2, 1))

    def moved(means: list[Array], places: Sequence[int], stream: int) -> tuple[Array, float]:
        """Where only these blocks' seeds or items are drawn, by the same draw."""
        size = means[places[0]].shape[1]
        drawn = _weights(size, stream, DRAWS)
        parts = [means[place] @ drawn if place in places else still[place] for place in range(len(data))]
        return _spread(_once(function, np.concatenate(parts))), size - 1.0

    everywhere = range(len(data))
    shared = [[place] for place in everywhere if by_seed[place].shape[1] > 1] if apart else [list(everywhere)]
    found = [moved(by_seed, places, len(data) + 1 + places[0] if apart else 0) for places in shared]
    return found + [moved(by_item, [place], place + 1) for place in everywhere if by_item[place].shape[1] > 1]


def _once(function: OfMeans, means: Array) -> Array:
    """The statistics of resamples (K, B), each computed once: few seeds can be drawn in few ways, three of them in six."""
    distinct, place = np.unique(means, axis=1, return_inverse=True)
    if 2 * distinct.shape[1] > means.shape[1]:
        return function(means)
    return np.asarray(function(distinct)[:, place])


@functools.lru_cache(maxsize=16)
def _weights(size: int, stream: int, resamples: int) -> Array:
    """How often each of ``size`` values is drawn in size - 1 draws, as a share of them: (size, resamples), the same at every call."""
    rng = np.random.default_rng([SEED, stream])
    return np.asarray(rng.multinomial(size - 1, np.full(size, 1 / size), resamples).T / (size - 1))


def _spread(values: Array) -> Array:
    """Variance over the resamples (last axis) in which a statistic has a value; NaN where too many have none."""
    known = np.isfinite(values)
    variance = np.nanvar(np.where(known, values, np.nan), axis=-1)
    return np.where(known.mean(axis=-1) >= 1 - UNDEFINED, variance, np.nan)


def _items_only(data: list[Array], function: OfMeans, items: int, level: float) -> tuple[Array, Array]:
    """Ends of the intervals over the items of every block: BCa for a single statistic, percentiles for several."""
    columns = [block[:, 0] for block in data]

    def statistic(*index: NDArray[np.intp], axis: int = -1) -> Array:
        del axis  # scipy asks for the last one
        means = [column[:, chosen].mean(axis=-1) for column, chosen in zip(columns, index, strict=True)]
        flat = function(np.concatenate([mean.reshape(len(mean), -1) for mean in means]))
        return np.asarray(flat.reshape(*flat.shape[:-1], *means[0].shape[1:]))

    first = statistic(*(np.arange(column.shape[1]) for column in columns))
    low = high = np.full(first.shape, math.nan)
    if items < 2:
        return low, high
    single = len(first) == 1
    widest = max(column.size for column in columns)
    for method in ("BCa", "percentile") if single else ("percentile",):
        result = stats.bootstrap(
            tuple(np.arange(column.shape[1]) for column in columns),
            (lambda *index, axis: statistic(*index)[0]) if single else statistic,
            n_resamples=RESAMPLES,
            confidence_level=level,
            method=method,
            batch=min(RESAMPLES, max(1, 2**24 // widest)),
            vectorized=True,
            rng=np.random.default_rng(SEED),
        )
        low, high = (np.atleast_1d(end) for end in result.confidence_interval)
        if np.isfinite(low).all() and np.isfinite(high).all():
            break
    drawn = np.atleast_2d(result.bootstrap_distribution)
    enough = np.isfinite(drawn).mean(axis=-1) >= 1 - UNDEFINED
    if not single or not np.isfinite(low).all():  # a few resamples without a value
        low, high = np.nanquantile(
            np.where(np.isfinite(drawn), drawn, np.nan), [0.5 - level / 2, 0.5 + level / 2], axis=-1
        )
    return np.where(enough, low, math.nan), np.where(enough, high, math.nan)


def shared_seeds(*columns: Sequence[str]) -> list[str]:
    """The training seeds that all have, in order: what differences between methods are paired by.

    Raises:
        ValueError: there is none.
    """
    shared = sorted(set.intersection(*(set(column) for column in columns)))
    if not shared:
        raise ValueError("the methods were trained with no seed in common, so their differences cannot be paired")
    return shared


def aligned(*groups: Sequence[pd.DataFrame]) -> list[Array]:
    """Tables of values, seeds by items, as the blocks of `interval`: one block (K, S, I) for each group of tables.

    All tables are restricted to the training seeds that they share, those of one group to the items that they share.

    Raises:
        ValueError: a table is empty or holds NaN, no seed is shared, or fewer than half of a group's items are.
    """
    if any(table.empty for tables in groups for table in tables):
        raise ValueError("something of what is compared was not evaluated")
    common = shared_seeds(*(list(table.index) for tables in groups for table in tables))
    blocks = []
    for tables in groups:
        items = matched(*(pd.Series(0, index=table.columns) for table in tables))[0].index
        blocks.append(_block(np.stack([seeds_by_items(table, common, items) for table in tables])))
    return blocks


def seeds_by_items(table: pd.DataFrame, seeds: Sequence[str], items: pd.Index) -> Array:
    """A table's values at these seeds (rows) and items (columns); all must be there."""
    if not (table.columns.equals(items) and list(table.index) == list(seeds)):
        table = table.loc[list(seeds), items]
    return table.to_numpy(dtype=float)


def weighted(*weights: float) -> OfMeans:
    """The weighted sum of the means, for `interval`."""
    column = np.asarray(weights, dtype=float)
    return lambda means: np.asarray(column @ means)
