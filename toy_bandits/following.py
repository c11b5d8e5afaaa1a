"""Objectives that are no function to be minimised: where the field that training follows comes to rest, or that it never does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from objectives.terms import unweighted
from toy_bandits import expectations, fields
from toy_bandits.certificates import reach
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.restless import never_rests
from toy_bandits.solution import TabularAnswer

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = range(4)
NO_ZERO, UNSTABLE, UNDERFLOW, NOWHERE = 7, 8, 9, 10
"""Indices into `solution.REASONS`."""
PLACES = 12
"""Points along a direction at which a fall must be seen."""
OBSERVED = 300.0
"""Nats of the losses' arguments up to which they lie."""
SEEN = 1e-200
"""A slope that is surely no rounding of 0."""
SHIFT = 1e-5
DIFFERENT = 1e-4

Smooth = Callable[[Function, Tensor], TabularAnswer]


def held_fixed(function: Function, used: set[str]) -> bool:
    """Whether a part of a loss is held fixed, so that training follows a field that is no gradient: the loss says so itself (``used``, what
    an evaluation was seen to use), or its values do."""
    return "stop_gradient" in used or _detached(function)


def _detached(function: Function) -> bool:
    """Whether a loss's gradient is not the derivative of its value, be it by a plain ``detach()``.

    Autograd against central differences of the first problem's value, at two random places, where no kink is by chance.
    """
    if all(isinstance(piece, PairPiece | CrossEntropyPiece) for piece in function.pieces):
        return False
    one = function.take(torch.tensor([0], device=function.problem.reference.device))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        place, move = (
            torch.randn(one.problem.reference.shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        place, move = (one.problem.log_reference + place.to(one.problem.reference)), move.to(one.problem.reference)
        slope = float((fields.field(one, place) * move).sum())
        values = [_value(one, place + sign * SHIFT * move) for sign in (1.0, -1.0)]
        measured = (values[0] - values[1]) / (2.0 * SHIFT)
        if abs(measured - slope) > DIFFERENT * max(abs(measured), abs(slope)) + 1e-9 * (1.0 + abs(values[0])):
            return True
    return False


def _value(function: Function, logits: Tensor) -> float:
    batches = expectations.batches(function.problem, function.objective, logits.log_softmax(-1))
    return float(function.objective.value(batches).sum())


def follow(function: Function, start: Tensor, smooth: Smooth) -> TabularAnswer:
    """A flattened batch of problems from ``start`` (B, X, A).

    Args:
        function: of the batch.
        start: logits.
        smooth: minimises functions; of a field it shows where the iteration goes if it does not come to rest.
    """
    if fields.weighted(function) is not None:
        return _weighted(function, start, smooth)
    answer = _blank(start)
    moves, nowhere, direction = never_rests(function)
    _put_divergence(function, answer, moves.nonzero()[:, 0], direction)
    guess = _by_wins(function)
    seen = nowhere & ~moves & _falls(function, start, guess)
    _put_divergence(function, answer, seen.nonzero()[:, 0], guess)
    answer.proved &= moves
    left = (~moves & ~seen).nonzero()[:, 0]
    if len(left) == 0:
        return answer
    part = _searched(function.take(left), start[left], smooth)
    part.reason = torch.where((part.status == UNSOLVED) & nowhere[left], NOWHERE, part.reason)
    _put(answer, left, part)
    return answer


def _searched(function: Function, start: Tensor, smooth: Smooth) -> TabularAnswer:
    """Numbers: a stable zero from the start, or else from where smooth minimisation ends, or a fall without end."""
    answer, everything = _blank(start), torch.arange(len(start), device=start.device)
    found = fields.zero(function, start)
    rest = (~_put_stable(function, answer, found, everything)).nonzero()[:, 0]
    if len(rest) == 0:
        return answer
    own = function.take(rest)
    part = smooth(own, start[rest])
    bounded = part.status != DIVERGES
    again = bounded.nonzero()[:, 0]
    reason = torch.where(found.converged[rest], UNSTABLE, NO_ZERO)
    along = _along(part.logits, part.direction)
    seen = _falls(own, part.logits - along[:, None, None] * part.direction, part.direction)
    diverges = ~bounded & seen
    part.reason = torch.where(diverges, 0, torch.where(bounded, reason, UNDERFLOW))
    part.status = torch.where(diverges, DIVERGES, UNSOLVED)
    part.proved = torch.zeros_like(part.proved)
    _put(answer, rest, part)
    if len(again):
        second = fields.zero(own.take(again), part.logits[again])
        answer.reason[rest[again[second.converged]]] = UNSTABLE
        _put_stable(function, answer, second, rest[again])
    return answer


def _weighted(function: Function, start: Tensor, smooth: Smooth) -> TabularAnswer:
    """Pairs under weights of the policy's own making, against the same pairs without (`fields.balanced`).

    - Where the unweighted, convex loss is proved to fall for ever along a direction, no possible label's slope along it is positive, and
      some label's is negative, whatever the weights: the field has no zero, and training goes that way without end.
    - Where its minimiser balances every pair by itself, it is the field's only zero too, up to what no pair shows.
    - Else a zero is searched for from the start, and from that minimiser.
    """
    plain = Function(function.problem, unweighted(function.objective))
    answer = smooth(plain, start)
    diverges = (answer.status == DIVERGES) & answer.proved
    answer.value = function(answer.logits).value
    settled = fields.balanced(function, answer.logits) & ~diverges & (answer.status != UNSOLVED)
    index = settled.nonzero()[:, 0]
    if len(index):
        own = function.take(index)
        answer.stability[index], _ = fields.spectrum(own, fields.repeated(own), answer.logits[index])
        answer.gradient_norm[index] = fields.field(own, answer.logits[index]).flatten(1).norm(dim=-1)
        answer.proved[index] = True
    rest = (~settled & ~diverges).nonzero()[:, 0]
    if len(rest) == 0:
        return answer
    own = function.take(rest)
    found = [fields.zero(own, begin) for begin in (start[rest], answer.logits[rest])]
    answer.proved[rest], answer.status[rest] = False, UNSOLVED
    answer.reason[rest] = torch.where(found[0].converged | found[1].converged, UNSTABLE, NO_ZERO)
    for one in found[::-1]:
        _put_stable(function, answer, one, rest)
    return answer


def _by_wins(function: Function) -> Tensor:
    """(B, X, A): by how often a response wins more than it loses; the most frequent winner is 1 above the most frequent loser."""
    weights = function.problem.label_weights
    net = weights.sum(-1) - weights.sum(-2)
    spread = (net.amax(-1) - net.amin(-1)).amax(-1)
    return net / torch.where(spread > 0, spread, 1.0)[:, None, None]


def _along(logits: Tensor, direction: Tensor) -> Tensor:
    """(B,): how far the logits are along the direction."""
    return (logits * direction).sum((-2, -1)) / direction.square().sum((-2, -1)).clamp(min=1e-300)


def _falls(function: Function, anchor: Tensor, direction: Tensor) -> Tensor:
    """(B,): training moves on along the direction wherever the field can be told from 0, out to where it is seen far from the anchor."""
    far = OBSERVED * reach(function) / 1000.0
    slopes = torch.stack(
        [
            (fields.field(function, anchor + (far * k / PLACES)[:, None, None] * direction) * direction).sum((-2, -1))
            for k in range(1, PLACES + 1)
        ]
    )
    visible = slopes.abs() > SEEN
    return (slopes <= 0).all(0) & (visible.sum(0) >= 3)


def _put(answer: TabularAnswer, index: Tensor, part: TabularAnswer) -> None:
    for field in dataclasses.fields(answer):
        getattr(answer, field.name)[index] = getattr(part, field.name)


def _put_divergence(function: Function, answer: TabularAnswer, index: Tensor, direction: Tensor) -> None:
    """Proved: the problems ``index`` move along ``direction`` (B, X, A) for ever."""
    if len(index) == 0:
        return
    own, way = function.take(index), direction[index]
    logits = answer.logits[index] + reach(own)[:, None, None] * way
    lost = (way != 0).any(-1, keepdim=True) & (way < way.amax(-1, keepdim=True))
    answer.logits[index] = logits
    answer.log_policy[index] = torch.where(lost, -torch.inf, logits.log_softmax(-1))
    answer.value[index] = own(logits).value
    answer.gradient_norm[index] = fields.field(own, logits).flatten(1).norm(dim=-1)
    answer.status[index], answer.proved[index], answer.direction[index] = DIVERGES, True, way


def _put_stable(function: Function, answer: TabularAnswer, found: fields.Zero, index: Tensor) -> Tensor:
    """Write the stable zeros of the problems ``index`` (n,); returns which of them have one."""
    stable = found.converged & (found.stability > 0)
    rows = stable.nonzero()[:, 0]
    target = index[rows]
    if len(rows):
        logits, dimension = found.logits[rows], found.dimension[rows]
        answer.logits[target], answer.log_policy[target] = logits, logits.log_softmax(-1)
        answer.value[target] = function.take(target)(logits).value
        answer.gradient_norm[target], answer.stability[target] = found.norm[rows], found.stability[rows]
        answer.status[target] = torch.where(dimension > 0, NOT_UNIQUE, CONVERGED)
        answer.dimension[target], answer.minima[target], answer.reason[target] = dimension, 1, 0
        answer.direction[target], answer.newton_step[target] = 0.0, 0.0
        answer.tie[target], answer.proved[target] = False, False
    return stable


def _blank(start: Tensor) -> TabularAnswer:
    """To be filled in."""
    number, whole = start.new_zeros(len(start)), torch.zeros(len(start), dtype=torch.long, device=start.device)
    flag = torch.zeros_like(whole, dtype=torch.bool)
    return TabularAnswer(
        logits=start.clone(),
        log_policy=start.log_softmax(-1),
        status=whole + UNSOLVED,
        gradient_norm=number.clone(),
        value=number.clone(),
        proved=flag.clone(),
        direction=torch.zeros_like(start),
        dimension=whole.clone(),
        minima=whole.clone(),
        tie=flag.clone(),
        newton_step=number.clone(),
        iterations=whole.clone(),
        stability=number + torch.nan,
        reason=whole.clone(),
        groups=torch.zeros_like(start, dtype=torch.long),
    )
