"""The exact optimum of expected reward under a KL penalty, and the bound that it sets: the yardstick of every policy.

The win rate against the reference is an expected reward too, that of r(y) = P(y beats a response of pi_ref), so the same
form bounds it: see `win_rate_as_reward`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.metrics import expected_reward, kl_policy_reference, wins_against_reference
from toy_bandits.problem import Bandit

NEARLY_NONE, NEARLY_ALL = 1e-13, 1e7
"""Inverse strengths, times the range of the rewards, at which the optimum is nearly the reference or nearly the best actions alone."""
ROUNDING = 1e-12
"""By how much, relative to the largest reward, a policy may seem to lie above the bound. Measured: 4e-16 with up to 1,024 actions."""


def rlhf_log_policy(problem: Bandit, beta: float | Tensor) -> Tensor:
    """(..., X, A): log of pi_ref exp(r/beta)/Z, which maximises E r - beta KL(pi || pi_ref) (arXiv 2305.18290, eq. 4).

    Raises:
        BanditError: the problem has no rewards.
    """
    if problem.rewards is None:
        raise BanditError("rlhf_log_policy: the problem has no rewards; give Bandit(rewards=...)")
    strength = beta[..., None, None] if isinstance(beta, Tensor) else beta
    return (problem.log_reference + problem.rewards / strength).log_softmax(-1)


def penalised_reward(problem: Bandit, log_policy: Tensor, beta: float | Tensor) -> Tensor:
    """E r - beta KL(pi || pi_ref), (...)."""
    return expected_reward(problem, log_policy) - beta * kl_policy_reference(problem, log_policy)


def shortfall(problem: Bandit, log_policy: Tensor, beta: float | Tensor) -> Tensor:
    """By how much the penalised reward falls short of the RLHF optimum's, (...); equals beta KL(pi || pi*)."""
    best = penalised_reward(problem, rlhf_log_policy(problem, beta), beta)
    return best - penalised_reward(problem, log_policy, beta)


def reward_bound(problem: Bandit, log_policy: Tensor) -> Tensor:
    """(...): the highest expected reward of any policy whose KL(pi || pi_ref), a mean over contexts, is that of ``log_policy``.

    By duality E r <= beta KL + beta E_x log sum pi_ref exp(r/beta) for every beta > 0, with equality at the RLHF optimum of that KL, so the
    bound holds even where the search for beta (bisection on a log scale) is coarse.
    """
    assert problem.rewards is not None
    kl = kl_policy_reference(problem, log_policy)
    span = (problem.rewards.amax((-2, -1)) - problem.rewards.amin((-2, -1))).clamp(min=1e-300).expand_as(kl)
    low, high = torch.full_like(kl, NEARLY_NONE).log(), torch.full_like(kl, NEARLY_ALL).log()
    for _ in range(60):
        middle = 0.5 * (low + high)
        over = kl_policy_reference(problem, rlhf_log_policy(problem, span / middle.exp())) > kl
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    beta = span / high.exp()
    optimum = rlhf_log_policy(problem, beta)
    return expected_reward(problem, optimum) + beta * (kl - kl_policy_reference(problem, optimum))


def regret_to_bound(
    problem: Bandit, log_policy: Tensor, where: str | Callable[[tuple[int, ...]], str]
) -> tuple[Tensor, Tensor]:
    """`reward_bound` and what is missing to it, each (...).

    Args:
        problem: with rewards.
        log_policy: (..., X, A).
        where: for the error, what the policies are; or a function that names one by its index.

    Raises:
        BanditError: a policy lies above the bound by more than `ROUNDING`, which no policy can: it does not sum to 1, or a metric is wrong.
    """
    assert problem.rewards is not None
    reward, bound = expected_reward(problem, log_policy), reward_bound(problem, log_policy)
    allowed = ROUNDING * problem.rewards.abs().amax((-2, -1))
    wrong = ~(reward <= bound + allowed)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        named = where if isinstance(where, str) else where(at)
        kl = kl_policy_reference(problem, log_policy)[at].item()
        raise BanditError(
            f"{named}: an expected reward of {reward[at].item():.12g} at KL {kl:.6g} lies above the RLHF "
            f"optimum's {bound[at].item():.12g}, which no policy can reach: its log-probs are not those of a distribution"
        )
    return bound, bound - reward


def win_rate_as_reward(problem: Bandit) -> Bandit:
    """Reference, contexts and preferences of the problem, and as reward the win rate P(y beats y'), y' ~ pi_ref."""
    return Bandit(
        problem.reference,
        problem.preferences,
        contexts=problem.contexts,
        rewards=wins_against_reference(problem),
        name=problem.name,
    )
