"""Sets of policies given by bounds on log-ratios, and the range of KL(pi || pi_ref) over them.

Minimisers of a convex pair loss that are not unique form such a set: log pi(a) - log pi(b) is fixed where a strictly convex loss compares
a and b, bounded on one side where a loss has become constant (a hinge past its kink), and free where nothing compares them. With
``lower[a, b]`` the largest known lower bound of log pi(a) - log pi(b), the tightest bounds are longest paths, and two actions hang together
where both bounds meet. In the probabilities the set is a polytope, on which KL is convex: its least value lies on the face whose bounds
hold with equality there, and in the interior of a face KL has its least value in closed form; its supremum is at a vertex, which the set
itself need not contain, since a vertex may give an action probability 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import nnls

SAME = 1e-9
"""Bounds closer than this, relative to their size, hold with equality."""
LARGEST = 5
"""Sets that move against each other under bounds: with more of them, faces are too many to go through."""

Array = np.ndarray


@dataclass(frozen=True)
class RatioSet:
    """Policies of one context with log pi(a) - log pi(b) >= lower[a, b], (A, A), -inf where there is no bound; closed under paths."""

    lower: Array

    @staticmethod
    def of(lower: Array) -> RatioSet:
        """The set with its bounds made as tight as they follow from each other (Floyd and Warshall)."""
        tight = lower.copy()
        np.fill_diagonal(tight, 0.0)
        for middle in range(len(tight)):
            tight = np.maximum(tight, tight[:, middle, None] + tight[None, middle, :])
        return RatioSet(tight)

    def labels(self) -> Array:
        """(A,): actions whose log-ratio is fixed have one label, 0, 1, ..."""
        both = np.isfinite(self.lower) & np.isfinite(self.lower.T)
        scale = 1.0 + np.where(both, np.abs(self.lower), 0.0)
        fixed = both & (np.where(both, self.lower + self.lower.T, -np.inf) >= -SAME * scale)
        return np.unique(fixed.argmax(-1), return_inverse=True)[1]

    @property
    def dimension(self) -> int:
        """Of the set, in logits without their constant."""
        return int(self.labels().max())

    def nearest(self, logits: Array) -> Array:
        """The set's logits nearest to ``logits`` (A,) in the Euclidean norm: least distance programming (Lawson and Hanson, ch. 23)."""
        bounded = np.isfinite(self.lower) & ~np.eye(len(logits), dtype=bool)
        high, low = bounded.nonzero()
        rows = np.zeros((len(high), len(logits)))
        rows[np.arange(len(high)), high], rows[np.arange(len(high)), low] = 1.0, -1.0
        missing = self.lower[high, low] - rows @ logits
        if not (missing > 0).any():
            return logits
        scale = missing.max()
        system = np.vstack([rows.T, missing[None] / scale])
        target = np.zeros(len(system))
        target[-1] = 1.0
        multipliers, _ = nnls(system, target)
        active = multipliers > 0
        nearest: Array = logits + np.linalg.lstsq(rows[active], missing[active], rcond=None)[0]
        return nearest

    def kl_range(self, logits: Array, log_reference: Array) -> tuple[float, float]:
        """Infimum and supremum of KL(pi || pi_ref) over the set; NaN where bounded sets are too many (`LARGEST`).

        Args:
            logits: (A,), a member.
            log_reference: (A,).
        """
        labels = self.labels()
        count = int(labels.max()) + 1
        parts = [labels == part for part in range(count)]
        # Conditionals within a part are fixed, so KL = sum_c m_c (log m_c - attraction_c) with m the parts' masses.
        inside = [logits[part] - _logsumexp(logits[part]) for part in parts]
        attraction = np.array(
            [-float(np.exp(q) @ (q - log_reference[part])) for q, part in zip(inside, parts, strict=True)]
        )
        first = [int(part.argmax()) for part in parts]
        # log m_c - log m_d = (log pi(f_c) - log pi(f_d)) - (q_c(f_c) - q_d(f_d)), f the first action of a part.
        share = np.array([q[0] for q in inside])
        bounds = self.lower[np.ix_(first, first)] - share[:, None] + share[None, :]
        np.fill_diagonal(bounds, -np.inf)
        if not np.isfinite(bounds).any():
            return max(-_logsumexp(attraction), 0.0), float((-attraction).max())
        if count > LARGEST:
            return math.nan, math.nan
        least, largest = _bounded_range(bounds, attraction)
        return max(least, 0.0), largest


def _bounded_range(bounds: Array, attraction: Array) -> tuple[float, float]:
    """Least and largest value of sum_c m_c (log m_c - attraction_c) over masses with log m_c - log m_d >= bounds[c, d], limits included."""
    count = len(attraction)
    tolerance = SAME * (1.0 + np.abs(np.where(np.isfinite(bounds), bounds, 0.0)))
    least, largest = math.inf, -math.inf
    for members in _supports(bounds):
        inner = [(c, d) for c in members for d in members if np.isfinite(bounds[c, d])]
        for size in range(len(members)):
            for chosen in combinations(inner, size):
                offsets, trees = _tied(members, [(c, d, bounds[c, d]) for c, d in chosen])
                if len(set(trees.values())) != len(members) - size:
                    continue  # an equality that follows from the others, or contradicts them
                logs = np.full(count, -np.inf)
                for tree in set(trees.values()):
                    own = [c for c in members if trees[c] == tree]
                    shape = np.array([offsets[c] for c in own])
                    shape = shape - _logsumexp(shape)
                    logs[own] = shape + float(np.exp(shape) @ (attraction[own] - shape))
                masses = logs - _logsumexp(logs)
                finite = np.isfinite(bounds) & np.isfinite(masses)[:, None]
                here = np.isfinite(masses)
                tall = np.where(here, masses, -1e300)  # a part without mass asks nothing of the others
                if (finite & (tall[:, None] - tall[None, :] < bounds - tolerance)).any():
                    continue
                value = float(np.exp(masses[here]) @ (masses[here] - attraction[here]))
                least = min(least, value)
                if size == len(members) - 1:
                    largest = max(largest, value)
    return least, largest


def _supports(bounds: Array) -> list[list[int]]:
    """Which parts can have mass while all others have none: with a part also those that are bounded below by it."""
    count = len(bounds)
    sets = ([c for c in range(count) if code >> c & 1] for code in range(1, 2**count))
    return [
        members
        for members in sets
        if not any(np.isfinite(bounds[c, d]) for d in members for c in range(count) if c not in members)
    ]


def _tied(members: list[int], edges: list[tuple[int, int, float]]) -> tuple[dict[int, float], dict[int, int]]:
    """Log-masses that the equalities log m_c - log m_d = value fix against each other, and to which tree each part belongs."""
    offsets, trees = dict.fromkeys(members, 0.0), {c: c for c in members}
    for c, d, value in edges:
        if trees[c] == trees[d]:
            continue
        shift, old = offsets[d] + value - offsets[c], trees[c]
        for e in members:
            if trees[e] == old:
                offsets[e], trees[e] = offsets[e] + shift, trees[d]
    return offsets, trees


def _logsumexp(values: Array) -> float:
    return float(np.logaddexp.reduce(values))
