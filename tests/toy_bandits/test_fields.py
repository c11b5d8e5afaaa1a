"""Losses with stop-gradients: stable zeros of the field that training follows, against SciPy on fields written by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import root

import objectives
from toy_bandits import Bandit, solve

REFERENCE = np.array([0.2, 0.5, 0.3])
WIN = np.array([[0.5, 0.73, 0.65], [0.27, 0.5, 0.4], [0.35, 0.6, 0.5]])
BETA = 0.5


def slopes(name: str, logits: np.ndarray) -> np.ndarray:
    """The field in the logits, by hand: sums over labels of minus s(-z) dz/dlogits with the held parts held."""
    policy = np.exp(logits - np.logaddexp.reduce(logits))
    a = np.log(policy / REFERENCE)
    pairs = [(w, k, WIN[w, k] / 3) for w, k in itertools.permutations(range(3), 2)]
    delta = BETA * sum(p * (a[w] + a[k]) / 2 for w, k, p in pairs)
    mean = sum(p * (a[w] - a[k]) for w, k, p in pairs)
    own = np.eye(3) - policy  # d a_y / d logits
    total = np.zeros(3)
    for w, k, p in pairs:
        if name == "bco":
            total -= p * BETA * own[w] / (1 + np.exp(BETA * a[w] - delta))
            total += p * BETA * own[k] / (1 + np.exp(delta - BETA * a[k]))
        else:
            beta = BETA * (1 + 0.6 * mean)
            total -= p * beta * (own[w] - own[k]) / (1 + np.exp(beta * (a[w] - a[k])))
    return total


@pytest.mark.parametrize("name", ["bco", "beta_dpo"])
def test_a_zero_of_the_field_by_hand(name: str) -> None:
    solution = solve(Bandit(REFERENCE, WIN), objectives.get(name, beta=BETA))
    assert solution.status == "converged"
    assert not solution.certificate.proved
    assert solution.certificate.stability > 0
    logits = solution.logits.numpy()
    assert np.linalg.norm(slopes(name, logits)) < 1e-9
    found = root(lambda z: slopes(name, np.append(z, 0.0))[:2], np.log(REFERENCE[:2] / REFERENCE[2]), tol=1e-13)
    assert found.success
    expected = np.exp(np.append(found.x, 0.0))
    np.testing.assert_allclose(solution.policy, expected / expected.sum(), atol=1e-7)


def test_token_level_dpo_comes_to_rest_where_plain_flow_does() -> None:
    problem = Bandit(REFERENCE, WIN)
    solution = solve(problem, objectives.get("tdpo", beta=BETA))
    assert (solution.status, solution.certificate.proved) == ("converged", False)
    assert solution.certificate.stability > 0
