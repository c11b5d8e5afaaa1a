"""Losses with stop-gradients: stable zeros of the field that training follows, against SciPy on fields written by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import root

import objectives
from objectives.terms import Part, Term
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


def field_of_wpo(beta: float, logits: np.ndarray, win: np.ndarray) -> np.ndarray:
    """Rows divided by pi_y: sum_z pi_z (s(beta D_yz) - p_yz), whose weights are those of wpo over sum_v pi(v)^2 where none reaches 1."""
    policy = np.exp(logits - np.logaddexp.reduce(logits))
    D = (logits - np.log(REFERENCE))[:, None] - (logits - np.log(REFERENCE))[None, :]
    return ((1 / (1 + np.exp(-beta * D)) - win) * policy[None, :]).sum(1)


@pytest.mark.parametrize("beta", [0.01, 0.05, 1.0])
def test_weighted_pairs_rest_where_dpo_does(beta: float) -> None:
    """Both orders of a pair weigh alike, so beta D = logit p is a zero, however small the weights: e^-200 here at beta .01."""
    rewards = np.array([1.0, 0.0, 0.4])
    solution = solve(Bandit.from_rewards(REFERENCE, rewards), objectives.get("wpo", beta=beta))
    assert (solution.status, solution.certificate.proved) == ("converged", True)
    assert solution.certificate.stability > 0
    logits = np.log(REFERENCE) + rewards / beta
    np.testing.assert_allclose(solution.log_policy, logits - np.logaddexp.reduce(logits), rtol=1e-9)


def test_weighted_pairs_on_a_cycle_have_a_zero_elsewhere() -> None:
    win = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
    solution = solve(Bandit(REFERENCE, win), objectives.get("wpo", beta=1.0, alignment="none"))
    assert (solution.status, solution.certificate.proved) == ("converged", False)
    found = root(
        lambda z: field_of_wpo(1.0, np.append(z, 0.0), win)[:2], np.log(REFERENCE[:2] / REFERENCE[2]), tol=1e-13
    )
    assert found.success
    np.testing.assert_allclose(solution.log_policy.diff(), np.diff(np.append(found.x, 0.0)), atol=1e-7)
    unweighted = solve(Bandit(REFERENCE, win), objectives.get("dpo", beta=1.0))
    assert float((solution.log_policy - unweighted.log_policy).abs().max()) > 1e-3


def test_weighted_pairs_under_partial_support_leave_the_rest_free() -> None:
    win, pairs = [[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    solution = solve(Bandit(REFERENCE, win, pairs), objectives.get("wpo", beta=0.01))
    assert (solution.status, solution.certificate.dimension) == ("not_unique", 1)
    adjusted = solution.log_policy - np.log(REFERENCE)
    assert float(adjusted[0] - adjusted[1]) == pytest.approx(100 * np.log(9.0), rel=1e-10)


def test_a_plain_detach_is_found_out() -> None:
    """A weight held fixed by hand: with it the value's own minimum lies elsewhere."""

    def loss(batch: objectives.PairBatch) -> torch.Tensor:
        a, b = objectives.margins.scores(batch, "test_held", adjusted=True, normalized=False)
        weight = (batch.chosen_logps + batch.rejected_logps).exp().detach()
        return weight * torch.nn.functional.softplus(-BETA * (a - b))

    part = Part("test_held", "test_held()", {}, (Term("test_held", "pairs", loss),), lambda: objective)
    objective = objectives.Objective((part,))
    mine = solve(Bandit(REFERENCE, WIN), objective)
    theirs = solve(Bandit(REFERENCE, WIN), objectives.get("wpo", beta=BETA, alignment="none"))
    assert (mine.status, mine.certificate.proved) == ("converged", False)
    torch.testing.assert_close(mine.policy, theirs.policy, rtol=0, atol=1e-8)


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_kto_never_rests(beta: float) -> None:
    """Along the direction of the certificate the field by hand is negative at random policies: training goes on for ever."""
    solution = solve(Bandit(REFERENCE, WIN), objectives.get("kto", beta=beta))
    assert (solution.status, solution.certificate.proved) == ("diverges", True)
    generator = np.random.default_rng(0)
    for _ in range(50):
        policy = np.exp(log_softmax(3 * generator.normal(size=3)))
        a, own = np.log(policy / REFERENCE), np.eye(3) - policy
        shown = np.ones(3) / 3  # every response is in two of three pairs
        point = max(0.0, float(shown @ a))
        total = np.zeros(3)
        for w, k in itertools.permutations(range(3), 2):
            for y, sign in ((w, -1.0), (k, 1.0)):
                e = 1 / (1 + np.exp(-beta * (a[y] - point)))
                total += sign * WIN[w, k] / 3 * beta * e * (1 - e) * own[y]
        assert total @ solution.certificate.direction.numpy() < 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def test_token_level_dpo_comes_to_rest_where_plain_flow_does() -> None:
    problem = Bandit(REFERENCE, WIN)
    solution = solve(problem, objectives.get("tdpo", beta=BETA))
    assert (solution.status, solution.certificate.proved) == ("converged", False)
    assert solution.certificate.stability > 0
