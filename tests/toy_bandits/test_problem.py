"""The world: shapes, normalisation, Bradley-Terry, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import objectives
from toy_bandits import Bandit, BanditError
from toy_bandits.expectations import pairs, reference_samples

REFERENCE = [0.2, 0.5, 0.3]
EVEN = np.full((3, 3), 0.5)
PAIRS = np.array([[0, 2.0, 1.0], [2.0, 0, 0], [1.0, 0, 0]])


def test_pairs_are_normalised_over_unordered_pairs_and_labels_sum_to_one() -> None:
    win = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.5], [0.8, 0.5, 0.5]])
    problem = Bandit(REFERENCE, win, PAIRS)
    np.testing.assert_allclose(problem.pairs[0].triu().sum(), 1.0)
    expected = np.array([[0, 2 / 3 * 0.9, 1 / 3 * 0.2], [2 / 3 * 0.1, 0, 0], [1 / 3 * 0.8, 0, 0]])
    np.testing.assert_allclose(problem.label_weights[0], expected)


def test_by_default_all_pairs_are_alike() -> None:
    weights = Bandit(REFERENCE, EVEN).label_weights[0]
    np.testing.assert_allclose(weights[~torch.eye(3, dtype=torch.bool)], 1 / 6)


def test_contexts_weigh_labels() -> None:
    problem = Bandit([REFERENCE, REFERENCE], EVEN, contexts=[0.25, 0.75])
    np.testing.assert_allclose(problem.label_weights.sum((-2, -1)), [0.25, 0.75])
    assert problem.has_contexts


def test_batch_dimensions_broadcast_and_contexts_may_be_left_out() -> None:
    problem = Bandit(np.tile(REFERENCE, (4, 1, 1)), np.tile(EVEN, (5, 1, 2, 1, 1)))
    assert problem.batch_shape == (5, 4)
    assert problem.reference.shape == (5, 4, 2, 3)
    assert problem.has_contexts
    assert not Bandit(REFERENCE, EVEN).has_contexts
    assert Bandit(REFERENCE, EVEN).batch_shape == ()


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_arrays_of_any_kind_become_float64(kind: Any) -> None:
    problem = Bandit(kind(REFERENCE), torch.from_numpy(EVEN) if kind is torch.tensor else EVEN.tolist())
    assert problem.reference.dtype == torch.float64
    np.testing.assert_allclose(problem.reference[0], REFERENCE, rtol=1e-7)
    assert float(problem.reference.sum()) == pytest.approx(1.0, abs=1e-15)


def test_both_entries_of_a_pair_keep_their_precision() -> None:
    problem = Bandit([0.5, 0.5], [[0.5, 1.0], [1e-30, 0.5]])
    assert float(problem.label_weights[0, 1, 0]) == 1e-30


def test_bradley_terry_preferences_from_rewards_at_several_temperatures() -> None:
    problem = Bandit.from_rewards(REFERENCE, [1.0, 0.0, 3.0], torch.tensor([1.0, 0.5]))
    assert problem.batch_shape == (2,)
    assert not problem.has_contexts
    expected = [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(2))], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4))]]
    np.testing.assert_allclose(problem.preferences[:, 0, 0, 1:], expected)


def changed(matrix: np.ndarray, *entries: tuple[int, int, float]) -> np.ndarray:
    matrix = matrix.astype(float).copy()
    for row, column, value in entries:
        matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": [0.5, 0.5, 0.5]}, r"reference: must sum to 1; sums to 1\.5"),
        ({"reference": [0.5, 0.5, 0.0]}, r"reference: must be > 0 everywhere; got 0 at \(0, 2\)"),
        ({"reference": [1.2, -0.5, 0.3]}, "reference: must be > 0"),
        ({"reference": [0.2, float("nan"), 0.3]}, "reference: holds NaN"),
        ({"reference": ["a", "b", "c"]}, "reference: not an array of numbers"),
        ({"reference": [1.0], "preferences": [[0.5]]}, "at least two actions"),
        (
            {"preferences": changed(EVEN, (0, 1, 1.2), (1, 0, -0.2))},
            r"preferences: a probability .*1\.2 at \(0, 0, 1\)",
        ),
        ({"preferences": changed(EVEN, (0, 1, 0.9))}, r"preferences: p\(a > b\) \+ p\(b > a\) must be 1; got 1\.4"),
        ({"preferences": changed(EVEN, (0, 1, 0.5 + 1e-8))}, "must be 1"),
        ({"preferences": changed(EVEN, (0, 1, float("inf")))}, "preferences: holds NaN or infinity"),
        ({"preferences": [0.5, 0.5, 0.5]}, "preferences: expected at least 2 dimensions"),
        ({"preferences": np.full((2, 3), 0.5)}, "square matrices"),
        ({"preferences": np.full((2, 2), 0.5)}, "the reference has 3 actions"),
        ({"preferences": np.full((2, 1, 3, 3), 0.5), "reference": np.full((5, 1, 3), 1 / 3)}, "do not broadcast"),
        ({"pairs": np.zeros((3, 3))}, "at least one pair with positive weight"),
        ({"pairs": np.stack([PAIRS, 0 * PAIRS])}, r"at least one pair .* none at \(1,\)"),
        ({"pairs": changed(PAIRS, (0, 1, -1.0), (1, 0, -1.0))}, "pairs: weights must be >= 0; got -1"),
        ({"pairs": changed(PAIRS, (0, 1, 1.0))}, "pairs: must be symmetric"),
        ({"pairs": changed(PAIRS, (2, 2, 1.0))}, "compared with itself"),
        ({"contexts": [0.4, 0.4]}, r"contexts: must sum to 1; sums to 0\.8"),
        ({"contexts": [1.4, -0.4]}, "contexts: must be >= 0"),
        ({"rewards": [1.0, 2.0]}, "rewards: the reference has 3 actions"),
        ({"rewards": [1.0, 2.0, float("inf")]}, "rewards: holds NaN or infinity"),
        ({"reference_samples": [0.5, 0.4, 0.0]}, "reference_samples: must sum to 1"),
        ({"reference_samples": [1.5, -0.5, 0.0]}, "reference_samples: must be >= 0"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BanditError, match=message):
        Bandit(**{"reference": REFERENCE, "preferences": EVEN, **arguments})


def test_the_diagonal_of_preferences_is_ignored() -> None:
    diagonal = changed(EVEN, (0, 0, float("nan")), (1, 1, 7.0))
    torch.testing.assert_close(Bandit(REFERENCE, diagonal).label_weights, Bandit(REFERENCE, EVEN).label_weights)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(BanditError, match="scale: must be > 0; got 0"):
        Bandit.from_rewards(REFERENCE, [1.0, 0.0, 0.5], 0.0)


def test_only_a_single_context_can_be_left_out() -> None:
    assert not Bandit([REFERENCE], EVEN).without_contexts().has_contexts
    with pytest.raises(BanditError, match="there are 2 contexts"):
        Bandit([REFERENCE, REFERENCE], EVEN).without_contexts()


def test_lengths_reach_the_losses_that_look_at_them() -> None:
    problem = Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]], lengths=[1, 4])
    batch = pairs(problem, problem.log_reference)
    assert (batch.chosen_lengths.tolist(), batch.rejected_lengths.tolist()) == ([1.0], [4.0])
    assert reference_samples(problem, problem.log_reference).lengths.tolist() == [1.0, 4.0]
    # simpo by hand: beta (log .5 / 1 - log .5 / 4) - gamma = -2 (3/4) log 2 - 1
    value = objectives.get("simpo", beta=2.0, gamma=1.0).value({"pairs": batch})
    assert value.item() == pytest.approx(math.log1p(math.exp(1.5 * math.log(2) + 1)), rel=1e-12)


@pytest.mark.parametrize("lengths", [[1, 0], [1, 2.5]])
def test_lengths_that_count_no_tokens_are_refused(lengths: list[float]) -> None:
    with pytest.raises(BanditError, match="lengths: must be whole numbers >= 1; got"):
        Bandit([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]], lengths=lengths)
