"""C4: a finite number of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toy_bandits import Bandit, solve, worlds
from toy_bandits.experiments.base import METHODS, Settings, method, policy_rows, rows
from toy_bandits.paths import adam_path
from toy_bandits.worlds import draws


@dataclass(frozen=True)
class FiniteData(Settings):
    """N labels drawn from a chain world, many data sets: whether a minimiser exists, and how much better it fits its own labels.

    ``overfit_gap``: probability that the policy's choice within a pair, sigmoid(d), agrees with a label of its own data, less that with a
    new label. It is defined in the limit too, where no minimiser exists.
    """

    name: ClassVar[str] = "finite_data"
    claim: ClassVar[str] = "C4: finite data"

    probability: float = 0.8
    labels: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
    data_sets: int = 200
    strengths: tuple[float, ...] = (0.1,)
    path_labels: int = 20
    path_data_sets: int = 50
    path_steps: tuple[int, ...] = (0, 1, 3, 10, 30, 100, 300, 1000, 3000)
    seed: int = 0

    def results(self) -> pd.DataFrame:
        """One row per (labels, seed, objective, strength); rows with a ``step`` are points of Adam's path instead of minimisers."""
        world = worlds.chain(self.probability)
        frames = []
        for count in self.labels:
            problem = sample(world, count, self.data_sets, self.seed)
            columns = {"labels": count, "seed": np.arange(self.data_sets)}
            for name in METHODS:
                for strength in self.strengths:
                    solution = solve(problem, method(name, strength))
                    gap = overfit_gap(world, problem, solution.logits.unsqueeze(-2))
                    frames.append(
                        rows(solution, **columns, objective=name, strength=strength, overfit_gap=gap, step=np.nan)
                    )
        return pd.concat([*frames, *self._paths(world)], ignore_index=True)

    def _paths(self, world: Bandit) -> list[pd.DataFrame]:
        problem = sample(world, self.path_labels, self.path_data_sets, self.seed)
        columns = {"labels": self.path_labels, "seed": np.arange(self.path_data_sets), "status": "path"}
        return [
            policy_rows(
                world.expand(problem.batch_shape),
                log_policy,
                **columns,
                objective=name,
                strength=strength,
                overfit_gap=overfit_gap(world, problem, log_policy),
                step=float(step),
            )
            for name in METHODS
            for strength in self.strengths
            for step, log_policy in adam_path(problem, method(name, strength), self.path_steps)
        ]


def sample(world: Bandit, labels: int, data_sets: int, seed: int) -> Bandit:
    """``data_sets`` empirical worlds, each made of ``labels`` labels drawn from a world of one context."""
    preferences, compared = draws.labels(world, labels, data_sets, seed)
    reference = world.reference.squeeze(-2)
    made = Bandit(reference, preferences, compared, rewards=world.rewards)
    return made.without_contexts()


def overfit_gap(world: Bandit, data: Bandit, logits: Tensor) -> Tensor:
    """(...): agreement of sigmoid(logit_a - logit_b) with the labels of ``data``, less that with labels of ``world``."""
    agreement = torch.sigmoid(logits.unsqueeze(-1) - logits.unsqueeze(-2))
    return ((data.label_weights - world.label_weights) * agreement).sum((-3, -2, -1))
