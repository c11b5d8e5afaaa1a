"""Divergence of falling losses whose margins are not affine: certain wins that can be ordered are separated without end.

Let no win of positive probability close a cycle, so that the actions of a context can be put on levels, each winner above all that it
beats. Let log pi of the top level stay and every lower level fall at a speed of its own, more than k times that of the levels above,
k = `Margin.separates`. Every label's margin then tends to +inf, so that the objective tends to the sum of its losses' infima, below
which it cannot be; a loss that falls for ever (`Link.falling`) does not attain its infimum. So no minimiser exists, convex or not.
A term -log pi(y) fits in where y alone is on the top level: it tends to its own infimum 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import PairTerm
from objectives.values import Value
from toy_bandits.derivatives import CrossEntropyPiece, Function


def separated(function: Function) -> tuple[Tensor, Tensor]:
    """Which problems (B,) this proves to have no minimiser, and a direction (B, X, A) of the logits along which each falls for ever."""
    problem = function.problem
    nothing = torch.zeros_like(problem.contexts[:, 0], dtype=torch.bool), torch.zeros_like(problem.reference)
    masses = torch.zeros_like(problem.reference)
    factor = torch.ones_like(problem.contexts[:, 0])
    normalized = set()
    for term, piece in zip(function.objective.terms, function.pieces, strict=True):
        if isinstance(piece, CrossEntropyPiece):
            masses = masses + piece.masses
            continue
        if not isinstance(term, PairTerm) or term.link is None or term.margin is None:
            return nothing
        if not term.link.falling or term.margin.separates is None:
            return nothing
        factor = torch.maximum(factor, _per_problem(term.margin.separates, factor))
        normalized.add(term.margin.normalized)
    if len(normalized) != 1:
        return nothing
    beats = problem.label_weights > 0
    held = masses > 0
    fastest = torch.where(held.any(-1, keepdim=True) & ~held, 1.0, 0.0)
    depth, ordered = _depths(beats, fastest, factor)
    lone = (held.sum(-1) <= 1) & (torch.where(held, depth, 0.0) == 0).all(-1)
    proved = ordered & lone.all(-1) & beats.flatten(1).any(-1)
    tokens = problem.lengths if normalized == {True} and problem.lengths is not None else torch.ones_like(depth)
    return proved, torch.where(proved[:, None, None], -depth * tokens, 0.0)


def _depths(beats: Tensor, least: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Depths (B, X, A) >= ``least`` with depth(loser) >= factor depth(winner) + 1, and whether (B,) there are any."""
    depth = least
    for _ in range(beats.shape[-1] + 1):
        below = torch.where(beats, factor[:, None, None, None] * depth.unsqueeze(-1) + 1.0, 0.0).amax(-2)
        deeper = torch.maximum(depth, below)
        if torch.equal(deeper, depth):
            break
        depth, last = deeper, depth
    else:
        changing = (depth != last).flatten(1).any(-1)
        return torch.where(changing[:, None, None], 0.0, depth), ~changing
    return depth, torch.isfinite(depth).flatten(1).all(-1)


def _per_problem(value: Value, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)
