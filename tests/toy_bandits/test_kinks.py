"""Minima at kinks: linear programs of hinges, and hinges with smooth terms, against samples and an epigraph solved by SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import bandit_closed_forms as oracle
from scipy.optimize import minimize

import objectives
from toy_bandits import Bandit, solve

REFERENCE = np.array([0.2, 0.5, 0.3])
NOISY = np.array([[0.5, 0.73, 0.65], [0.27, 0.5, 0.4], [0.35, 0.6, 0.5]])
CYCLE = np.array([[0.5, 0.8, 0.3], [0.2, 0.5, 0.7], [0.7, 0.3, 0.5]])
ORDER = np.array([[0.5, 1.0, 1.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def log_policies(count: int, spread: float, around: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(0)
    return oracle_softmax(around + spread * generator.normal(size=(count, 3)))


def oracle_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def expected(name: str, win: np.ndarray, log_policy: np.ndarray) -> np.ndarray:
    """Expected loss of log-policies (n, 3), all pairs alike."""
    a = log_policy - np.log(REFERENCE)
    total = np.zeros(len(a))
    for w, k in itertools.permutations(range(3), 2):
        if name == "rso_hinge":
            loss = np.maximum(0, 1 - 0.5 * (a[:, w] - a[:, k]))
        elif name == "slic_hf":
            loss = np.maximum(0, 1 - log_policy[:, w] + log_policy[:, k])
        elif name == "dpop":
            loss = np.logaddexp(0, -0.1 * (a[:, w] - a[:, k] - 5 * np.maximum(0, -a[:, w])))
        else:
            loss = np.logaddexp(0, -0.1 * (a[:, w] - np.maximum(0, a[:, k])))
        total += win[w, k] / 3 * loss
    return total - (0.1 * log_policy @ REFERENCE if name == "slic_hf" else 0)


LABELS = {"rso_hinge": "rso_hinge(gamma=0.5)", "slic_hf": "slic_hf", "dpop": "dpop", "minor_dpo": "minor_dpo"}


@pytest.mark.parametrize("win", [NOISY, CYCLE], ids=["noisy", "cycle"])
@pytest.mark.parametrize("name", LABELS)
def test_no_policy_is_better(name: str, win: np.ndarray) -> None:
    solution = solve(Bandit(REFERENCE, win), objectives.parse(LABELS[name]))
    assert solution.status in ("converged", "not_unique")
    assert float(solution.gradient_norm) <= 1e-10
    here = solution.log_policy.numpy()[None]
    assert float(solution.value) == pytest.approx(expected(name, win, here)[0], rel=1e-12)
    for spread in (1e-4, 0.1, 3.0):
        others = expected(name, win, log_policies(100_000, spread, here[0]))
        assert others.min() >= float(solution.value) - 1e-13


@pytest.mark.parametrize("win", [NOISY, CYCLE, ORDER], ids=["noisy", "cycle", "order"])
def test_hinge_with_a_smooth_term_against_scipys_epigraph(win: np.ndarray) -> None:
    solution = solve(Bandit(REFERENCE, win), objectives.get("slic_hf"))
    labels = [(w, k) for w, k in itertools.permutations(range(3), 2) if win[w, k] > 0]
    weights = np.array([win[w, k] / 3 for w, k in labels])

    def cost(v: np.ndarray) -> float:
        return float(weights @ v[3:] - 0.1 * oracle_softmax(v[:3]) @ REFERENCE)

    limits = [{"type": "ineq", "fun": lambda v: v[3:]}]
    limits += [
        {"type": "ineq", "fun": lambda v, i=i, w=w, k=k: v[3 + i] - 1 + v[w] - v[k]} for i, (w, k) in enumerate(labels)
    ]
    begin = np.concatenate([np.zeros(3), np.full(len(labels), 2.0)])
    found = minimize(cost, begin, method="SLSQP", constraints=limits, options={"ftol": 1e-14, "maxiter": 500})
    assert float(solution.value) == pytest.approx(found.fun, abs=1e-9)
    np.testing.assert_allclose(solution.policy, np.exp(oracle_softmax(found.x[:3])), atol=1e-5)
    assert (solution.status, solution.certificate.proved) == ("converged", True)


def test_hinge_of_two_actions_by_hand() -> None:
    """gamma D = 1 for p > 1/2, at p = 1/2 anything between -1 and 1, of which the start is nearest; at p = 1 D >= 1/gamma."""
    hinge = objectives.get("rso_hinge", gamma=0.5)
    for p, margin, status in (
        (0.8, 2.0, "converged"),
        (0.3, -2.0, "converged"),
        (0.5, 0.0, "not_unique"),
        (1.0, 2.0, "not_unique"),
    ):
        problem = Bandit([0.3, 0.7], [[0.5, p], [1 - p, 0.5]])
        solution = solve(problem, hinge)
        ratios = solution.log_policy - problem.log_reference[0]
        assert (solution.status, solution.certificate.proved) == (status, True)
        assert float(ratios[0] - ratios[1]) == pytest.approx(margin, abs=1e-12)
        assert solution.certificate.dimension == (status == "not_unique")
    low, high = solution.certificate.kl_range  # p = 1: D from 2 to infinity
    policy = np.array([0.3 * math.exp(2), 0.7]) / (0.3 * math.exp(2) + 0.7)
    assert low == pytest.approx(float(policy @ np.log(policy / np.array([0.3, 0.7]))), rel=1e-10)
    assert high == pytest.approx(-math.log(0.3), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_face_of_minimisers_of_hinges(seed: int) -> None:
    """Points of the reported dimension around the answer have the same value, and KL stays in the reported range."""
    generator = np.random.default_rng(seed)
    reference, win, weight = oracle.random_world(generator, 4, density=0.7, certain=0.5)
    solution = solve(Bandit(reference, win, weight), objectives.get("rso_hinge", gamma=0.5))
    assert solution.certificate.proved
    logits = solution.logits.numpy()

    def value(z: np.ndarray) -> np.ndarray:
        a = z - np.log(reference)
        pairs = itertools.permutations(range(4), 2)
        return sum(weight[w, k] * win[w, k] * np.maximum(0, 1 - 0.5 * (a[:, w] - a[:, k])) for w, k in pairs)

    many = logits + 0.5 * generator.normal(size=(200_000, 4))
    assert value(many).min() >= float(solution.value) - 1e-12
    hull = solution.certificate.details
    from toy_bandits.details import minimisers

    (members,) = minimisers(hull._function(torch.tensor([0])), hull.logits, solution.certificate.dimension)
    inside = logits + 3.0 * generator.normal(size=(100_000, members.dimension + 1))[:, members.labels()]
    gaps = inside[:, :, None] - inside[:, None, :]
    inside = inside[(gaps >= members.lower - 1e-9).all((-2, -1))]
    assert len(inside) > 0
    np.testing.assert_allclose(value(inside), float(solution.value), atol=1e-8)
    logs = oracle_softmax(inside)
    kls = (np.exp(logs) * (logs - np.log(reference))).sum(-1)
    low, high = solution.certificate.kl_range
    assert low - 1e-7 <= kls.min()
    assert kls.max() <= high + 1e-7


def test_a_batch_of_kinked_problems_and_what_it_says_of_each() -> None:
    problem = Bandit(REFERENCE, np.stack([NOISY, ORDER])[:, None])
    solution = solve(problem, objectives.get("slic_hf", target="chosen"))
    assert solution.status.tolist() == ["converged", "diverges"]
    assert solution.certificate.reason.tolist() == ["", ""]
