"""Steps that loops share: the same world seen from another policy."""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import Objective
from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit
from toy_bandits.solver import solve

SMALLEST = 1e-250
"""A policy with a smaller probability can no longer serve as a reference."""


def pairs_of(log_policy: Tensor) -> Tensor:
    """(..., X, A, A): how often two independent responses of a policy are the unequal pair {a, b}."""
    scaled = (log_policy - log_policy.amax(-1, keepdim=True)).exp()
    both = scaled.unsqueeze(-1) * scaled.unsqueeze(-2)
    return both - torch.diag_embed(both.diagonal(dim1=-2, dim2=-1))


def seen_from(problem: Bandit, log_reference: Tensor, pairs: Tensor | None = None) -> Bandit:
    """The problem with another reference (..., X, A), and other compared pairs where they are given."""
    return Bandit(
        log_reference.exp(),
        problem.preferences,
        problem.pairs if pairs is None else pairs,
        problem.contexts,
        problem.rewards,
        lengths=problem.lengths,
        name=problem.name,
    )


def optimum_of(problem: Bandit, objective: Objective, where: str) -> Tensor:
    """(..., X, A): log of the objective's optimal policy in a problem made by `seen_from`.

    Raises:
        BanditError: no minimiser exists, or none was found, so that there is nothing to go on from.
    """
    solution = solve(problem, objective)
    status = [solution.status] if isinstance(solution.status, str) else solution.status.ravel().tolist()
    bad = next((s for s in status if s in ("diverges", "unsolved")), None)
    if bad is not None:
        reason = (
            "has no minimiser in this world, so there is no policy to go on from; take an objective that stays finite, or a world "
            "without certain labels"
            if bad == "diverges"
            else "could not be solved to full precision in this world; take a smooth objective, or another world"
        )
        raise BanditError(f"{where}: {objective.label} {reason}")
    return solution.log_policy


def usable(log_policy: Tensor) -> bool:
    """Whether the policy can be the next reference."""
    return bool(log_policy.exp().min() > SMALLEST)
