"""Statistics against textbook values, normal theory, and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import statistics
from analysis.frontiers import compare, frontier
from analysis.statistics import adjusted, paired_test


def test_bootstrap_interval_of_a_mean_agrees_with_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = statistics.mean(values)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(400)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert statistics.standard_error(values) == pytest.approx(half / 1.959964)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        interval = statistics.mean(rng.exponential(1.0, 60))
        hits += interval.low <= 1.0 <= interval.high
    # 95 % nominal; BCa at n = 60 of a skewed law covers about 93 %; 200 trials have a standard error of 1.8 points
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_are_the_same_every_time() -> None:
    values = np.arange(20.0) ** 2
    assert statistics.mean(values) == statistics.mean(values)
    assert statistics.over_items(lambda index: float(np.median(values[index])), 20) == statistics.over_items(
        lambda index: float(np.median(values[index])), 20
    )


def test_pairing_removes_what_the_items_share() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 10, 50)
    first = pd.Series(difficulty + 0.5 + rng.normal(0, 0.1, 50), index=range(50))
    second = pd.Series(difficulty, index=range(50)).sample(frac=1.0, random_state=0)  # another order: matched by item
    paired = statistics.paired_difference(first, second)
    unpaired = statistics.difference_of_means(first, second)
    assert paired.estimate == pytest.approx(0.5, abs=0.06)
    assert paired.high - paired.low < 0.08
    assert (
        unpaired.high - unpaired.low > 6
    )  # two means of 50 values with deviation 10: 2 * 1.96 * 10 * sqrt(2/50) = 7.8


def test_unpaired_or_repeated_items_are_refused() -> None:
    with pytest.raises(ValueError, match="0 of 2 items are shared"):
        statistics.paired_difference(pd.Series([1.0, 2.0], index=[0, 1]), pd.Series([1.0, 2.0], index=[2, 3]))
    with pytest.raises(ValueError, match="item 7 repeats"):
        statistics.paired_difference(pd.Series([1.0, 2.0], index=[7, 7]), pd.Series([1.0, 2.0], index=[7, 8]))


def test_no_interval_is_invented() -> None:
    assert not statistics.mean([2.0]).known
    assert "no interval" in str(statistics.mean([2.0]))
    assert not statistics.mean([1.0, 1.0, 1.0]).known
    assert not statistics.difference_of_means([1.0], [2.0, 3.0]).known
    assert not statistics.proportion(0, 0).known
    assert not statistics.mean([2.0]).above_zero


def test_a_value_that_is_not_finite_is_an_error_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        statistics.mean([1.0, math.nan, 2.0])


def test_ratio_by_welch_worked_by_hand() -> None:
    """Logs 0, ln 4 against 0, 0, 0: difference ln 2, variance of the first mean (ln 4)^2 / 4, one degree of freedom."""
    interval = statistics.ratio([1.0, 4.0], [1.0, 1.0, 1.0])
    half = 12.7062 * math.log(4) / 2
    assert interval.estimate == pytest.approx(2.0)
    assert math.log(interval.low) == pytest.approx(math.log(2) - half, rel=1e-4)
    assert math.log(interval.high) == pytest.approx(math.log(2) + half, rel=1e-4)
    assert not statistics.ratio([2.0], [1.0, 1.1]).known
    with pytest.raises(ValueError, match="positive"):
        statistics.ratio([1.0, 0.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)],  # Brown, Cai and DasGupta 2001, Wilson interval, n = 10
)
def test_wilson_interval_against_published_values(successes: int, low: float, high: float) -> None:
    interval = statistics.proportion(successes, 10)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_trend_is_kendalls_tau() -> None:
    assert statistics.trend([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert statistics.trend([1, 2, 3], [5.0, 4.0, -math.inf]) == pytest.approx(-1.0)


def test_frontier_keeps_the_best_reward_within_a_budget() -> None:
    kl, reward = frontier([3.0, 1.0, 2.0, math.inf], [1.5, 1.0, 0.5, 9.0])
    assert kl.tolist() == [1.0, 2.0, 3.0]
    assert reward.tolist() == [1.0, 1.0, 1.5]


def test_comparison_at_equal_kl_worked_by_hand() -> None:
    """reward = KL against reward = KL / 2, shared from 0 to 2: the mean difference is (1/2) int_0^2 k/2 dk = 1/2."""
    found = compare(([0.0, 3.0], [0.0, 3.0]), ([0.0, 2.0], [0.0, 1.0]))
    assert found is not None
    assert found.difference == pytest.approx(0.5)
    assert (found.low, found.high, found.share) == (0.0, 2.0, 1.0)
    assert compare(([0.0, 1.0], [0.0, 1.0]), ([2.0, 3.0], [0.0, 1.0])) is None
    crossing = compare(([0.0, 2.0], [1.0, 1.0]), ([0.0, 2.0], [0.0, 2.0]))  # equal areas, each ahead on one half
    assert crossing is not None
    assert crossing.difference == pytest.approx(0.0, abs=1e-12)
    assert crossing.share == pytest.approx(0.5, abs=0.01)


def series(values: list[float]) -> pd.Series:
    return pd.Series(values, index=pd.Index(range(len(values)), name="item"), dtype=float)


def test_mcnemar_is_the_binomial_test_of_the_changed_items() -> None:
    """9 items gained and 2 lost, 5 unchanged: two-sided p = 2 P(Binomial(11, 1/2) <= 2) = 2 (1 + 11 + 55) / 2048."""
    before = series([0] * 9 + [1] * 2 + [1, 1, 0, 0, 1])
    after = series([1] * 9 + [0] * 2 + [1, 1, 0, 0, 1])
    p, name = paired_test(before, after)
    assert (p, name) == (pytest.approx(134 / 2048), "McNemar")
    assert paired_test(before, before) == (1.0, "McNemar")


def test_the_permutation_test_counts_sign_flips() -> None:
    """Differences .1, .2, .3, .4 and a tie: of 16 sign patterns 1 reaches the sum 1.0, so p = 2 / 16; unequal signs by hand too."""
    before = series([0.5, 0.5, 0.5, 0.5, 0.25])
    assert paired_test(before, before + np.array([0.1, 0.2, 0.3, 0.4, 0])) == (pytest.approx(2 / 16), "permutation")
    # .4 - .1: sums of +-.1 +-.4 are .5, .3, -.3, -.5; two of four are at least .3, and so p = min(1, 2 * 2/4).
    assert paired_test(before, before + np.array([-0.1, 0, 0, 0.4, 0]))[0] == pytest.approx(1.0)
    assert paired_test(before, before)[0] == 1.0
    rng = np.random.default_rng(0)
    noise, change = rng.normal(0, 1, (2, 200))
    student = stats.ttest_1samp(change + 0.15, 0).pvalue  # another test of the same differences
    assert 0.01 < student < 0.5
    p, name = paired_test(series(list(noise)), series(list(noise + change + 0.15)))
    assert (p, name) == (pytest.approx(student, abs=0.015), "permutation")


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    """Holm 1979: .01 x 4, .02 x 3, .03 x 2 (both .06, kept rising), .04 x 1 -> .06; BH: p_i m / i, made monotone from the right."""
    p = [0.04, 0.01, 0.03, 0.02]
    np.testing.assert_allclose(adjusted(p, "holm"), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(adjusted(p, "bh"), [0.04, 0.04, 0.04, 0.04])
    np.testing.assert_allclose(adjusted([0.5, 0.001, 0.4], "holm"), [0.8, 0.003, 0.8])
    np.testing.assert_allclose(adjusted([0.5, 0.001, 0.4], "bh"), [0.5, 0.003, 0.5])
    assert adjusted([], "holm").size == 0
    assert adjusted([0.9, 0.8], "holm").max() == 1.0
    with pytest.raises(ValueError, match="not finite"):
        adjusted([0.1, float("nan")], "holm")
