"""What smooth minimisation leaves open: hinges alone, minima at kinks, and for the rest the reason why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from objectives.values import kinks_as, watched
from toy_bandits import fields, kinks, linear
from toy_bandits.derivatives import Function
from toy_bandits.newton import GRADIENT_TOLERANCE, minimise
from toy_bandits.solution import Answer, TabularAnswer

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = range(4)
_, RESTLESS, VANISHED, TOO_LARGE, ABOVE_BOUND, NOT_OPTIMAL, SADDLE, NO_ZERO, UNSTABLE = range(9)
"""Indices into `solution.REASONS`."""
LINEAR_GAP = 1e-9

Smooth = Callable[[Function, Tensor], TabularAnswer]


def solve_any(function: Function, start: Tensor, smooth: Smooth) -> TabularAnswer:
    """A flattened batch of problems from ``start`` (B, X, A): smooth minimisation, and what it leaves open.

    Args:
        function: of the batch.
        start: logits.
        smooth: minimises smooth losses.
    """
    with watched() as used:
        _one(function, 0)(start[:1])
    if "positive_part" in used:
        with kinks_as(kinks.Smooth(kinks.FIRST)):
            answer = smooth(Function(function.problem, function.objective), start)
        if linear.is_linear(function):
            for index in range(len(start)):
                _linear(_one(function, index), answer, index, start[index])
        else:
            _kinked(function, answer)
    else:
        answer = smooth(function, start)
    if "stop_gradient" in used and start[0].numel() <= fields.LARGEST:
        _followed(function, answer, start)
    unknown = (answer.status == UNSOLVED) & (answer.reason == 0)
    answer.reason[unknown] = torch.where(answer.gradient_norm > GRADIENT_TOLERANCE, RESTLESS, VANISHED)[unknown]
    answer.reason[answer.status != UNSOLVED] = 0
    return answer


def _one(function: Function, index: int) -> Function:
    return function.take(torch.tensor([index], device=function.problem.reference.device))


def _linear(function: Function, answer: Answer, index: int, start: Tensor) -> None:
    found = linear.face(function)
    if found is None:
        answer.status[index] = UNSOLVED
        answer.reason[index] = TOO_LARGE
        return
    logits = linear.nearest(found, start)
    value = function(logits.unsqueeze(0)).value[0]
    if value.item() - found.value > LINEAR_GAP * (1.0 + abs(found.value)):
        answer.status[index] = UNSOLVED
        answer.reason[index] = ABOVE_BOUND
        return
    _put(answer, index, logits, value.item(), found.residual, found.dimension)
    answer.proved[index] = True


def _kinked(function: Function, answer: Answer) -> None:
    """From the answer for smoothed kinks to the exact one."""
    held = answer.status != DIVERGES
    answer.value[~held] = function(answer.logits).value[~held]
    left = held.nonzero()[:, 0]
    if len(left) == 0:
        return
    own = function.take(left)
    logits, width = answer.logits[left], kinks.FIRST
    never = torch.zeros(len(left), dtype=torch.bool)
    while width > 1.5 * kinks.LAST:
        width /= 10.0
        with kinks_as(kinks.Smooth(width)):
            logits = minimise(own.take, logits, torch.zeros_like(logits, dtype=torch.long), never).logits
    for row, index in enumerate(left.tolist()):
        found = kinks.polish(_one(function, index), logits[row].unsqueeze(0))
        if found is None:
            answer.status[index] = UNSOLVED
            answer.reason[index] = NOT_OPTIMAL
        elif not found.local_minimum:
            answer.status[index] = UNSOLVED
            answer.reason[index] = SADDLE
        else:
            minima = int(answer.minima[index])
            _put(answer, index, found.logits, found.value, found.residual, found.dimension)
            answer.minima[index] = max(minima, 1)
            answer.proved[index] = function.convex


def _followed(function: Function, answer: Answer, start: Tensor) -> None:
    """Losses with stop-gradients: a stable zero of the field, from ``start`` or else from where smooth minimisation ended."""
    found = [fields.zero(function, begin) for begin in (start, answer.logits)]
    value = [function(one.logits).value for one in found]
    ahead = (fields.field(function, answer.logits) * answer.direction).sum((-2, -1))
    for index in range(len(start)):
        # Far along a divergence the field underflows, which is no zero of it.
        known = found[:1] if answer.status[index] == DIVERGES else found
        stable = [bool(one.converged[index]) and bool(one.stability[index] > 0) for one in known]
        if any(stable):
            which = stable.index(True)
            one = found[which]
            minima = int(answer.minima[index])
            _put(
                answer,
                index,
                one.logits[index],
                value[which][index].item(),
                one.norm[index].item(),
                int(one.dimension[index]),
            )
            answer.minima[index] = max(minima, 1)
        elif answer.status[index] == DIVERGES and ahead[index] <= 0:
            continue
        else:
            answer.status[index] = UNSOLVED
            answer.reason[index] = UNSTABLE if any(bool(one.converged[index]) for one in known) else NO_ZERO
        answer.proved[index] = False
        answer.stability[index] = found[stable.index(True)].stability[index] if any(stable) else torch.nan


def _put(answer: Answer, index: int, logits: Tensor, value: float, residual: float, dimension: int) -> None:
    """Write a minimiser."""
    answer.logits[index], answer.log_policy[index] = logits, logits.log_softmax(-1)
    answer.value[index], answer.gradient_norm[index] = value, residual
    answer.status[index] = NOT_UNIQUE if dimension else CONVERGED
    answer.dimension[index], answer.minima[index] = dimension, 1
    answer.direction[index], answer.newton_step[index], answer.tie[index] = 0.0, 0.0, False
