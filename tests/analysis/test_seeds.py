"""Intervals over seeds and items: against closed forms, two-way analysis of variance, and simulations with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis import seeds, statistics
from analysis.statistics import Interval


def crossed(rng: np.random.Generator, n: int, items: int, training: float, item: float, both: float) -> np.ndarray:
    """y[s, i] = a_s + b_i + e_si around 0, with these standard deviations."""
    return training * rng.normal(size=(n, 1)) + item * rng.normal(size=(1, items)) + both * rng.normal(size=(n, items))


def test_seeds_alone_are_students_t() -> None:
    """Items that do not differ leave the t interval of the seeds' values: mean 2, s^2 = 1, n = 3, t(2, .975) = 4.302653."""
    found = seeds.interval(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    half = 4.302653 / math.sqrt(3)
    assert found.estimate == pytest.approx(2.0)
    assert (found.low, found.high) == (
        pytest.approx(2 - half, abs=0.06 * half),
        pytest.approx(2 + half, abs=0.06 * half),
    )
    assert (found.seeds, found.n, found.df) == (3, 2, pytest.approx(2.0))


def test_variance_is_that_of_the_analysis_of_variance_with_the_interaction_twice() -> None:
    """(MS_seeds + MS_items) / (S I): the two mean squares of the crossed layout, which both contain the interaction."""
    values = crossed(np.random.default_rng(3), 4, 50, 0.3, 1.0, 0.5)
    by_seed = 50 * values.mean(axis=1).var(ddof=1)
    by_item = 4 * values.mean(axis=0).var(ddof=1)
    parts = np.array([by_seed, by_item]) / 200
    freedom = parts.sum() ** 2 / (parts**2 / np.array([3, 49])).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum())
    found = seeds.interval(values)
    assert found.df == pytest.approx(freedom, rel=0.1)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_apart_is_welchs_t() -> None:
    """Items that do not differ leave the seeds' values, of two methods with nothing in common: Welch's interval of their difference."""
    one, two = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 0.8, 1.9, 0.1])
    blocks = [np.repeat(values[:, None], 4, axis=1) for values in (one, two)]
    found = seeds.interval(*blocks, of=seeds.difference, apart=True)
    test = stats.ttest_ind(one, two, equal_var=False)
    expected = test.confidence_interval()
    assert (found.low, found.high) == (pytest.approx(expected.low, rel=0.1), pytest.approx(expected.high, rel=0.1))
    assert (found.seeds, found.df) == (3, pytest.approx(test.df, rel=0.1))
    with pytest.raises(ValueError, match="cannot be paired"):
        seeds.interval(*blocks, of=seeds.difference)


def test_apart_covers_where_one_side_has_one_seed() -> None:
    """Its items are resampled, and no training noise is made up for it: with none there, the interval covers."""
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(200):
        one, two = crossed(rng, 3, 40, 0.2, 1.0, 0.5), crossed(rng, 1, 30, 0.0, 1.0, 0.5)
        found = seeds.interval(one, two, of=seeds.difference, apart=True)
        assert found.seeds == 1
        hits.append(found.low <= 0 <= found.high)
    assert 0.91 <= np.mean(hits) <= 1.0


@pytest.mark.parametrize(("n", "training"), [(2, 0.2), (3, 0.2), (3, 0.0), (5, 0.5)])
def test_coverage_with_few_training_seeds(monkeypatch: pytest.MonkeyPatch, n: int, training: float) -> None:
    """400 replications: a standard error of 1.1 points at 95 %. Never below, and where training noise is there, not far above."""
    monkeypatch.setattr(seeds, "DRAWS", 200)
    rng = np.random.default_rng([n, int(10 * training)])
    hits = [
        found.low <= 0 <= found.high
        for found in (seeds.interval(crossed(rng, n, 40, training, 1.0, 1.0)) for _ in range(400))
    ]
    assert 0.92 <= np.mean(hits) <= 0.995


def test_averaging_seeds_first_and_resampling_items_does_not_cover() -> None:
    """What this module is for: the same data, with training noise left out of the interval."""
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(200):
        values = crossed(rng, 3, 40, 0.5, 1.0, 1.0).mean(axis=0)
        half = 1.96 * values.std(ddof=1) / math.sqrt(40)
        hits.append(abs(values.mean()) <= half)
    assert np.mean(hits) < 0.8


