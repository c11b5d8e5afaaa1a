"""Hinges alone: the objective is piecewise linear in the logits, so its minimum is a linear program, solved exactly with HiGHS.

    minimise sum_i w_i t_i   over logits and t >= 0,   t_i >= c_i - s_i (theta_winner - theta_loser)

The dual variables lambda_i in [0, 1] prove the value, and name *all* minimisers by complementary slackness: a label with lambda = 0 is at
its kink or past it, one with lambda = 1 at it or before it, and any other at the kink. These are bounds on log-ratios (`RatioSet`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array, eye_array, hstack
from torch import Tensor

from objectives import links
from toy_bandits import expectations
from toy_bandits.derivatives import Function, PairPiece
from toy_bandits.ratio_sets import RatioSet

LABELS = 20_000
"""Larger programs are refused."""
INSIDE = 1e-9
"""How far inside (0, 1) a dual variable counts as such: basic solutions are ratios of weights."""


@dataclass(frozen=True)
class Face:
    """All minimisers of one problem: a set of log-ratios per context, the minimum, and how far the duals are from proving it."""

    sets: list[RatioSet]
    value: float
    residual: float

    @property
    def dimension(self) -> int:
        """Of the set, in logits without their constant per context."""
        return sum(one.dimension for one in self.sets)


def is_linear(function: Function) -> bool:
    """Whether the objective is made of hinges of differences of logits alone."""
    return all(isinstance(piece, PairPiece) and piece.link is links.hinge for piece in function.pieces)


def face(function: Function) -> Face | None:
    """The minimisers of a single problem, a batch of one; None where the program is too large or HiGHS fails."""
    problem = function.problem
    contexts, actions = problem.reference.shape[-2:]
    context, winner, loser = (index.cpu().numpy() for index in problem.shown)
    if len(context) * len(function.pieces) > LABELS:
        return None
    batch = expectations.pairs_with_tokens(problem, torch.zeros_like(problem.reference))
    assert batch.weights is not None
    weight, scale, offset = [], [], []
    for piece in function.pieces:
        assert isinstance(piece, PairPiece)
        ones = np.ones(len(context))
        weight.append(
            batch.weights[0].cpu().numpy() * float(torch.as_tensor(piece.term.weight, dtype=torch.float64).flatten()[0])
        )
        scale.append(ones * float(torch.as_tensor(piece.term.scale, dtype=torch.float64).flatten()[0]))
        offset.append(piece.link.flat_after - piece.term.argument(batch)[0].cpu().numpy())
    times = len(function.pieces)
    context, winner, loser = (np.tile(index, times) for index in (context, winner, loser))
    w, s, c = (np.concatenate(parts) for parts in (weight, scale, offset))
    kept = w > 0
    context, winner, loser, w, s, c = (values[kept] for values in (context, winner, loser, w, s, c))
    count = len(w)
    row = np.arange(count)
    margins = coo_array(
        (
            np.concatenate([s, -s]),
            (np.tile(row, 2), np.concatenate([context * actions + winner, context * actions + loser])),
        ),
        shape=(count, contexts * actions),
    )
    found = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrices
        np.concatenate([np.zeros(contexts * actions), w / w.max()]),
        A_ub=hstack([-margins, -eye_array(count)]),
        b_ub=-c,
        bounds=[(None, None)] * (contexts * actions) + [(0, None)] * count,
        method="highs",
    )
    if not found.success:
        return None
    dual = np.clip(-found.ineqlin.marginals / (w / w.max()), 0.0, 1.0)
    residual = float(np.linalg.norm(margins.T @ (w * dual)))
    bounds = np.full((contexts, actions, actions), -math.inf)
    for x, a, b, kink, slack in zip(context, winner, loser, c / s, dual, strict=True):
        if slack < 1.0 - INSIDE:
            bounds[x, a, b] = max(bounds[x, a, b], kink)
        if slack > INSIDE:
            bounds[x, b, a] = max(bounds[x, b, a], -kink)
    bounds[(problem.contexts[0] == 0).cpu().numpy()] = (
        0.0  # a context that never occurs adds no freedom worth reporting
    )
    return Face([RatioSet.of(one) for one in bounds], float((w * dual * c).sum()), residual)


def nearest(found: Face, start: Tensor) -> Tensor:
    """(X, A): the minimiser nearest to ``start`` in the Euclidean norm of the logits."""
    return torch.from_numpy(np.stack([one.nearest(z) for one, z in zip(found.sets, start.numpy(), strict=True)]))
