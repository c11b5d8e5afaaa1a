"""What a policy is worth and how far it went from the reference, exactly; each a mean over contexts, of shape (...)."""

from __future__ import annotations

import torch
from torch import Tensor

from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit
from toy_bandits.structure import closure


def _over_contexts(problem: Bandit, values: Tensor) -> Tensor:
    """(..., X) -> (...); a context of probability 0 counts nothing even where its value is infinite."""
    return torch.where(problem.contexts > 0, problem.contexts * values, 0.0).sum(-1)


def kl_policy_reference(problem: Bandit, log_policy: Tensor) -> Tensor:
    """KL(pi || pi_ref) in nats; at most -log of pi_ref's smallest probability, also for a point mass.

    Summed as pi_ref (t log t - t + 1), t = pi/pi_ref: no term is negative, so that a KL of 1e-20 is right to many digits too.
    """
    log_ratio = log_policy - problem.log_reference
    policy = log_policy.exp()
    terms = torch.where(policy > 0, policy * log_ratio, 0.0) - problem.reference * torch.expm1(log_ratio)
    return _over_contexts(problem, terms.clamp(min=0.0).sum(-1))


def kl_reference_policy(problem: Bandit, log_policy: Tensor) -> Tensor:
    """KL(pi_ref || pi) in nats; infinite where the policy gives up an action."""
    return _over_contexts(problem, (problem.reference * (problem.log_reference - log_policy)).sum(-1))


def expected_reward(problem: Bandit, log_policy: Tensor) -> Tensor:
    """E[r(x, y)], y ~ pi. Raises BanditError where the problem has no rewards."""
    if problem.rewards is None:
        raise BanditError("expected_reward: the problem has no rewards; give Bandit(rewards=...)")
    return _over_contexts(problem, (log_policy.exp() * problem.rewards).sum(-1))


def wins_against_reference(problem: Bandit) -> Tensor:
    """(..., X, A): P(y beats y'), y' ~ pi_ref; an action ties with itself (1/2)."""
    even = torch.full_like(problem.preferences, 0.5)
    eye = torch.eye(problem.actions, dtype=torch.bool, device=even.device)
    preferences = torch.where(eye, even, problem.preferences)
    return (preferences * problem.reference.unsqueeze(-2)).sum(-1)


def win_rate(problem: Bandit, log_policy: Tensor) -> Tensor:
    """E p(y > y'), y ~ pi, y' ~ pi_ref; an action ties with itself (1/2)."""
    return _over_contexts(problem, (log_policy.exp() * wins_against_reference(problem)).sum(-1))


def off_support_mass(problem: Bandit, log_policy: Tensor) -> Tensor:
    """Probability of actions that no pair shows."""
    unseen = ~(problem.pairs > 0).any(-1)
    return _over_contexts(problem, torch.where(unseen, log_policy.exp(), 0.0).sum(-1))


def component_masses(problem: Bandit, log_policy: Tensor) -> Tensor:
    """(..., X, A): for each action, the probability of its connected component of the pair graph."""
    connected = closure(problem.pairs > 0)
    return (connected * log_policy.exp().unsqueeze(-2)).sum(-1)


def all_metrics(problem: Bandit, log_policy: Tensor) -> dict[str, Tensor]:
    """Every metric by name, each (...); the expected reward where the problem has rewards."""
    functions = (kl_policy_reference, kl_reference_policy, win_rate, off_support_mass)
    values = {function.__name__: function(problem, log_policy) for function in functions}
    if problem.rewards is not None:
        values["expected_reward"] = expected_reward(problem, log_policy)
    return values
