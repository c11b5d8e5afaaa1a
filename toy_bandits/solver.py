"""`solve`: the exact optimum of an objective in a bandit, or the proof that there is none or more than one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import batching, expectations, metrics
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.errors import BanditError
from toy_bandits.newton import FLAT_CURVATURE, Minimum, centred, curvature, flat_moves, minimise
from toy_bandits.problem import Array, Bandit
from toy_bandits.structure import Structure, analyse

CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED = "converged", "diverges", "not_unique", "unsolved"
STATUSES = np.array([CONVERGED, DIVERGES, NOT_UNIQUE, UNSOLVED])

FAR = 1000.0
"""How far, in nats of losses' arguments and of log-probs, divergence is followed: losses are then at their limits to the last digit."""
CELLS = 4_000_000
"""Size of the tables held at a time; larger batches are solved in pieces."""
SAME_VALUE = 1e-10
ROUNDING = 1e-14
SAME_POLICY = 1e-6
SAME_SPEED = 0.1
LONG_DRIFT = 3.0


@dataclass(frozen=True)
class Certificate:
    """Why a status is what it is. Shapes (...) over problems; plain values for a single problem.

    Attributes:
        proved: the status follows from the losses' behaviour at infinity (and convexity), not only from numbers.
        direction: (..., X, A) logits along which the objective falls for ever; 0 unless the status is "diverges".
        dimension: of the set of minimisers (logits, without the constant per context); 0 where the minimiser is unique.
        minima: distinct minima found from all starts; 1 where the objective is convex.
        curvature: smallest eigenvalue of the Hessian at the answer, its diagonal scaled to 1, without the
            directions that are known to be flat.
        newton_step: largest change of a logit that one more Newton step would make.
        iterations: Newton iterations.
    """

    proved: Any
    direction: Tensor
    dimension: Any
    minima: Any
    curvature: Any
    newton_step: Any
    iterations: Any


@dataclass(frozen=True)
class Solution:
    """The answer to one problem or a batch of problems (leading dimensions ``...``; X left out where the problem leaves it out).

    Attributes:
        policy: (..., X, A). Where the status is "diverges": the limit along `Certificate.direction`, with exact zeros. Where it is
            "not_unique" because tied sets of actions move freely: what gradient flow reaches from ``start``.
        log_policy: (..., X, A), its logarithm (-inf for zeros), exact where probabilities underflow.
        logits: (..., X, A), finite; for "diverges" a far point on the direction.
        status: "converged" (a minimiser, unique), "diverges" (the infimum is not attained), "not_unique" (minimisers form a continuum, or
            several minima are equally good), or "unsolved" (none of these could be shown, such as at
            the kink of a hinge; the policy is the best point found).
            A str for a single problem, else an array of str.
        gradient_norm: (...), of the objective in the logits.
        value: (...), of the objective; its infimum where it diverges.
        certificate: why.
        problem: what was solved, with the batch dimensions of the solution.
    """

    policy: Tensor
    log_policy: Tensor
    logits: Tensor
    status: Any
    gradient_norm: Tensor
    value: Tensor
    certificate: Certificate
    problem: Bandit

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """Every metric of `toy_bandits.metrics`, by name, each (...)."""
        log_policy = self.log_policy if self.problem.has_contexts else self.log_policy.unsqueeze(-2)
        return metrics.all_metrics(self.problem, log_policy)


