"""Frontiers, matched comparisons, humps and selection: by hand, against scikit-learn, and in simulations with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression

from analysis.frontiers import (
    band,
    compare,
    dominance,
    dominance_table,
    frontier,
    hypervolume,
    hypervolume_difference,
)
from analysis.matching import at_equal_kl, at_equal_reward
from analysis.measured import Points
from analysis.overoptimisation import hump
from analysis.tuning import halves


def points(
    kl: np.ndarray, reward: np.ndarray, noise: float = 0.0, seeds: int = 3, prompts: int = 40, seed: int = 0
) -> Points:
    """Points around (kl, reward) with noise of training, of prompts and of both."""
    rng = np.random.default_rng(seed)
    shape = (len(kl), seeds, prompts)
    shared = 3 * noise * rng.normal(size=(1, 1, prompts))
    values = [
        np.asarray(level, dtype=float)[:, None, None]
        + noise * (0.1 * rng.normal(size=(len(kl), seeds, 1)) + rng.normal(size=shape))
        for level in (kl, reward)
    ]
    where = pd.DataFrame({"label": "m", "strength": 0.1, "step": range(len(kl))})
    return Points(values[0], values[1] + shared, where, tuple(f"0/{one}" for one in range(seeds)), np.arange(prompts))


KL = np.linspace(0, 4, 9)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors good to 5 % are enough here, and many sets of points can be tried."""
    monkeypatch.setattr("analysis.seeds.DRAWS", 200)
    monkeypatch.setattr("analysis.seeds.RESAMPLES", 100)


def test_the_isotonic_frontier_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    kl, reward = rng.uniform(0, 5, 30), rng.normal(size=30)
    x, y = frontier(kl, reward, "isotonic")
    np.testing.assert_allclose(y, IsotonicRegression().fit(kl, reward).predict(np.sort(kl)), atol=1e-12)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()


def test_hypervolume_by_hand_and_by_counting() -> None:
    """Points (1, 1) and (2, 3), limit 4, floor 0: a trapezium of 2 over [1, 2] and 3 over [2, 4] = 8."""
    assert hypervolume([1, 2], [1, 3], 4, 0) == pytest.approx(8.0)
    assert hypervolume([1, 2, 3], [1, 3, 2], 4, 0) == pytest.approx(8.0)  # a dominated point adds nothing
    assert hypervolume([1, 5], [1, 9], 4, 0) == pytest.approx(3 * (1 + 7) / 2)  # up to the limit only
    assert hypervolume([1], [-1], 4, 0) == 0.0
    assert hypervolume([5], [1], 4, 0) == 0.0
    # what random mixtures of two points dominate, counted
    rng = np.random.default_rng(1)
    kl, reward = np.array([0.1, 0.3, 0.8]), np.array([0.2, 0.6, 0.9])
    x, y = rng.uniform(0, 1, (2, 20_000))
    inside = np.zeros(len(x), dtype=bool)
    for share in np.linspace(0, 1, 201):
        for one, two in ((0, 1), (1, 2)):
            mixed = share * np.array([kl[one], reward[one]]) + (1 - share) * np.array([kl[two], reward[two]])
            inside |= (mixed[0] <= x) & (mixed[1] >= y)
    assert hypervolume(kl, reward, 1, 0) == pytest.approx(inside.mean(), abs=0.01)


def test_dominance_finds_the_area_that_was_put_in() -> None:
    """reward = sqrt(KL) + .2 against sqrt(KL): .2 at equal KL; 20 sets of points, so that also the interval is tried."""
    hits, sizes = 0, []
    for seed in range(20):
        one = points(KL, np.sqrt(KL) + 0.2, 0.2, seed=seed)
        two = points(KL, np.sqrt(KL), 0.2, seed=100 + seed)
        found = dominance(one, two)
        hits += found.low <= 0.2 <= found.high
        sizes.append(found.estimate)
    assert hits >= 17
    assert np.mean(sizes) == pytest.approx(0.2, abs=0.06)


def test_more_tries_give_no_advantage_to_the_frontier() -> None:
    """A method tried 40 times at one spot against one tried 4 times, equal truth: a maximum calls the first better, halves do not."""
    plain, fair = [], []
    for seed in range(25):
        many = points(np.r_[0.0, np.linspace(1, 2, 40)], np.r_[0.0, np.ones(40)], 0.5, seeds=1, prompts=32, seed=seed)
        few = points(
            np.r_[0.0, np.linspace(1, 2, 4)], np.r_[0.0, np.ones(4)], 0.5, seeds=1, prompts=32, seed=seed + 500
        )
        centred = few.reward_values - few.reward_values[0].mean() + many.reward_values[0].mean()  # the same reference
        few = Points(few.kl_values, centred, few.where, few.seeds, few.prompts)
        sets = [(one.kl.mean(axis=1), one.reward.mean(axis=1)) for one in (many, few)]
        whole = compare(*sets)
        assert whole is not None
        plain.append(whole.difference)
        fair.append(dominance(many, few).estimate)
    assert np.mean(plain) > 0.05
    assert abs(np.mean(fair)) < 0.5 * np.mean(plain)


