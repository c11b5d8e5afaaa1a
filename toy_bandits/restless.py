"""Unpaired objectives whose field has no zero, proved from the signs of its slopes.

The loss of an action y depends on its own log-ratio alone, so with g_y its slope the field in the logits of a context is
G_y = g_y - pi_y sum_z g_z. At a zero every g_y has the sign of their sum, so:

- a known negative and a known non-negative slope in one context: no zero;
- with S the actions of negative slope, all others known to be non-negative and some of them there: <G, 1_S> = (1 - pi(S)) sum_S g -
  pi(S) sum_rest g < 0 at every policy, so training lifts S for ever ("diverges"). Likewise with all signs turned round: it lowers S for
  ever.

Signs are known without the reference point, of which slopes are a function too: a response that is only ever desirable has g < 0,
only ever undesirable g > 0; and where the link's slope is even (a sigmoid's), g has the sign of lu u - lw d, d and u how often the
response is desirable and undesirable: with lw = lu these sum to 0 over the responses, so that both signs occur unless all are balanced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objectives.terms import UnpairedTerm
from toy_bandits.derivatives import Function

ROUNDING = 1e-12


def never_rests(function: Function) -> tuple[Tensor, Tensor, Tensor]:
    """Which problems (B,) are proved to move on for ever, which (B,) at least to have no zero, and a direction (B, X, A) of the former's
    logits."""
    none = torch.zeros_like(function.problem.contexts[:, 0], dtype=torch.bool)
    direction = torch.zeros_like(function.problem.reference)
    signs = slope_signs(function)
    if signs is None:
        return none, none, direction
    sign, known = signs
    falls, grows = known & (sign < 0), known & (sign > 0)
    some_fall, some_grow = falls.any(-1, keepdim=True), grows.any(-1, keepdim=True)
    lifted = some_fall & (known & ~falls).any(-1, keepdim=True) & known.all(-1, keepdim=True)
    lowered = some_grow & ~some_fall & (known & ~grows).any(-1, keepdim=True) & known.all(-1, keepdim=True)
    direction = torch.where(lifted, falls.to(direction), torch.where(lowered, -grows.to(direction), 0.0))
    no_zero = (some_fall & (known & ~falls).any(-1, keepdim=True)) | (
        some_grow & (known & ~grows).any(-1, keepdim=True)
    )
    return (lifted | lowered).flatten(1).any(-1), no_zero.flatten(1).any(-1), direction


def slope_signs(function: Function) -> tuple[Tensor, Tensor] | None:
    """(B, X, A): the sign of g_y at every policy, and where it is known; None of objectives that are not of unpaired labels only."""
    term = function.objective.terms[0]
    if len(function.objective.terms) > 1 or not isinstance(term, UnpairedTerm) or term.link is None:
        return None
    wins, losses = (function.problem.label_weights.sum(side) for side in (-1, -2))
    up, down = _weighted(term.desirable_weight, wins), _weighted(term.undesirable_weight, losses)
    if term.link.even_slope:
        net = down - up
        sign = torch.where(net.abs() <= ROUNDING * (up + down), 0.0, net.sign())
        return sign, torch.ones_like(sign, dtype=torch.bool)
    return torch.where(down == 0, -1.0, 1.0) * ((up > 0) | (down > 0)), (up == 0) | (down == 0)


def _weighted(weight: float | Tensor, share: Tensor) -> Tensor:
    return (weight.reshape(-1, 1, 1) if isinstance(weight, Tensor) and weight.ndim else weight) * share
