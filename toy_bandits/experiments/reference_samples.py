"""C9: how many samples of the reference the off-policy KL needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from toy_bandits import Bandit, solve
from toy_bandits.experiments.base import Settings, method, rows
from toy_bandits.worlds import draws

REFERENCE = (0.5, 0.25, 0.1, 0.07, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class ReferenceSamples(Settings):
    """MaxPO whose KL term sees N samples of the reference; the two most common actions are compared, the others are not.

    An action that no pair shows keeps exactly its share of the samples. (One that pairs favour can keep mass without a sample.)
    """

    name: ClassVar[str] = "reference_samples"
    claim: ClassVar[str] = "C9: reference data"

    samples: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640, 1280, 2560)
    data_sets: int = 200
    strength: float = 0.1
    probability: float = 0.9
    seed: int = 0

    def results(self) -> pd.DataFrame:
        """One row per (samples, seed); ``unsampled_mass`` is the reference's mass of actions that were never sampled."""
        reference = torch.tensor(REFERENCE, dtype=torch.float64)
        actions = len(REFERENCE)
        preferences = torch.full((actions, actions), 0.5, dtype=torch.float64)
        preferences[0, 1], preferences[1, 0] = self.probability, 1.0 - self.probability
        pairs = torch.zeros(actions, actions, dtype=torch.float64)
        pairs[0, 1] = pairs[1, 0] = 1.0
        frames = []
        for count in self.samples:
            shares = draws.reference_samples(Bandit(reference, preferences, pairs), count, self.data_sets, self.seed)
            problem = Bandit(reference, preferences, pairs, reference_samples=shares)
            lost = torch.where(shares == 0, reference, 0.0).sum((-2, -1))
            frames.append(
                rows(
                    solve(problem, method("maxpo", self.strength)),
                    samples=count,
                    seed=np.arange(self.data_sets),
                    objective="maxpo",
                    strength=self.strength,
                    unsampled_mass=lost,
                )
            )
        return pd.concat(frames, ignore_index=True)
