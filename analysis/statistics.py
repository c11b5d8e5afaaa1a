"""Estimates with intervals. The methods are scipy's; here they get one type, fixed seeds and honest edge cases.

What is resampled here is always the *items* (held-out prompts, samples, benchmark questions) or, in bandits, the seeds of
the sampled data sets; `analysis.seeds` resamples training seeds too. With one training seed an interval says nothing about
training noise, and whoever reports it must say so (``over`` below). From fewer than two values no interval is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
SEED = 20231216  # any fixed number: the same records always give the same interval

Method = Literal["BCa", "percentile", "basic"]
Correction = Literal["holm", "bh"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``low`` and ``high`` are NaN where no interval can be given."""

    estimate: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0  # values it rests on
    over: str = "items"  # what n counts
    seeds: int = 1  # training seeds that were resampled too; 1: the interval does not cover training noise
    df: float = math.inf  # degrees of freedom of its standard error, where that was estimated from few values
    ratio: bool = False  # the interval is symmetric on the logarithm

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.known and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.known and self.high < 0

    def p_value(self, bound: float = 0.0) -> float:
        """Two-sided p of a true value of ``bound``, by inverting the interval (level `LEVEL`); NaN without one.

        The half of the interval on the bound's side is taken for its standard error, so that p < .05 exactly where the
        95 % interval excludes the bound.
        """
        if not self.known:
            return math.nan
        low, estimate, high, at = self._scaled(bound)
        half = estimate - low if estimate > at else high - estimate
        critical = self._critical
        distance = abs(estimate - at)
        return 1.0 if distance == 0 else float(2 * stats.t.sf(critical * distance / half, self.df)) if half > 0 else 0.0

    def detectable(self, power: float = POWER) -> float:
        """Minimal detectable effect: the true distance from a bound that the two-sided test at `LEVEL` sees with this power.

        From the noncentral t distribution with the interval's own standard error and degrees of freedom (Cohen 1988, section 2.5); for a
        ratio the factor above 1 that is seen. NaN without an interval. It says what the records could have shown, and does not depend on
        what they show.
        """
        if not self.known:
            return math.nan
        low, _, high, _ = self._scaled(self.estimate)
        error = (high - low) / 2 / self._critical
        found = error * _noncentrality(self.df, power)
        return math.exp(found) if self.ratio else found

    @property
    def _critical(self) -> float:
        return float(stats.t.ppf(0.5 + LEVEL / 2, self.df))

    def _scaled(self, bound: float) -> tuple[float, float, float, float]:
        """low, estimate, high and the bound on the scale on which the interval is symmetric."""
        values = (self.low, self.estimate, self.high, bound)
        if not self.ratio:
            return values
        low, estimate, high, at = (math.log(value) for value in values)
        return low, estimate, high, at

    def __str__(self) -> str:
        if not self.known:
            return f"{self.estimate:.3g} (no interval: n = {self.n})"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: ArrayLike, *, over: str = "items", method: Method = "BCa", level: float = LEVEL) -> Interval:
    """Mean of ``values`` (n,) with a bootstrap interval (Efron 1987 for BCa).

    Raises:
        ValueError: a value is NaN or infinite.
    """
    data = _finite(values)
    if data.size < 2 or np.ptp(data) == 0:  # nothing varies: no interval can be learnt from these values
        return Interval(float(data.mean()) if data.size else math.nan, n=data.size, over=over)
    result = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method=method,
        batch=min(RESAMPLES, max(1, 2**25 // data.size)),  # bounds memory where there are tens of thousands of items
        rng=np.random.default_rng(SEED),
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high), data.size, over)


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of ``values`` (n,); NaN for n < 2."""
    data = _finite(values)
    return float(stats.sem(data)) if data.size > 1 else math.nan


def paired_difference(first: pd.Series, second: pd.Series, *, over: str = "items", level: float = LEVEL) -> Interval:
    """Mean of ``first - second`` over the items that both have, matched by index, with a bootstrap interval.

    Raises:
        ValueError: an index has repeated items, the two share fewer than half of the smaller one's items, or a value
            is NaN or infinite.
    """
    first, second = matched(first, second)
    return mean((first - second).to_numpy(), over=over, level=level)


def matched(*columns: pd.Series) -> tuple[pd.Series, ...]:
    """The columns restricted to the items that all have, in one order.

    Raises:
        ValueError: an index has repeated items, or fewer than half of the smallest column's items are shared.
    """
    for column in columns:
        if column.index.has_duplicates:
            repeated = column.index[column.index.duplicated()][0]
            raise ValueError(f"paired values need unique items, but item {repeated} repeats")
    shared = columns[0].index
    for column in columns[1:]:
        if not column.index.equals(shared):
            shared = shared.intersection(column.index)
    shared = shared if shared.is_monotonic_increasing else shared.sort_values()
    smallest = min(len(column) for column in columns)
    if 2 * len(shared) < smallest:
        raise ValueError(
            f"only {len(shared)} of {smallest} items are shared: these values were not measured on the same items"
        )
    return tuple(on(column, shared) for column in columns)


def on(column: pd.Series, items: pd.Index) -> pd.Series:
    """The column at these items, in their order; all must be there."""
    return column if column.index.equals(items) else column.loc[items]


def paired_test(before: pd.Series, after: pd.Series) -> tuple[float, str]:
    """Two-sided p of no difference between the values of the items that both have, and the name of the test.

    Where every value is 0 or 1 the exact test of McNemar (1947), that is, a binomial test of the items that changed; else a permutation
    test that swaps before and after of each item (exact where there are few, else 9999 random ones with a fixed seed).

    Raises:
        ValueError: as `matched`, or a value is NaN or infinite.
    """
    first, second = (_finite(column.to_numpy()) for column in matched(before, after))
    changed = first != second
    if np.isin([first, second], (0, 1)).all():
        gained, n = int((second > first).sum()), int(changed.sum())
        return (float(stats.binomtest(gained, n).pvalue) if n else 1.0), "McNemar"
    if changed.sum() < 2:
        return 1.0, "permutation"
    result = stats.permutation_test(
        (second[changed], first[changed]),  # an item without a change stays so when swapped
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(result.pvalue), "permutation"


def adjusted(p_values: ArrayLike, correction: Correction) -> NDArray[np.float64]:
    """p-values (m,) adjusted for m tests made at once.

    Args:
        p_values: of all tests of the family.
        correction: "holm" bounds the probability of any false discovery (Holm 1979; valid under any dependence), "bh" the expected share
            of false ones among the discoveries (Benjamini and Hochberg 1995; independent or positively dependent tests).
    """
    p = _finite(p_values)
    if correction == "bh":
        return np.asarray(stats.false_discovery_control(p, method="bh"), dtype=float) if p.size else p
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(steps, 1.0)
    return found


def difference_of_means(first: ArrayLike, second: ArrayLike, *, over: str = "items", level: float = LEVEL) -> Interval:
    """``mean(first) - mean(second)`` of two independent samples, with a bootstrap interval."""
    one, two = _finite(first), _finite(second)
    estimate = float(one.mean() - two.mean()) if one.size and two.size else math.nan
    n = min(one.size, two.size)
    if n < 2 or np.ptp(one) + np.ptp(two) == 0:
        return Interval(estimate, n=n, over=over)
    result = stats.bootstrap(
        (one, two),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high), n, over)


def ratio(first: ArrayLike, second: ArrayLike, *, over: str = "items", level: float = LEVEL) -> Interval:
    """Ratio of the geometric means of two independent samples of positive values, by Welch's t on the logarithms.

    Unlike a bootstrap this keeps its level with a handful of values, such as the times of a few steps.

    Raises:
        ValueError: a value is not positive and finite.
    """
    one, two = _finite(first), _finite(second)
    if (one <= 0).any() or (two <= 0).any():
        raise ValueError("a ratio needs positive values")
    n = min(one.size, two.size)
    estimate = float(stats.gmean(one) / stats.gmean(two)) if n else math.nan
    if n < 2 or np.ptp(one) + np.ptp(two) == 0:
        return Interval(estimate, n=n, over=over)
    test = stats.ttest_ind(np.log(one), np.log(two), equal_var=False)
    interval = test.confidence_interval(confidence_level=level)
    return Interval(estimate, math.exp(interval.low), math.exp(interval.high), n, over, df=float(test.df), ratio=True)


def over_items(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, over: str = "items", level: float = LEVEL
) -> Interval:
    """Bootstrap interval (percentile) of any statistic of ``n`` items, given as a function of the items' indices."""
    estimate = float(statistic(np.arange(n)))
    if n < 2 or not math.isfinite(estimate):
        return Interval(estimate, n=n, over=over)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(n),),
            lambda index: statistic(index),
            n_resamples=RESAMPLES // 2,
            confidence_level=level,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(SEED),
        )
    low, high = result.confidence_interval
    if low == high:
        return Interval(estimate, n=n, over=over)
    return Interval(estimate, float(low), float(high), n, over)


def proportion(successes: int, trials: int, *, over: str = "seeds", level: float = LEVEL) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927)."""
    if trials == 0:
        return Interval(math.nan, over=over)
    interval = stats.binomtest(successes, trials).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high), trials, over)


def trend(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b of ``y`` against ``x``: 1 for a rising, -1 for a falling sequence; infinite values rank highest."""
    return float(stats.kendalltau(np.asarray(x, dtype=float), np.asarray(y, dtype=float)).statistic)


def _noncentrality(df: float, power: float) -> float:
    """Noncentrality at which the two-sided t test at `LEVEL` has this power (its far tail, below 1e-3 of it, left out)."""
    critical = float(stats.t.ppf(0.5 + LEVEL / 2, df))
    if df > 1e5:
        return critical + float(stats.norm.ppf(power))
    return float(special.nctdtrinc(df, 1 - power, critical))


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    """The values as a flat float array. A value that is not finite is an error: leaving it out would change the answer."""
    data = np.asarray(values, dtype=float).ravel()
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} of {data.size} values are not finite")
    return data
