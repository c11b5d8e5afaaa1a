"""Status and certificate of each problem: what is proved of it, and what the iteration found."""

from __future__ import annotations

import torch
from torch import Tensor

from toy_bandits.derivatives import Function, PairPiece
from toy_bandits.newton import FLAT_CURVATURE, Minimum, centred, curvature, flat_moves, minimise
from toy_bandits.solution import TabularAnswer
from toy_bandits.structure import Structure

FAR = 1000.0
"""How far, in nats of losses' arguments and of log-probs, divergence is followed: losses are then at their limits to the last digit."""
ROUNDING = 1e-14
SAME_SPEED = 0.1
SAME_VALUE = 1e-12
STRIDE = 0.3
"""How far off a curve of minimisers, in nats, its next point is searched for."""
LONG_DRIFT = 3.0


def judge(
    function: Function,
    structure: Structure,
    groups: Tensor,
    minimum: Minimum,
    minima: Tensor,
    tie: Tensor,
    sole: Tensor,
) -> TabularAnswer:
    """Status and certificate of each problem from what is proved and what was found."""
    logits = minimum.logits
    flat_here = _is_flat(function, logits, groups, minimum.converged & ~structure.unique & ~minimum.curved)
    runs_away, direction = _runs_away(function, minimum, structure, flat_here)
    converged = minimum.converged & ~structure.diverges & ~runs_away
    logits = torch.where(runs_away[:, None, None], logits + reach(function)[:, None, None] * direction, logits)
    value, gradient_norm = minimum.value, minimum.gradient_norm
    if bool(runs_away.any()):
        derivatives = function(logits)
        value = torch.where(runs_away, derivatives.value, value)
        gradient_norm = torch.where(runs_away, derivatives.gradient.flatten(1).norm(dim=-1), gradient_norm)
    value = torch.where(structure.bottomless, -torch.inf, value)
    diverges = structure.diverges | runs_away
    direction = direction + structure.direction
    flat = _flat_directions(function, logits, groups, converged & flat_here)
    flat = flat.clamp(min=structure.unbounded.long())
    dimension = torch.where(diverges, 0, structure.free + flat)
    # Minima found from other starts lie on the same continuum.
    minima, tie = torch.where(flat > 0, 1, minima), tie & (flat == 0)
    status = torch.full_like(dimension, 3)
    status = torch.where(converged, torch.where((dimension > 0) | tie, 2, 0), status)
    status = torch.where(diverges, 1, status)
    log_policy = logits.log_softmax(-1)
    lost = diverges[:, None, None] & (direction < direction.amax(-1, keepdim=True))
    log_policy = torch.where(lost, -torch.inf, log_policy)
    return TabularAnswer(
        logits=logits,
        log_policy=log_policy,
        status=status,
        gradient_norm=gradient_norm,
        value=value,
        proved=structure.diverges | (converged & (structure.unique | structure.unbounded | (structure.exists & sole))),
        direction=_unit(direction),
        dimension=dimension,
        minima=torch.where(diverges, 0, minima),
        tie=tie,
        groups=groups,
        newton_step=minimum.step.flatten(1).abs().amax(-1),
        iterations=minimum.iterations,
        stability=torch.full_like(value, torch.nan),
        reason=torch.zeros_like(status),
    )


def _unit(direction: Tensor) -> Tensor:
    """(B, X, A): scaled so that the two actions of a context that part fastest do so by one nat per nat; 0 stays 0."""
    size = (direction.amax(-1) - direction.amin(-1)).amax(-1)
    return direction / torch.where(size > 0, size, 1.0)[:, None, None]


def _is_flat(function: Function, logits: Tensor, groups: Tensor, which: Tensor) -> Tensor:
    """(B,): which of the problems asked about have a direction without curvature."""
    flat = torch.zeros_like(which)
    index = which.nonzero()[:, 0]
    if len(index):
        flat[index] = curvature(function.take(index)(logits[index]), groups[index]) <= FLAT_CURVATURE
    return flat


