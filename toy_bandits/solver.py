"""`solve`: the exact optimum of an objective in a bandit, or the proof that there is none or more than one."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from objectives import Objective
from toy_bandits import batching, expectations
from toy_bandits.certificates import judge, reach
from toy_bandits.checks import check_losses, named
from toy_bandits.completion import solve_any
from toy_bandits.derivatives import CrossEntropyPiece, Function, PairPiece
from toy_bandits.errors import BanditError
from toy_bandits.newton import FLAT_CURVATURE, Minimum, centred, curvature, minimise
from toy_bandits.problem import Array, Bandit
from toy_bandits.solution import Answer, Solution, assemble
from toy_bandits.structure import analyse

CELLS = 4_000_000
"""Size of the tables held at a time; larger batches are solved in pieces."""
SAME_VALUE = 1e-10
SAME_POLICY = 1e-6


class Policy(Protocol):
    """What `solve` asks of a policy with parameters; `toy_bandits.policies` has them."""

    def solve(
        self, problem: Bandit, objective: Objective, start: Array | None, *, starts: int, seed: int, progress: bool
    ) -> Solution:
        """The optimum over the policy's parameters."""
        ...


def solve(
    problem: Bandit,
    objective: Objective,
    start: Array | None = None,
    *,
    policy: Policy | None = None,
    starts: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Solution:
    """Minimise the objective's exact expectation over all tabular softmax policies, or over those of ``policy``.

    Args:
        problem: the world, or a batch of worlds.
        objective: as `objectives.get` makes it; its hyper-parameters may be tensors that broadcast with the problem's leading
            dimensions, so that one call solves a grid. ``temperature="auto"`` is 1 in a bandit.
        start: logits (..., X, A) (or (A,)); default log pi_ref. It matters only where minimisers are not unique.
            With ``policy``: its parameters (..., P); default those of the reference, or closest to it.
        policy: a policy with parameters, such as `toy_bandits.policies.LogLinear` or `TokenTree`; default tabular. The solution is
            then a `toy_bandits.policies.PolicySolution`.
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
    with named(problem):
        return _checked(problem, objective, start, policy, starts, seed, progress)


def _checked(
    problem: Bandit,
    objective: Objective,
    start: Array | None,
    policy: Policy | None,
    starts: int,
    seed: int,
    progress: bool,
) -> Solution:
    for term in objective.terms:
        expectations.supplier(objective.name, term.source)
    if objective.needs_temperature:
        objective = objective.with_temperature(1.0)
    if policy is not None:
        return policy.solve(problem, objective, start, starts=starts, seed=seed, progress=progress)
    logits = start_logits(problem, start)
    shape = batching.common_shape(problem.batch_shape, objective, logits.shape[:-2])
    flat, spread = problem.flattened(shape), batching.flattened(objective, shape)
    begin = logits.expand(*shape, *problem.reference.shape[-2:]).reshape(flat.reference.shape)
    count, contexts, actions = begin.shape
    chunk = max(1, CELLS // (contexts * actions * actions))
    answers = [
        _solve(flat.take(index), batching.take(spread, index), begin[index], starts, seed, progress)
        for index in torch.split(torch.arange(count, device=begin.device), chunk)
    ]
    return assemble(problem, spread, answers, shape)


def start_logits(problem: Bandit, start: Array | None) -> Tensor:
    """(..., X, A): the logits that a tabular policy starts from; log pi_ref where none are given.

    Raises:
        BanditError: they have another shape, or are not finite.
    """
    if start is None:
        return problem.log_reference
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


def _solve(problem: Bandit, objective: Objective, start: Tensor, starts: int, seed: int, progress: bool) -> Answer:
    """A flattened batch: smooth minimisation, then what that leaves open."""
    check_losses(problem, objective, start.log_softmax(-1))

    def smooth(some: Bandit, own: Objective, begin: Tensor) -> Answer:
        return _smooth(some, own, begin, starts, seed, progress)

    return solve_any(problem, objective, start, smooth)


def _smooth(problem: Bandit, objective: Objective, start: Tensor, starts: int, seed: int, progress: bool) -> Answer:
    """Structure first, then numbers."""
    function = Function(problem, objective)
    structure = analyse(function)
    groups = torch.where(structure.diverges[:, None, None], structure.strong, structure.tied)
    begin = start + reach(function)[:, None, None] * structure.direction
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
    return judge(function, structure, groups, minimum, minima, tie)


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
