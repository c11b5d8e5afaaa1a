"""What a policy is: its softmax nodes in a problem, and where its parameters start."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from objectives import Objective
from toy_bandits.policies.softmaxes import Softmaxes
from toy_bandits.policies.solver import PolicySolution, solve_policy
from toy_bandits.problem import Array, Bandit


class Policy(ABC):
    """A family of policies with parameters theta (P,), shared by all problems of a batch; each problem has its own theta."""

    @abstractmethod
    def softmaxes(self, problem: Bandit) -> Softmaxes:
        """The family in a flattened batch of problems.

        Raises:
            BanditError: it does not fit the problem.
        """

    @abstractmethod
    def first(self, problem: Bandit, form: Softmaxes) -> Tensor:
        """(B, P): the parameters that stand for the reference, or come closest to it."""

    def measured(self, problem: Bandit) -> Bandit:
        """The problem with the lengths of the policy's responses."""
        return problem

    def solve(
        self,
        problem: Bandit,
        objective: Objective,
        start: Array | None = None,
        *,
        starts: int,
        seed: int,
        progress: bool,
    ) -> PolicySolution:
        """What `toy_bandits.solve` with this policy returns; see there."""
        return solve_policy(self, problem, objective, start, starts=starts, seed=seed, progress=progress)
