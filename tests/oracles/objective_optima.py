"""Optima of objectives in small worlds, from closed forms and scalar search: no solver, no torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpmath import mpf
from oracles.objective_values import PAIR_LOSSES, Pair
from scipy.optimize import brentq, minimize_scalar
from scipy.special import lambertw


def two_actions(label: str, reference: tuple[float, float], p: float) -> float:
    """Probability of action 0 that minimises the expected loss of one pair labelled 0 > 1 with probability ``p``.

    The loss comes from the 60-digit oracle, the minimum from a scan over log-odds and scalar search.
    """
    loss = PAIR_LOSSES[label]
    ref_0, ref_1 = np.log(reference)

    def expected(log_odds: float) -> float:
        log_0, log_1 = -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)
        right = loss(Pair(log_0, log_1, ref_0, ref_1, 1, 1))
        wrong = loss(Pair(log_1, log_0, ref_1, ref_0, 1, 1))
        return float(mpf(p) * right + (1 - mpf(p)) * wrong)

    grid = np.linspace(-12, 12, 97)
    best = grid[int(np.argmin([expected(x) for x in grid]))]
    found = minimize_scalar(expected, bracket=(best - 0.25, best, best + 0.25), options={"xtol": 1e-12})
    return float(1 / (1 + np.exp(-found.x)))


def normalised(
    ratio: Callable[[np.ndarray], np.ndarray], reference: np.ndarray, lowest: float, highest: float
) -> np.ndarray:
    """The policy pi_ref * ratio(constant) with the constant, in [lowest, highest], that makes it sum to 1."""
    constant = brentq(lambda c: float((reference * ratio(c)).sum()) - 1, lowest, highest, xtol=1e-15, rtol=1e-15)
    policy = reference * ratio(constant)
    return policy / policy.sum()


def gibbs(reference: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """pi_ref exp(exponent) / Z."""
    weights = reference * np.exp(exponent - exponent.max())
    return weights / weights.sum()


def chi_squared(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """z + log z = r/beta + c, so z = W(exp(r/beta + c))."""
    return normalised(lambda c: lambertw(np.exp(rewards / beta + c)).real, reference, -30.0, 30.0)


def forward_kl_divergence(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """-1/u = r/beta + c."""
    top = -(rewards / beta).max()
    return normalised(lambda c: -1 / (rewards / beta + c), reference, top - 1e6, top - 1e-9)


def jensen_shannon(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """log(u/(1 + u)) = r/beta + c."""
    top = -(rewards / beta).max()
    return normalised(lambda c: 1 / np.expm1(-(rewards / beta + c)), reference, top - 50.0, top - 1e-9)


def alpha_divergence(reference: np.ndarray, rewards: np.ndarray, beta: float, alpha: float) -> np.ndarray:
    """-u^-alpha / alpha = r/beta + c."""
    top = -(rewards / beta).max()
    return normalised(lambda c: (-alpha * (rewards / beta + c)) ** (-1 / alpha), reference, top - 1e6, top - 1e-9)