def test_bands_cover_and_do_not_extrapolate() -> None:
    grid = [0.5, 2.0, 3.5, 99.0]
    hits = np.zeros(3)
    for seed in range(20):
        found = band(points(KL, KL / 2, 0.2, seed=seed), grid)
        hits += ((found["low"] <= np.array(grid) / 2) & (found["high"] >= np.array(grid) / 2)).to_numpy()[:3]
        assert math.isnan(found["reward"].iloc[3])
        assert math.isnan(found["low"].iloc[3])
    assert (hits >= 16).all()
    other = band(points(KL, KL / 2, 0.2), grid, "pareto")
    np.testing.assert_allclose(other["reward"][:3], found["reward"][:3], atol=0.5)


def test_hypervolumes_differ_by_what_was_put_in() -> None:
    """From (0, 0) to (1, 1) against to (2, 1), limit 3: areas 1/2 + 2 and 1 + 1."""
    one = points(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 1e-9)
    two = points(np.array([0.0, 2.0]), np.array([0.0, 1.0]), 1e-9)
    found = hypervolume_difference(one, two, kl_limit=3.0, reward_floor=0.0)
    assert found.estimate == pytest.approx(0.5, abs=1e-6)
    table = dominance_table({"a": points(KL, KL, 0.1), "b": points(KL, KL / 2, 0.1, seed=1)}, [("a", "b")])
    assert list(table["measure"]) == ["area, pareto", "area, isotonic", "hypervolume"]
    assert (table["low"] > 0).all()
    assert (table["p"] < 0.05).all()


def test_matching_by_hand() -> None:
    """reward = KL against reward = KL / 2: at KL 1 they differ by .5; for reward 1 by -1 nat."""
    one, two = points(KL, KL, 1e-9), points(KL, KL / 2, 1e-9, seed=1)
    found = at_equal_kl(one, two, [1.0, 3.0, 9.0])
    np.testing.assert_allclose(found["difference"][:2], [0.5, 1.5], atol=1e-6)
    assert math.isnan(found["difference"][2])
    reached = at_equal_reward(one, two, [1.0, 1.5, 3.0])
    np.testing.assert_allclose(reached["difference"][:2], [-1.0, -1.5], atol=1e-6)
    assert math.isnan(reached["difference"][2])  # the second never gets 3
    assert len(at_equal_kl(one, two)) == 5
    with pytest.raises(ValueError, match="no range of kl"):
        at_equal_kl(one, points(KL + 9, KL, 1e-9))


def test_a_path_that_dips_reaches_a_reward_where_it_first_crosses() -> None:
    """Rewards 0, 2, 1, 3 at KL 0, 1, 2, 3: 2.5 is crossed on the last piece, at KL 2.75; 1.5 on the first, at .75."""
    path = points(np.arange(4.0), np.array([0.0, 2.0, 1.0, 3.0]), 1e-9)
    found = at_equal_reward(path, points(np.arange(4.0), np.arange(4.0), 1e-9, seed=1), [1.5, 2.5])
    np.testing.assert_allclose(found["first"], [0.75, 2.75], atol=1e-6)
    np.testing.assert_allclose(found["second"], [1.5, 2.5], atol=1e-6)


def test_matched_differences_are_covered_and_nulls_are_not_found() -> None:
    truths, hits, alarms = (0.3, 0.0), 0, 0
    for seed in range(30):
        for truth in truths:
            one = points(KL, np.sqrt(KL) + truth, 0.1, seed=seed)
            two = points(KL, np.sqrt(KL), 0.1, seed=seed + 1000)
            row = at_equal_kl(one, two, [2.2]).iloc[0]
            hits += row["low"] <= truth <= row["high"]
            alarms += truth == 0 and row["p"] < 0.05
    assert hits >= 52
    assert alarms <= 4


def test_a_hump_is_found_where_it_is_and_not_where_there_is_none() -> None:
    humped, rising, flat = -((KL - 2.0) ** 2) / 4, KL / 4, np.zeros(9)
    found = hump(points(KL, humped, 0.1))
    assert found.over_optimised
    assert found.fall.low < 1.0 < found.fall.high
    assert found.peak_kl.low <= 2.0 <= found.peak_kl.high
    assert not hump(points(KL, rising, 0.1)).over_optimised
    null = [hump(points(KL, flat, 0.3, seed=seed)) for seed in range(40)]
    assert np.mean([one.over_optimised for one in null]) <= 0.05
    assert abs(np.mean([one.fall.estimate for one in null])) < 0.025  # .05 where the same prompts choose and measure
    with pytest.raises(ValueError, match="three points"):
        hump(points(KL[:2], KL[:2]))


def test_halves_are_fixed_disjoint_and_even() -> None:
    selection, report = halves(np.arange(101))
    assert (selection ^ report).all()
    assert (selection.sum(), report.sum()) == (50, 51)
    np.testing.assert_array_equal(selection, halves(list(range(101)))[0])
    assert abs(np.corrcoef(selection, np.arange(101))[0, 1]) < 0.3
