"""The exact optimum of expected reward under a KL penalty: the yardstick of every frontier."""

from __future__ import annotations

from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit


def rlhf_log_policy(problem: Bandit, beta: float | Tensor) -> Tensor:
    """(..., X, A): log of pi_ref exp(r/beta)/Z, which maximises E r - beta KL(pi || pi_ref) (arXiv 2305.18290, eq. 4).

    Raises:
        BanditError: the problem has no rewards.
    """
    if problem.rewards is None:
        raise BanditError("rlhf_log_policy: the problem has no rewards; give Bandit(rewards=...)")
    strength = beta[..., None, None] if isinstance(beta, Tensor) else beta
    return (problem.log_reference + problem.rewards / strength).log_softmax(-1)
