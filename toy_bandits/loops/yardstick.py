"""The RLHF optimum as the measure of every policy."""

from __future__ import annotations

import torch
from torch import Tensor

from toy_bandits.metrics import expected_reward, kl_policy_reference
from toy_bandits.optimum import rlhf_log_policy
from toy_bandits.problem import Bandit

NEARLY_NONE, NEARLY_ALL = 1e-7, 1e7
"""Inverse strengths, times the range of the rewards, at which the optimum is nearly the reference or nearly the best actions alone."""


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