def test_a_known_difference_is_found_and_a_null_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods, three seeds, 40 shared prompts; prompts are harder or easier for both, so pairing must find .3 among a spread of 3."""
    monkeypatch.setattr(seeds, "DRAWS", 200)
    rng = np.random.default_rng(6)
    found = {0.0: 0, 0.3: 0}
    for effect in found:
        for _ in range(200):
            prompts = 3 * rng.normal(size=(1, 40))
            one, two = (prompts + crossed(rng, 3, 40, 0.05, 0.0, 0.5) for _ in range(2))
            gap = seeds.interval(np.stack([one + effect, two]), of=seeds.difference)
            found[effect] += not gap.low <= 0 <= gap.high
    assert found[0.0] / 200 <= 0.09  # nominal 5 %, standard error 1.5 points
    assert found[0.3] / 200 >= 0.6


def test_a_ratio_agrees_with_the_delta_method() -> None:
    rng = np.random.default_rng(7)
    values = np.stack([5 + crossed(rng, 5, 200, 0.2, 1.0, 1.0), 3 + crossed(rng, 5, 200, 0.2, 1.0, 1.0)])
    found = seeds.interval(values, of=lambda means: np.log(means[0]) - np.log(means[1]))
    one, two = values.mean(axis=(1, 2))
    linear = values[0] / one - values[1] / two  # influence of every value on log(mean) - log(mean)
    expected = seeds.interval(linear)
    assert found.estimate == pytest.approx(math.log(one / two))
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.05)


def test_blocks_have_their_own_items_and_the_same_seeds() -> None:
    """Independent blocks of items: variances add; the same training noise in both cancels in their difference."""
    rng = np.random.default_rng(8)
    noise = 2 * rng.normal(size=(4, 1))
    one, two = noise + rng.normal(size=(4, 60)), noise + rng.normal(size=(4, 80))
    gap = seeds.interval(one, two, of=seeds.difference)
    assert gap.high - gap.low < 1.0
    assert seeds.interval(one).high - seeds.interval(one).low > 3.0
    with pytest.raises(ValueError, match="blocks of 3 and 4 training seeds"):
        seeds.interval(one, two[:3], of=seeds.difference)


def test_one_seed_resamples_items_alone_and_says_so() -> None:
    values = np.random.default_rng(9).exponential(size=(1, 60))
    found, expected = seeds.interval(values), statistics.mean(values[0])
    assert found.seeds == 1
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=0.02), pytest.approx(expected.high, abs=0.02))
    assert not seeds.interval(values[:, :1]).known
    assert not seeds.interval(np.ones((3, 5))).known
    band = seeds.intervals(np.stack([values, values + 1]), of=lambda means: means)
    assert [one.estimate for one in band] == pytest.approx([values.mean(), values.mean() + 1])
    percentile = statistics.mean(values[0], method="percentile")
    assert (band[0].low, band[0].high) == (
        pytest.approx(percentile.low, abs=0.02),
        pytest.approx(percentile.high, abs=0.02),
    )
    with pytest.raises(ValueError, match="1 of 4 values are not finite"):
        seeds.interval(np.array([[1.0, 2.0], [3.0, np.nan]]))


def test_a_statistic_without_a_value_has_no_interval() -> None:
    values = np.random.default_rng(10).normal(size=(3, 30))
    found = seeds.interval(values, of=lambda means: np.where(means[0] > values.mean(), means[0], np.nan))
    assert not found.known


def test_p_and_interval_agree() -> None:
    values = 0.4 + crossed(np.random.default_rng(11), 3, 50, 0.1, 1.0, 1.0)
    found = seeds.interval(values)
    for bound in (found.low, found.high):
        assert found.p_value(bound) == pytest.approx(0.05)
    assert found.p_value(found.estimate) == 1.0
    # a t test of seeds alone, where items do not differ
    alone = seeds.interval(np.repeat([[1.0], [2.0], [4.0]], 2, axis=1))
    assert alone.p_value(0.0) == pytest.approx(stats.ttest_1samp([1.0, 2.0, 4.0], 0).pvalue, rel=0.1)
    assert math.isnan(Interval(1.0).p_value())


@pytest.mark.parametrize(
    ("n", "expected"), [(3, 3.264043552819638), (10, 0.9960019107624178), (100, 0.2829117119690806)]
)
def test_minimal_detectable_effect_is_statsmodels(n: int, expected: float) -> None:
    """statsmodels 0.15, TTestPower().solve_power(nobs=n, alpha=.05, power=.8): the effect in standard deviations."""
    half = stats.t.ppf(0.975, n - 1) / math.sqrt(n)
    assert Interval(7.0, 7 - half, 7 + half, n, df=n - 1).detectable() == pytest.approx(expected, rel=1e-4)


def test_the_detectable_effect_is_detected_as_often_as_it_says() -> None:
    rng = np.random.default_rng(12)
    expected = Interval(
        0, -stats.t.ppf(0.975, 5) / math.sqrt(6), stats.t.ppf(0.975, 5) / math.sqrt(6), 6, df=5
    ).detectable()
    seen = stats.ttest_1samp(expected + rng.normal(size=(4000, 6)), 0, axis=1).pvalue < 0.05
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
    times = Interval(1.2, 1.2 / 1.1, 1.2 * 1.1, 9, ratio=True)
    assert math.log(times.detectable()) == pytest.approx(2.8016 / 1.95996 * math.log(1.1), rel=1e-3)


def test_methods_without_a_seed_in_common_are_not_paired() -> None:
    assert seeds.shared_seeds(["0/0", "0/1", "0/2"], ["0/2", "0/1"]) == ["0/1", "0/2"]
    with pytest.raises(ValueError, match="no seed in common"):
        seeds.shared_seeds(["0/0"], ["0/1"])
