"""`solve`: the exact optimum of an objective in a bandit, or the proof that there is none or more than one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from objectives import Objective
from toy_bandits import batching, closed_forms, expectations
from toy_bandits.certificates import judge, reach
from toy_bandits.checks import check_losses, named
from toy_bandits.completion import solve_any
from toy_bandits.derivatives import Function
from toy_bandits.errors import BanditError
from toy_bandits.problem import Array, Bandit
from toy_bandits.search import search
from toy_bandits.solution import Solution, TabularAnswer, assemble
from toy_bandits.structure import analyse

CELLS = 200_000
"""Size of the tables held at a time, small enough for a processor's cache; larger batches are solved in pieces."""


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
    with named(problem, objective):
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
    flat, spread = problem.flattened(shape), batching.flattened(objective, shape, problem.reference.device)
    begin = logits.expand(*shape, *problem.reference.shape[-2:]).reshape(flat.reference.shape)
    count, contexts, actions = begin.shape
    chunk = max(1, CELLS // (contexts * actions * actions))
    whole: TabularAnswer | None = None
    with tqdm(total=count, desc="solving", unit="problem", disable=not progress, leave=False) as bar:
        for number, index in enumerate(torch.split(torch.arange(count, device=begin.device), chunk)):
            part = _solve(flat.take(index), batching.take(spread, index), begin[index], starts, seed)
            whole = part.room(count) if whole is None else whole  # pieces would take as much memory again
            whole.put(number * chunk, part)
            bar.update(len(index))
    assert whole is not None
    return assemble(problem, spread, whole, shape)


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


def _solve(problem: Bandit, objective: Objective, start: Tensor, starts: int, seed: int) -> TabularAnswer:
    """A flattened batch: smooth minimisation, then what that leaves open."""
    one = torch.zeros(1, dtype=torch.long, device=start.device)
    try:  # the contract on one problem, the numbers on all; only what fails is looked at cell by cell
        check_losses(problem.take(one), batching.take(objective, one), start[one].log_softmax(-1))
        function = Function(problem, objective)
        return solve_any(
            function, start, lambda some, begin, few: _smooth(some, begin, starts if few is None else few, seed)
        )
    except Exception:
        check_losses(problem, objective, start.log_softmax(-1))  # says where
        raise


def _smooth(function: Function, start: Tensor, starts: int, seed: int) -> TabularAnswer:
    """Structure first, then numbers."""
    if not function.known:
        function.require_finite(start)
    structure = analyse(function)
    groups = torch.where(structure.diverges[:, None, None], structure.strong, structure.tied)
    begin = start + reach(function)[:, None, None] * structure.direction
    found = search(function, begin, groups, structure.exists | structure.diverges, starts, seed)
    answer = judge(function, structure, groups, found.minimum, found.minima, found.tie, found.sole)
    closed_forms.settle(function, structure, start, answer)
    return answer
