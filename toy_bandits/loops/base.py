"""What outer loops share: their settings, their steps, and the record that is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor

from objectives.domains import hyperparameters, unknown_name
from toy_bandits import optimum
from toy_bandits.errors import BanditError
from toy_bandits.experiments.base import policy_rows
from toy_bandits.problem import Bandit


@dataclass(frozen=True)
class Step:
    """Where a loop stands: the policy (..., X, A) in logs, the stage in words, and numbers of its own, each (...)."""

    log_policy: Tensor
    stage: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop(ABC):
    """An outer loop: a frozen dataclass of settings, checked when made; `steps` goes through it from the reference on.

    Raises:
        BanditError: a setting out of its range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs_references: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for parameter in hyperparameters(type(self)):
            value = parameter.check(self.name, getattr(self, parameter.name))
            object.__setattr__(self, parameter.name, value)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and value < (parameter.name != "seed"):
                raise BanditError(f"{self.name}: {parameter.name} must be at least 1; got {value}")

    @abstractmethod
    def steps(self, problem: Bandit) -> Iterator[Step]:
        """The policies in turn, the reference first.

        Args:
            problem: a problem or a batch of problems.
        """

    def config(self) -> dict[str, Any]:
        """The loop's name and settings."""
        return {"loop": self.name, **asdict(self)}


def make(kind: type[Loop], settings: dict[str, Any]) -> Loop:
    """The loop with these settings. Raises BanditError or ObjectiveError at an unknown one or a value out of range."""
    known = [parameter.name for parameter in hyperparameters(kind)]
    for key in settings:
        if key not in known:
            raise BanditError(f"{kind.name}: {unknown_name('setting', key, known)}")
    return kind(**settings)


def record(
    loop: Loop,
    problem: Bandit,
    progress: Callable[[Iterator[Step]], Iterable[Step]] = lambda steps: steps,
) -> pd.DataFrame:
    """One row per step and problem: metrics, ``reward_bound`` (the highest expected reward that any policy reaches at this KL) and
    ``regret`` (what is missing to it); for loops with a ``beta`` also ``shortfall``, E r - beta KL of the RLHF optimum less the policy's.

    Args:
        loop: the loop.
        problem: with rewards; a batch of problems is run at once.
        progress: wraps the steps, to show a bar.

    Raises:
        BanditError: a problem that the loop cannot run on (says why).
    """
    if problem.rewards is None:
        raise BanditError(f"{loop.name}: needs a world with rewards, by which its policies are judged")
    beta = getattr(loop, "beta", None)
    frames = []
    for number, step in enumerate(progress(loop.steps(problem))):
        frame = policy_rows(problem, step.log_policy, step=number, stage=step.stage, **step.numbers)
        bound, regret = optimum.regret_to_bound(problem, step.log_policy, _name(loop, number))
        frame["reward_bound"], frame["regret"] = bound.flatten().numpy(), regret.flatten().numpy()
        if beta is not None:
            frame["shortfall"] = optimum.shortfall(problem, step.log_policy, beta).flatten().numpy()
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _name(loop: Loop, number: int) -> Callable[[tuple[int, ...]], str]:
    """Names a policy of this step, for errors, by its place in the batch of problems."""
    return lambda at: f"{loop.name}, step {number}" + (f", problem {at}" if at else "")
