"""What experiments share: their shape, and how solutions become rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import objectives
from objectives import Objective
from toy_bandits import metrics
from toy_bandits.problem import Bandit
from toy_bandits.solution import Solution

METHODS = ("dpo", "ipo", "maxpo")


class Experiment(Protocol):
    """A frozen dataclass of settings, which make up the record's config, and the table that they lead to."""

    name: ClassVar[str]
    claim: ClassVar[str]

    def results(self) -> pd.DataFrame:
        """One row per solved problem: settings columns and metric columns."""

    def config(self) -> dict[str, Any]:
        """Everything that the table depends on."""


@dataclass(frozen=True)
class Settings:
    """Base of experiments: the config is the fields."""

    name: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """The experiment's name and its settings."""
        return {"experiment": self.name, **asdict(self)}


def method(name: str, strength: float | Tensor) -> Objective:
    """The objective ``name`` at a regularisation strength."""
    return objectives.get(name).with_strength(strength)


def decades(lowest: int, highest: int, per_decade: int) -> tuple[float, ...]:
    """Strengths 10^lowest .. 10^highest, evenly spaced by ratio."""
    count = (highest - lowest) * per_decade + 1
    return tuple(float(value) for value in np.logspace(lowest, highest, count))


def vector(values: tuple[float, ...]) -> Tensor:
    """A float64 tensor of settings, to be broadcast against problems."""
    return torch.tensor(values, dtype=torch.float64)


def rows(solution: Solution, **columns: Any) -> pd.DataFrame:
    """One row per problem of a solution: ``columns`` (broadcast to its batch), status and every metric."""
    return table(
        solution.problem.batch_shape,
        **columns,
        status=solution.status,
        **solution.metrics,
        gradient_norm=solution.gradient_norm,
        value=solution.value,
    )


def policy_rows(problem: Bandit, log_policy: Tensor, **columns: Any) -> pd.DataFrame:
    """The same for policies that are not minimisers: columns and metrics."""
    return table(log_policy.shape[:-2], **columns, **metrics.all_metrics(problem, log_policy))


def table(shape: torch.Size, **columns: Any) -> pd.DataFrame:
    """Columns broadcast to ``shape`` and laid out in rows."""
    return pd.DataFrame({name: np.broadcast_to(np.asarray(values), shape).ravel() for name, values in columns.items()})