def _runs_away(function: Function, minimum: Minimum, structure: Structure, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Which iterations left every bound, and in which direction: followed much further, the value must not rise again.

    Where rounding hides the slope, what tells a fall that never ends from a ``flat`` valley is that the iteration went on far along it.
    """
    suspects = (minimum.escaping | (minimum.converged & flat)) & ~structure.exists
    direction = torch.zeros_like(minimum.logits)
    if not bool(suspects.any()):
        return suspects, direction
    size = minimum.drift.abs().amax((-2, -1), keepdim=True)
    went = suspects[:, None, None] & (size > LONG_DRIFT)
    direction = torch.where(went, _levels(minimum.drift / size), 0.0)
    further = function(minimum.logits + reach(function)[:, None, None] * direction)
    falls = further.value <= minimum.value + ROUNDING * (1.0 + minimum.value.abs())
    confirmed = suspects & falls & (direction != 0).flatten(1).any(-1)
    return confirmed, torch.where(confirmed[:, None, None], direction, 0.0)


def _levels(direction: Tensor) -> Tensor:
    """(..., A) with numbers that differ by little (`SAME_SPEED`) made equal: they go to infinity together, or not at all."""
    ordered, order = direction.sort(-1)
    level = torch.zeros_like(order)
    level[..., 1:] = (ordered.diff(dim=-1) > SAME_SPEED).cumsum(-1)
    total = torch.zeros_like(ordered).scatter_add(-1, level, ordered)
    size = torch.zeros_like(ordered).scatter_add(-1, level, torch.ones_like(ordered))
    means = (total / size.clamp(min=1.0)).gather(-1, level)
    return torch.zeros_like(direction).scatter(-1, order, means - means[..., -1:])


def _flat_directions(function: Function, logits: Tensor, groups: Tensor, which: Tensor) -> Tensor:
    """(B,): along how many moves without curvature minimisers go on over a finite distance, one way or both.

    Straight on, where the value stays the same; or along a curve, where Newton's method from a point off it ends at the same value,
    elsewhere.
    """
    count = torch.zeros_like(which, dtype=torch.long)
    index = which.nonzero()[:, 0]
    if len(index) == 0:
        return count
    function, logits = function.take(index), logits[index]
    derivatives = function(logits)
    tolerance = ROUNDING * (1.0 + derivatives.value.abs())
    moves, flat = flat_moves(derivatives, groups[index])
    rows, numbers = flat.nonzero(as_tuple=True)  # every move without curvature of every problem, all looked at together
    if len(rows) == 0:
        return count
    along, start = moves[rows, numbers], logits[rows]
    own, mine = function.take(rows), groups[index[rows]]
    ends = (own(start + sign * along).value for sign in (-1.0, 1.0))
    same = torch.stack([(end - derivatives.value[rows]).abs() <= tolerance[rows] for end in ends]).any(0)
    for sign in (-1.0, 1.0):
        bent = (~same).nonzero()[:, 0]
        if len(bent):
            off = start[bent] + sign * STRIDE * along[bent]
            same[bent] = _goes_on(own.take(bent), start[bent], off, mine[bent])
    return count.index_add(0, index[rows], same.long())


def _goes_on(function: Function, logits: Tensor, off: Tensor, groups: Tensor) -> Tensor:
    """(B,): whether the minimum near ``off`` is as good as that at ``logits``, and another one."""
    end = minimise(function.take, off, groups, torch.ones_like(groups[:, 0, 0], dtype=torch.bool))
    value = function(logits).value
    apart = centred(end.logits - logits, groups).flatten(1).abs().amax(-1) > 0.5 * STRIDE
    return end.converged & apart & ((end.value - value).abs() <= SAME_VALUE * (1.0 + value.abs()))


def reach(function: Function) -> Tensor:
    """(B,): how far to follow a direction of divergence so that every pair that falls is at its limit."""
    scales = [piece.scale for piece in function.pieces if isinstance(piece, PairPiece)]
    reach = torch.full_like(function.problem.contexts[:, 0], FAR)
    for scale in scales:
        reach = torch.maximum(reach, FAR / scale)
    return reach
