"""Policies with parameters for the exact bandits: log-linear in features, and over token trees; ``solve(..., policy=...)`` takes them."""

from toy_bandits.policies.base import Policy
from toy_bandits.policies.log_linear import LogLinear
from toy_bandits.policies.solver import PolicySolution
from toy_bandits.policies.token_tree import TokenTree

__all__ = ["LogLinear", "Policy", "PolicySolution", "TokenTree"]
