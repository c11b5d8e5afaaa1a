"""Aggregates against rliable itself (1.2.0 with arch 7.2 and pandas 2.3, in an environment of its own)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.aggregates import aggregate, performance_profiles, probability_of_improvement

# (runs, tasks)
A = [[0.13, -0.13, 0.64, 0.1, -0.54, 0.36], [1.3, 0.95, -0.7, -1.27, -0.62, 0.04]]
A += [[-2.33, -0.22, -1.25, -0.73, -0.54, -0.32], [0.41, 1.04, -0.13, 1.37, -0.67, 0.35]]
B = [[1.05, 1.52, 1.03, -0.6, 1.61, 1.15], [0.16, 1.28, 1.06, 0.99, 0.73, 1.25], [-0.04, 0.54, 0.22, 1.3, 0.74, 0.41]]
B += [[-0.08, 0.44, 0.71, 0.42, 1.99, 1.71], [-2.01, -1.19, 0.53, 0.28, 0.91, 0.92]]


def scores(**methods: list[list[float]]) -> pd.DataFrame:
    rows = [
        {"method": method, "task": task, "seed": seed, "score": score}
        for method, runs in methods.items()
        for seed, run in enumerate(runs)
        for task, score in enumerate(run)
    ]
    return pd.DataFrame(rows).sample(frac=1.0, random_state=0)  # the order of the rows must not matter


def test_aggregates_are_rliables() -> None:
    """get_interval_estimates with 20,000 resamples of aggregate_iqm, aggregate_mean, aggregate_median, aggregate_optimality_gap."""
    found = aggregate(scores(a=A), target=1.0).set_index("statistic")
    expected = {
        "interquartile mean": (-0.12666667, -0.3916875, 0.19416667),
        "mean": (-0.115, -0.43541667, 0.19458333),
        "median": (-0.1275, -0.535, 0.2875),
        "optimality gap": (1.14458333, 0.85708333, 1.44833333),
    }
    for name, (estimate, low, high) in expected.items():
        assert found.loc[name, "estimate"] == pytest.approx(estimate, abs=1e-7)
        # ends of intervals from different random numbers: 2000 resamples place a 2.5 % point within some .02 here
        assert (found.loc[name, "low"], found.loc[name, "high"]) == (
            pytest.approx(low, abs=0.05),
            pytest.approx(high, abs=0.05),
        )
    assert set(found["runs"]) == {4}
    assert set(found["tasks"]) == {6}


def test_profiles_are_rliables() -> None:
    """create_performance_profile with 20,000 resamples."""
    found = performance_profiles(scores(a=A), [-1, 0, 0.5, 1.0])
    np.testing.assert_allclose(found["share"], [0.875, 0.45833333, 0.20833333, 0.125], atol=1e-7)
    np.testing.assert_allclose(
        found["low"], [0.75, 0.29166667, 0.08333333, 0.0], atol=1 / 24 + 1e-6
    )  # a share of 24 runs
    np.testing.assert_allclose(found["high"], [1.0, 0.625, 0.375, 0.25], atol=1 / 24 + 1e-6)


def test_probability_of_improvement_is_rliables() -> None:
    """probability_of_improvement with 5,000 resamples of both."""
    row = probability_of_improvement(scores(a=A, b=B)).iloc[0]
    assert (row["first"], row["second"]) == ("a", "b")
    assert row["probability"] == pytest.approx(0.23333333, abs=1e-7)
    assert (row["low"], row["high"]) == (pytest.approx(0.11666667, abs=0.02), pytest.approx(0.35833333, abs=0.02))
    other = probability_of_improvement(scores(a=A, b=B), [("b", "a")]).iloc[0]
    assert other["probability"] == pytest.approx(1 - 0.23333333, abs=1e-7)
    assert probability_of_improvement(scores(a=A, b=A)).iloc[0]["probability"] == pytest.approx(0.5)


def test_one_run_has_no_interval_and_repeats_itself() -> None:
    alone = aggregate(scores(a=A[:1]))
    assert alone["low"].isna().all()
    assert alone["estimate"].notna().all()
    pd.testing.assert_frame_equal(aggregate(scores(a=A, b=B)), aggregate(scores(a=A, b=B)))


def test_bad_scores_are_refused() -> None:
    frame = scores(a=A, b=B)
    with pytest.raises(ValueError, match="score is missing"):
        aggregate(frame.drop(columns="score"))
    with pytest.raises(ValueError, match="a was not run on 3"):
        aggregate(frame[(frame["method"] == "b") | (frame["task"] != 3)])
    with pytest.raises(ValueError, match="two scores of"):
        aggregate(pd.concat([frame, frame.head(1)]))
    with pytest.raises(ValueError, match="not finite"):
        aggregate(frame.assign(score=np.inf))
    with pytest.raises(ValueError, match="no scores of 'c'"):
        probability_of_improvement(frame, [("a", "c")])