def solve(
    problem: Bandit,
    objective: Objective,
    start: Array | None = None,
    *,
    starts: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Solution:
    """Minimise the objective's exact expectation over all tabular softmax policies.

    Args:
        problem: the world, or a batch of worlds.
        objective: as `objectives.get` makes it; its hyper-parameters may be tensors that broadcast with the problem's leading
            dimensions, so that one call solves a grid. ``temperature="auto"`` is 1 in a bandit.
        start: logits (..., X, A) (or (A,)); default log pi_ref. It matters only where minimisers are not unique.
        starts: how many further starts to try where the objective is not known to be convex.
        seed: of the random ones among them.
        progress: show a progress bar.

    Returns:
        The solution, with gradient norm <= 1e-10 unless the status is "unsolved" (or, for losses so large that float64 cannot resolve
        that, at the limit of rounding).

    Raises:
        BanditError: the objective needs a source that a bandit lacks, shapes do not broadcast, or a loss is NaN or infinite.
        ObjectiveError: a loss breaks its contract, such as one value per example.
    """
    if not isinstance(objective, Objective):
        raise BanditError(f"solve: expected an objective such as objectives.get('dpo'), got {type(objective).__name__}")
    if not objective.terms:
        raise BanditError(f"{objective.label}: every term has weight 0, so there is nothing to minimise")
    for term in objective.terms:
        expectations.supplier(objective.name, term.source)
    if objective.needs_temperature:
        objective = objective.with_temperature(1.0)
    logits = problem.log_reference if start is None else _start(problem, start)
    shape = batching.common_shape(problem.batch_shape, objective, logits.shape[:-2])
    flat, spread = problem.flattened(shape), batching.flattened(objective, shape)
    begin = logits.expand(*shape, *problem.reference.shape[-2:]).reshape(flat.reference.shape)
    count, contexts, actions = begin.shape
    chunk = max(1, CELLS // (contexts * actions * actions))
    answers = [
        _solve(flat.take(index), batching.take(spread, index), begin[index], starts, seed, progress)
        for index in torch.split(torch.arange(count, device=begin.device), chunk)
    ]
    return _assemble(problem, answers, shape)


@dataclass
class _Answer:
    """Solutions of a flattened batch."""

    logits: Tensor
    log_policy: Tensor
    status: Tensor  # index into STATUSES
    gradient_norm: Tensor
    value: Tensor
    proved: Tensor
    direction: Tensor
    dimension: Tensor
    minima: Tensor
    curvature: Tensor
    newton_step: Tensor
    iterations: Tensor


def _start(problem: Bandit, start: Array) -> Tensor:
    logits = torch.as_tensor(start).detach().to(problem.reference)
    if not problem.has_contexts:
        logits = logits.unsqueeze(-2)
    core = problem.reference.shape[-2:]
    if logits.ndim < 2 or logits.shape[-2:] != core:
        expected = f"(..., {core[0]}, {core[1]})" if problem.has_contexts else f"(..., {core[1]})"
        raise BanditError(f"start: expected logits of shape {expected}, got {tuple(torch.as_tensor(start).shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise BanditError("start: logits must be finite")
    return logits


def _solve(problem: Bandit, objective: Objective, start: Tensor, starts: int, seed: int, progress: bool) -> _Answer:
    """A flattened batch: structure first, then numbers."""
    value = objective.value(expectations.batches(problem, objective, start.log_softmax(-1)))
    if not bool(torch.isfinite(value).all()):
        raise BanditError(f"{objective.name}: its value at the start is not finite")
    function = Function(problem, objective)
    structure = analyse(function)
    groups = torch.where(structure.diverges[:, None, None], structure.strong, structure.tied)
    begin = start + _reach(function)[:, None, None] * structure.direction
    bounded = structure.exists | structure.diverges
    convex = all(
        isinstance(piece, CrossEntropyPiece) or (isinstance(piece, PairPiece) and piece.link.convex)
        for piece in function.pieces
    )
    if convex:
        minimum = _minimise(problem, objective, begin, groups, bounded, progress)
        minima = torch.ones_like(minimum.iterations)
        tie = torch.zeros_like(minimum.converged)
    else:
        minimum, minima, tie = _best_of(problem, objective, begin, groups, bounded, starts, seed, progress)
    return _judge(function, structure, groups, minimum, minima, tie)


def _reach(function: Function) -> Tensor:
    """(B,): how far to follow a direction of divergence so that every pair that falls is at its limit."""
    scales = [torch.as_tensor(piece.term.scale) for piece in function.pieces if isinstance(piece, PairPiece)]
    reach = torch.full_like(function.problem.contexts[:, 0], FAR)
    for scale in scales:
        reach = torch.maximum(reach, FAR / scale)
    return reach


def _minimise(
    problem: Bandit, objective: Objective, start: Tensor, groups: Tensor, bounded: Tensor, progress: bool
) -> Minimum:
    return minimise(
        lambda index: Function(problem.take(index), batching.take(objective, index)),
        start,
        groups,
        bounded,
        progress=progress,
    )


def _best_of(
    problem: Bandit,
    objective: Objective,
    begin: Tensor,
    groups: Tensor,
    bounded: Tensor,
    starts: int,
    seed: int,
    progress: bool,
) -> tuple[Minimum, Tensor, Tensor]:
    """The best minimum from several starts, the number of distinct minima, and whether the best is tied with another."""
    count = begin.shape[0]
    candidates = _starts(problem, begin, groups, starts, seed)
    total = len(candidates)
    index = torch.arange(count, device=begin.device).repeat(total)
    found = _minimise(
        problem.take(index),
        batching.take(objective, index),
        candidates.flatten(0, 1),
        groups[index],
        bounded[index],
        progress,
    )
    value = found.derivatives.value.reshape(total, count)
    settled = (found.converged | found.escaping).reshape(total, count)
    value = torch.where(settled, value, float("inf"))
    best = value.amin(0)
    tolerance = SAME_VALUE * (1.0 + best.abs())
    as_good = value <= best + tolerance
    finite = found.converged.reshape(total, count)
    no_saddle = curvature(found.derivatives, groups[index]).reshape(total, count) > -FLAT_CURVATURE
    # Of equally good ends the first start's; an attained minimum before one at infinity.
    rank = torch.where(
        as_good, torch.where(finite, 0, total) + torch.arange(total, device=begin.device)[:, None], 3 * total
    )
    chosen = rank.argmin(0)
    policy = found.logits.softmax(-1).reshape(total, count, -1)
    apart = (policy.unsqueeze(0) - policy.unsqueeze(1)).abs().amax(-1) > SAME_POLICY
    earlier = (
        torch.ones(total, total, dtype=torch.bool, device=begin.device).triu(1).unsqueeze(-1)
    )  # [s, t]: s before t
    repeats = (~apart & earlier & finite.unsqueeze(1)).any(0)
    minima = (finite & no_saddle & ~repeats).sum(0)
    tie = (as_good & finite & apart[chosen, :, torch.arange(count)].T).any(0)
    flat = chosen * count + torch.arange(count, device=begin.device)
    return found.take(flat), minima, tie


def _starts(problem: Bandit, begin: Tensor, groups: Tensor, starts: int, seed: int) -> Tensor:
    """(S, B, X, A): the given start, the reference, each of several actions on top, random ones; the means of tied sets as in ``begin``."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    actions = begin.shape[-1]
    on_top = min(actions, starts // 2)
    wins = problem.label_weights.sum(-1) - problem.label_weights.sum(-2)
    order = wins.argsort(-1, descending=True)
    shifts = [torch.zeros_like(begin)]
    shifts += [torch.zeros_like(begin).scatter(-1, order[..., i : i + 1], 5.0) for i in range(on_top)]
    for i in range(starts - on_top):
        noise = torch.randn(begin.shape[1:], generator=generator, dtype=begin.dtype).to(begin)
        shifts.append(2.0 * math.sqrt(1.0 + i) * noise.expand_as(begin))
    moved = torch.stack([begin, *(problem.log_reference + shift for shift in shifts)])
    labels = groups.expand_as(moved)
    return centred(moved, labels) + (begin - centred(begin, groups))


def _judge(
    function: Function, structure: Structure, groups: Tensor, minimum: Minimum, minima: Tensor, tie: Tensor
) -> _Answer:
    """Status and certificate of each problem from what is proved and what was found."""
    logits = minimum.logits
    runs_away, direction = _runs_away(function, groups, minimum, structure)
    converged = minimum.converged & ~structure.diverges & ~runs_away
    logits = torch.where(runs_away[:, None, None], logits + _reach(function)[:, None, None] * direction, logits)
    derivatives = function(logits) if bool(runs_away.any()) else minimum.derivatives
    diverges = structure.diverges | runs_away
    direction = direction + structure.direction
    lowest = curvature(derivatives, groups)
    numerical = converged & ~structure.unique & (lowest <= FLAT_CURVATURE)
    flat = _flat_directions(function, logits, groups, numerical)
    flat = flat.clamp(min=structure.unbounded.long())
    dimension = torch.where(diverges, 0, structure.free + flat)
    status = torch.full_like(dimension, 3)
    status = torch.where(converged, torch.where((dimension > 0) | tie, 2, 0), status)
    status = torch.where(diverges, 1, status)
    log_policy = logits.log_softmax(-1)
    lost = diverges[:, None, None] & (direction < direction.amax(-1, keepdim=True))
    log_policy = torch.where(lost, -torch.inf, log_policy)
    return _Answer(
        logits=logits,
        log_policy=log_policy,
        status=status,
        gradient_norm=derivatives.gradient.flatten(1).norm(dim=-1),
        value=derivatives.value,
        proved=structure.diverges | (converged & (structure.unique | structure.unbounded)),
        direction=direction,
        dimension=dimension,
        minima=torch.where(diverges, 0, minima),
        curvature=lowest,
        newton_step=minimum.step.flatten(1).abs().amax(-1),
        iterations=minimum.iterations,
    )


def _runs_away(function: Function, groups: Tensor, minimum: Minimum, structure: Structure) -> tuple[Tensor, Tensor]:
    """Which iterations left every bound, and in which direction: followed much further, the value must not rise again.

    Where rounding hides the slope, what tells a fall that never ends from a flat valley is that the iteration went on far along it.
    """
    hidden = minimum.converged & (curvature(minimum.derivatives, groups) <= FLAT_CURVATURE)
    suspects = (minimum.escaping | hidden) & ~structure.exists
    direction = torch.zeros_like(minimum.logits)
    if not bool(suspects.any()):
        return suspects, direction
    size = minimum.drift.abs().amax((-2, -1), keepdim=True)
    went = suspects[:, None, None] & (size > LONG_DRIFT)
    direction = torch.where(went, _levels(minimum.drift / size), 0.0)
    further = function(minimum.logits + _reach(function)[:, None, None] * direction)
    falls = further.value <= minimum.derivatives.value + ROUNDING * (1.0 + minimum.derivatives.value.abs())
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
    """(B,): along how many moves without curvature the value does not change over a finite distance, one way or both."""
    count = torch.zeros_like(which, dtype=torch.long)
    if not bool(which.any()):
        return count
    derivatives = function(logits)
    tolerance = ROUNDING * (1.0 + derivatives.value.abs())
    moves, flat = flat_moves(derivatives, groups)
    for index in range(moves.shape[1]):
        candidates = which & flat[:, index]
        if bool(candidates.any()):
            ends = (function(logits + sign * moves[:, index]).value for sign in (-1.0, 1.0))
            count += candidates & torch.stack([(end - derivatives.value).abs() <= tolerance for end in ends]).any(0)
    return count


def _assemble(problem: Bandit, answers: Sequence[_Answer], shape: torch.Size) -> Solution:
    """Pieces joined and given the leading dimensions ``shape``."""

    def joined(name: str) -> Tensor:
        flat = torch.cat([getattr(answer, name) for answer in answers])
        tensor = flat.reshape([*shape, *flat.shape[1:]])
        return tensor.squeeze(-2) if flat.ndim == 3 and not problem.has_contexts else tensor

    def plain(name: str) -> Any:
        tensor = joined(name)
        return tensor if shape else tensor.item()

    status = STATUSES[joined("status").cpu().numpy()]
    log_policy = joined("log_policy")
    return Solution(
        policy=log_policy.exp(),
        log_policy=log_policy,
        logits=joined("logits"),
        status=status if shape else str(status),
        gradient_norm=joined("gradient_norm"),
        value=joined("value"),
        certificate=Certificate(
            proved=plain("proved"),
            direction=joined("direction"),
            dimension=plain("dimension"),
            minima=plain("minima"),
            curvature=plain("curvature"),
            newton_step=plain("newton_step"),
            iterations=plain("iterations"),
        ),
        problem=problem.expand(shape),
    )
