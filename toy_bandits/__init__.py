"""Exact tabular worlds: what a preference objective does to a policy where everything can be computed."""

from toy_bandits.errors import BanditError
from toy_bandits.problem import Bandit
from toy_bandits.solution import Certificate, Solution
from toy_bandits.solver import solve

__all__ = ["Bandit", "BanditError", "Certificate", "Solution", "solve"]
