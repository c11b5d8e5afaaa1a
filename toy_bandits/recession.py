"""How an objective approaches its infimum along a direction of the logits: the tails of its losses, or their slopes as observed."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from toy_bandits import expectations
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.structure import column

STEPS = 400
AGREE = 0.01
"""Slopes observed in three places must give the same rate to this precision."""
VISIBLE = (1e-280, 1e-6)
"""Sizes of a slope, relative to the largest seen, from which a rate is read."""


def known_rates(function: Function, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Rate and slope (B,) along ``direction`` (B, X, A), from the links' behaviour at infinity; NaN where a term's is not known.

    A pair whose winner leaves its loser behind by g nats per nat falls like e^(-kappa scale g t), kappa the link's tail; the
    normaliser of -log pi(y), y among the fastest of its context, like e^(-g t), g the lead of the fastest over the next. The slowest wins.
    """
    problem = function.problem
    slope = torch.zeros_like(direction[:, 0, 0])
    rate = torch.full_like(slope, torch.inf)
    gap = direction.unsqueeze(-1) - direction.unsqueeze(-2)
    for piece in function.pieces:
        if isinstance(piece, PairPiece):
            link, scale = piece.link, column(piece.term.scale)
            weights = problem.label_weights * column(piece.term.weight)
            for side, link_slope, tail, attained in (
                (gap, link.slope_plus, link.tail_plus, link.attains_plus),
                (-gap, link.slope_minus, link.tail_minus, link.attains_minus),
            ):
                moves = (weights > 0) & (side > 0)
                slope = slope + torch.where(moves, weights * scale * link_slope * side, 0.0).sum((-3, -2, -1))
                if not attained:
                    tails = torch.where(moves, tail * scale * side, torch.inf)
                    rate = torch.minimum(rate, tails.flatten(1).amin(-1))
        elif isinstance(piece, CrossEntropyPiece):
            behind = direction.amax(-1, keepdim=True) - direction
            slope = slope + (piece.masses * behind).sum((-2, -1))
            leads = torch.where((behind > 0) & (piece.masses.sum(-1, keepdim=True) > 0), behind, torch.inf)
            rate = torch.minimum(rate, leads.flatten(1).amin(-1))
        else:
            return torch.full_like(slope, math.nan), torch.full_like(slope, math.nan)
    flat = slope.abs() <= 1e-12
    rate = torch.where(flat & torch.isfinite(rate), rate, math.nan)
    return rate, torch.where(flat, 0.0, slope)


def observed_rates(function: Function, end: Tensor, direction: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Rate and slope (B,) as the derivative along the last ``distance`` (B,) nats before ``end`` (B, X, A) shows them.

    Where it shrinks by the same factor per nat in three places, that is the rate; where it does not shrink, it is the slope; where it
    shrinks ever faster until it vanishes, the rate is inf.
    """
    steps = torch.linspace(-1.0, 0.0, STEPS + 1, dtype=end.dtype, device=end.device)
    falls = torch.stack(
        [-_along(function, end + (distance * step)[:, None, None] * direction, direction) for step in steps]
    )
    rate, slope = torch.full_like(distance, math.nan), torch.full_like(distance, math.nan)
    for index in range(len(distance)):
        fall, width = falls[:, index], distance[index].item() / STEPS
        top = fall.amax().item()
        if top <= 0:
            continue
        if fall[-1].item() > 0.5 * top:
            slope[index] = -fall[-1]
            continue
        slope[index] = 0.0
        seen = ((fall > top * VISIBLE[0]) & (fall < top * VISIBLE[1]) & (fall > 1e-290)).nonzero()[:, 0].tolist()
        if len(seen) >= 3 and seen[-1] - seen[0] == len(seen) - 1:
            places = [seen[0], seen[len(seen) // 2], seen[-1]]
            one, two = (
                -(fall[b].log() - fall[a].log()).item() / (b - a) / width for a, b in itertools.pairwise(places)
            )
            if abs(one - two) <= AGREE * max(one, two):
                rate[index] = two
    return rate, slope


def _along(function: Function, logits: Tensor, direction: Tensor) -> Tensor:
    """(B,): derivative of the objective along the direction, without its Hessian."""
    leaf = logits.detach().clone().requires_grad_()
    batches = expectations.batches(function.problem, function.objective, leaf.log_softmax(-1))
    (gradient,) = torch.autograd.grad(function.objective.value(batches).sum(), leaf)
    return (gradient * direction).sum((-2, -1))
