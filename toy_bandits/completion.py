"""What smooth minimisation leaves open: hinges alone, minima at kinks, and for the rest the reason why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from objectives.values import kinks_as, watched
from toy_bandits import fields, following, kinks, linear
from toy_bandits.derivatives import Function
from toy_bandits.newton import GRADIENT_TOLERANCE, minimise
from toy_bandits.restless import never_rests
from toy_bandits.solution import Answer, TabularAnswer

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = range(4)
_, RESTLESS, VANISHED, TOO_LARGE, ABOVE_BOUND, NOT_OPTIMAL, SADDLE = range(7)
"""Indices into `solution.REASONS`."""
LINEAR_GAP = 1e-9
HOST = torch.device("cpu")

Smooth = Callable[[Function, Tensor, int | None], TabularAnswer]


def solve_any(function: Function, start: Tensor, smooth: Smooth) -> TabularAnswer:
    """A flattened batch of problems from ``start`` (B, X, A): smooth minimisation, and what it leaves open.

    Args:
        function: of the batch.
        start: logits.
        smooth: minimises smooth losses, from so many further starts; None: as many as were asked for.
    """
    with watched() as used:
        _one(function, 0)(start[:1])
    held = start[0].numel() <= fields.LARGEST and following.held_fixed(function, used)
    if (held or "positive_part" in used) and start.device != HOST:  # for linear programs and singular least squares
        return solve_any(function.moved(HOST), start.to(HOST), smooth).moved(start.device)
    if held:
        answer = following.follow(function, start, lambda some, begin: _minimised(some, begin, smooth, used, 0))
    else:
        answer = _minimised(function, start, smooth, used, None)
        nowhere = never_rests(function)[1]  # a function without stationary point attains no infimum
        answer.proved |= nowhere & (answer.status == DIVERGES)
    unknown = (answer.status == UNSOLVED) & (answer.reason == 0)
    answer.reason[unknown] = torch.where(answer.gradient_norm > GRADIENT_TOLERANCE, RESTLESS, VANISHED)[unknown]
    answer.reason[answer.status != UNSOLVED] = 0
    return answer


def _minimised(function: Function, start: Tensor, smooth: Smooth, used: set[str], starts: int | None) -> TabularAnswer:
    if "positive_part" not in used:
        return smooth(function, start, starts)
    with kinks_as(kinks.Smooth(kinks.FIRST)):
        answer = smooth(Function(function.problem, function.objective), start, starts)
    if linear.is_linear(function):
        for index in range(len(start)):
            _linear(_one(function, index), answer, index, start[index])
    else:
        _kinked(function, answer)
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
    for index, found in zip(left.tolist(), kinks.polish(own, logits), strict=True):
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


def _put(answer: Answer, index: int, logits: Tensor, value: float, residual: float, dimension: int) -> None:
    """Write a minimiser."""
    answer.logits[index], answer.log_policy[index] = logits, logits.log_softmax(-1)
    answer.value[index], answer.gradient_norm[index] = value, residual
    answer.status[index] = NOT_UNIQUE if dimension else CONVERGED
    answer.dimension[index], answer.minima[index] = dimension, 1
    answer.direction[index], answer.newton_step[index], answer.tie[index] = 0.0, 0.0, False
