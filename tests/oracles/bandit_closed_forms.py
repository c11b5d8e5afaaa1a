"""Exact answers for bandits, written from the theory's formulas in numpy, scipy and mpmath alone: nothing of the packages is used.

Conventions: one context; reference (A,), win[a, b] = p(a > b) (A, A), weight[a, b] the symmetric weight of the unordered pair {a, b}, which
sums to 1 over unordered pairs.
"""

from __future__ import annotations

from itertools import permutations

import mpmath
import numpy as np
from scipy.optimize import linprog, minimize


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def gibbs(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """F1: pi_ref exp(r / beta) / Z."""
    weights = reference * np.exp((rewards - rewards.max()) / beta)
    return weights / weights.sum()


def dpo_margin(complement: str, beta: str, smoothing: str = "0") -> float:
    """F2, F3: logit((1-e) p + e (1-p)) / beta with 250 digits; ``complement`` is 1 - p as a decimal string."""
    with mpmath.workdps(250):
        q, e = mpmath.mpf(complement), mpmath.mpf(smoothing)
        p = (1 - e) * (1 - q) + e * q
        return float((mpmath.log(p) - mpmath.log(1 - p)) / mpmath.mpf(beta))


def has_finite_dpo_minimiser(win: np.ndarray, weight: np.ndarray) -> bool:
    """F2 by linear programming: no direction that lowers no winner below a loser and lifts one above (Albert and Anderson 1984)."""
    actions = len(win)
    edges = [(w, k) for w, k in permutations(range(actions), 2) if weight[w, k] > 0 and win[w, k] > 0]
    rows = np.zeros((len(edges), actions))
    for row, (winner, loser) in enumerate(edges):
        rows[row, winner], rows[row, loser] = 1.0, -1.0
    found = linprog(-rows.sum(0), A_ub=-rows, b_ub=np.zeros(len(edges)), bounds=[(-1.0, 1.0)] * actions)
    assert found.success
    return bool(-found.fun < 1e-9)


def ipo_logits(reference: np.ndarray, win: np.ndarray, weight: np.ndarray, tau: float, start: np.ndarray) -> np.ndarray:
    """F4 and F5: weighted least squares for D on the pair graph; the minimum-norm change keeps every component's mean of ``start``."""
    pairs = [(a, b) for a in range(len(win)) for b in range(a) if weight[a, b] > 0]
    rows, targets = np.zeros((len(pairs), len(win))), np.zeros(len(pairs))
    for row, (a, b) in enumerate(pairs):
        root = np.sqrt(weight[a, b])
        rows[row, a], rows[row, b] = root, -root
        now = start[a] - start[b] - np.log(reference[a] / reference[b])
        targets[row] = root * ((win[a, b] - win[b, a]) / (2 * tau) - now)
    change, *_ = np.linalg.lstsq(rows, targets, rcond=1e-12)
    return start + change


def maxpo_two_actions(q: float, p: float, beta: float) -> float:
    """F6 (iii): the probability of the first of two actions, reference q, preferred with probability p."""
    d = 2 * p - 1
    if d == 0:
        return q
    b = d - beta
    return float((b + np.sqrt(b * b + 4 * d * beta * q)) / (2 * d))


def pair_loss(name: str, margin: np.ndarray, strength: float) -> np.ndarray:
    """Of one labelled pair at the margin that the objective looks at: D for dpo and ipo, d for maxpo."""
    if name == "dpo":
        return np.logaddexp(0.0, -strength * margin)
    if name == "ipo":
        return (margin - 1 / (2 * strength)) ** 2
    return -1 / (1 + np.exp(-margin))


def objective(
    name: str,
    strength: float,
    log_policy: np.ndarray,
    reference: np.ndarray,
    win: np.ndarray,
    weight: np.ndarray,
    samples: np.ndarray | None = None,
    forward_kl: float = 0.0,
) -> np.ndarray:
    """Expected loss of log-policies (..., A), label by label; maxpo's strength is the weight of its cross entropy."""
    total = np.zeros(log_policy.shape[:-1])
    for w, k in permutations(range(len(reference)), 2):
        plain = log_policy[..., w] - log_policy[..., k]
        adjusted = plain - np.log(reference[w]) + np.log(reference[k])
        if weight[w, k] > 0:
            margin = plain if name == "maxpo" else adjusted
            total = total + weight[w, k] * win[w, k] * pair_loss(name, margin, strength)
    mass = reference if samples is None else samples
    cross_entropy = -np.where(mass > 0, mass * log_policy, 0.0).sum(-1)
    return total + (strength if name == "maxpo" else forward_kl) * cross_entropy


def scipy_minimum(function: object, actions: int, starts: int, seed: int) -> tuple[float, np.ndarray]:
    """Lowest value and policy found by BFGS on free logits from several random starts."""
    generator = np.random.default_rng(seed)
    best = (np.inf, np.zeros(actions))
    for _ in range(starts):
        begin = 2 * generator.normal(size=actions)
        found = minimize(lambda z: function(log_softmax(z)), begin, method="BFGS", options={"gtol": 1e-9})
        if found.fun < best[0]:
            best = (float(found.fun), np.exp(log_softmax(found.x)))
    return best


def simplex_grid(steps: int) -> np.ndarray:
    """All interior points (i, j, k) / steps of the triangle, (n, 3)."""
    return np.array([(i, j, steps - i - j) for i in range(1, steps) for j in range(1, steps - i)]) / steps


def logit_grid(bound: float, step: float) -> np.ndarray:
    """Log-policies of three actions at a mesh of two logits, corners of the triangle included, (n, 3)."""
    axis = np.arange(-bound, bound + step, step)
    first, second = np.meshgrid(axis, axis)
    logits = np.stack([first, second, np.zeros_like(first)], -1).reshape(-1, 3)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def random_world(
    generator: np.random.Generator, actions: int, density: float = 1.0, certain: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference, preferences, pair weights; pairs are left out or made certain with the given probabilities."""
    reference = generator.dirichlet(np.ones(actions)) * 0.9 + 0.1 / actions
    win, weight = np.full((actions, actions), 0.5), np.zeros((actions, actions))
    while weight.sum() == 0:
        for a in range(actions):
            for b in range(a):
                p = generator.uniform(0.05, 0.95)
                if generator.uniform() < certain:
                    p = float(p > 0.5)
                win[a, b], win[b, a] = p, 1 - p
                weight[a, b] = weight[b, a] = generator.uniform(0.2, 1.0) * (generator.uniform() < density)
    return reference, win, weight / (weight.sum() / 2)
